"""Finds what an API server would refuse to change, before a rollout stops on it."""

import json
from collections.abc import Iterator

from tools.lint.inventory import annotation, first
from tools.lint.manifests import Finding, Manifest, name

CONSEQUENCE = "The next version stops in the middle of its rollout"
IMMUTABLE = {
    "Cluster": ("spec.bootstrap.initdb", "spec.storage.storageClass", "spec.walStorage.storageClass"),
    "ClusterRoleBinding": ("roleRef",),
    "DaemonSet": ("spec.selector",),
    "Deployment": ("spec.selector",),
    "Job": ("spec.template", "spec.selector", "spec.completions", "spec.completionMode"),
    "PersistentVolumeClaim": ("spec.accessModes", "spec.storageClassName", "spec.volumeMode", "spec.selector"),
    "RoleBinding": ("roleRef",),
    "Service": ("spec.clusterIP",),
    "StatefulSet": ("spec.selector", "spec.serviceName", "spec.podManagementPolicy", "spec.volumeClaimTemplates"),
    "StorageClass": ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"),
}
"""Fields that stay as they were made, by kind; what CloudNativePG refuses for its Cluster among them."""


def find_refused(where: str, before: list[Manifest], after: list[Manifest]) -> Iterator[Finding]:
    """Compare two renders of one kustomization, as if the second were applied over the first."""
    old = {(manifest["apiVersion"], name(manifest)): manifest for manifest in before}
    for manifest in after:
        previous = old.get((manifest["apiVersion"], name(manifest)))
        # part argocd
        # Argo CD deletes such a one before it makes it again, so that all of it may change.
        is_replaced = "BeforeHookCreation" in annotation(manifest, "argocd.argoproj.io/hook-delete-policy")
        # end argocd
        for path in IMMUTABLE.get(manifest["kind"], ()) if previous and not is_replaced else ():
            if first(previous, path) != first(manifest, path):
                problem = f"{path} changes, and the API server refuses to change it"
                yield Finding(where, name(manifest), problem, "immutable", CONSEQUENCE)


def with_image(manifests: list[Manifest], old: str, new: str) -> list[Manifest]:
    """The same objects with another image, wherever it is named: in a name or a label made from it too."""
    changed: list[Manifest] = json.loads(json.dumps(manifests).replace(old, new))
    return changed
