"""Finds what an API server would refuse to change, before a rollout stops on it."""

from collections.abc import Iterator
from typing import Any

from lint.manifests import Finding, Manifest, name

IMMUTABLE = {
    "Deployment": ("spec.selector",),
    "DaemonSet": ("spec.selector",),
    "StatefulSet": ("spec.selector", "spec.serviceName", "spec.podManagementPolicy", "spec.volumeClaimTemplates"),
    "Job": ("spec.template", "spec.selector", "spec.completions", "spec.completionMode"),
    "Service": ("spec.clusterIP",),
    "PersistentVolumeClaim": ("spec.accessModes", "spec.storageClassName", "spec.volumeMode", "spec.selector"),
    "StorageClass": ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"),
    "RoleBinding": ("roleRef",),
    "ClusterRoleBinding": ("roleRef",),
    "PodDisruptionBudget": (),
    "Cluster": ("spec.bootstrap.initdb", "spec.storage.storageClass", "spec.walStorage.storageClass"),
}
"""Fields that stay as they were made, by kind; CloudNativePG's own among them."""


def _value(manifest: Manifest, path: str) -> Any:
    value: Any = manifest
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_replaced(manifest: Manifest) -> bool:
    """An Argo CD hook that is deleted before it is made again may change altogether."""
    policies = ((manifest.get("metadata") or {}).get("annotations") or {}).get("argocd.argoproj.io/hook-delete-policy", "")
    return "BeforeHookCreation" in policies


def find_refused(where: str, before: list[Manifest], after: list[Manifest]) -> Iterator[Finding]:
    """Compare two renders of one kustomization, as if the second were applied over the first."""
    old = {(manifest["apiVersion"], name(manifest)): manifest for manifest in before}
    for manifest in after:
        previous = old.get((manifest["apiVersion"], name(manifest)))
        if previous is None or _is_replaced(manifest):
            continue
        for path in IMMUTABLE.get(manifest["kind"], ()):
            if _value(previous, path) != _value(manifest, path):
                yield Finding(where, name(manifest), f"{path} changes with the image, and the API server refuses to change it")
