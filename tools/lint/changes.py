"""Find changes that the API server would reject, before they stop a rollout."""

import json
from collections.abc import Iterator

from tools.lint.inventory import annotation, first
from tools.lint.manifests import Finding, Manifest, name

CONSEQUENCE = "The rollout of the next version stops halfway"
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
"""Immutable fields by kind, including those of a Cluster that CloudNativePG does not allow to be changed."""


def find_refused(where: str, before: list[Manifest], after: list[Manifest]) -> Iterator[Finding]:
    """Compare two renders of one kustomization, as if the second was applied over the first."""
    old = {(manifest["apiVersion"], name(manifest)): manifest for manifest in before}
    for manifest in after:
        previous = old.get((manifest["apiVersion"], name(manifest)))
        # part argocd
        # Argo CD deletes such a hook before it creates the new one, so every field may change.
        is_replaced = "BeforeHookCreation" in annotation(manifest, "argocd.argoproj.io/hook-delete-policy")
        # end argocd
        for path in IMMUTABLE.get(manifest["kind"], ()) if previous and not is_replaced else ():
            if first(previous, path) != first(manifest, path):
                problem = f"{path} changes, but it is immutable"
                yield Finding(where, name(manifest), problem, "immutable", CONSEQUENCE)


def with_image(manifests: list[Manifest], old: str, new: str) -> list[Manifest]:
    """Return the objects with another image, also in the names and labels that contain the old one."""
    changed: list[Manifest] = json.loads(json.dumps(manifests).replace(old, new))
    return changed
