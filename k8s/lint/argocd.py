"""What Argo CD makes of the manifests: in which order, by whose right, from which versions."""

import re
from collections.abc import Iterator

from lint.inventory import OPERATORS, Inventory, annotation, dig, first, space
from lint.manifests import Manifest, name
from lint.references import objects_named, uses
from lint.rules import Wrong, rule
from lint.service import is_service

HEALTH = "resource.customizations.health.argoproj.io_Application"
MOVED = {"ghcr.io/nginxinc/charts": "ghcr.io/nginx/charts"}
SYNC_OPTIONS = "spec.syncPolicy.syncOptions[]"


def wave(one: Manifest) -> int:
    given = annotation(one, "argocd.argoproj.io/sync-wave")
    return int(given) if re.fullmatch(r"[+-]?\d+", given) else 0


def hook(one: Manifest) -> str:
    return annotation(one, "argocd.argoproj.io/hook")


def needed(inventory: Inventory, one: Manifest) -> Iterator[Manifest]:
    """What must be there before an object works, as far as the manifests make it."""
    targets = [*objects_named(one), ("Namespace", "", space(one))]
    for kind, path in (("Gateway", "spec.parentRefs[]"), ("Service", "spec.rules[].backendRefs[]")):
        targets += [(kind, each.get("namespace", space(one)), each["name"]) for each in dig(one, path)]
    targets += [(use.kind, use.namespace, use.name) for use in uses(one) if use.kind == "ConfigMap"]
    found = [inventory.get(*target) for target in targets]
    found += [inventory.makers.get((use.namespace, use.name)) for use in uses(one) if use.kind == "Secret"]
    yield from (other for other in found if other is not None)


@rule
def sync_wave(inventory: Inventory) -> Wrong:
    """The sync waits for something that only a later wave brings, and never ends."""
    for one in inventory.objects:
        for other in needed(inventory, one):
            known = inventory.origin(other) == inventory.origin(one)
            if known and wave(other) > wave(one):
                yield one, f"wave {wave(one)}, but {name(other)}, which it needs, comes in wave {wave(other)}"
            # A database takes minutes; what starts beside it fails until then.
            if known and other["kind"] in {"Cluster", "ExternalSecret"} and hook(one) and wave(other) >= wave(one):
                yield one, f"starts in wave {wave(one)} beside {name(other)}, which it needs to be finished"
    jobs = [
        one
        for one in inventory.of("Job")
        if hook(one) and ["migrate"] in dig(one, "spec.template.spec.containers[].args")
    ]
    for one in inventory.of("Deployment"):
        serves = any(is_service(image) for image in dig(one, "spec.template.spec.containers[].image"))
        for job in jobs:
            if serves and wave(job) >= wave(one):
                yield job, f"wave {wave(job)}: not before {name(one)} (wave {wave(one)}), whose schema it brings"


@rule
def sync_hook(inventory: Inventory) -> Wrong:
    """The first sync never ends: the hook waits for what only the sync brings, or vanishes unseen."""
    for one in inventory.objects:
        if hook(one) == "PreSync":
            for other in needed(inventory, one):
                if inventory.origin(other) and not hook(other) and other["kind"] != "Namespace":
                    yield one, f"runs before the sync and needs {name(other)}, which the sync brings"
        if hook(one) and first(one, "spec.ttlSecondsAfterFinished") is not None:
            yield one, "ttlSecondsAfterFinished removes the hook while Argo CD still looks for it"
        if hook(one) and one["kind"] == "Job" and not annotation(one, "argocd.argoproj.io/hook-delete-policy"):
            yield one, "has no hook-delete-policy: its template cannot be changed, so the next version is refused"


@rule
def application(inventory: Inventory) -> Wrong:
    """Argo CD refuses the Application: its project does not allow what it asks for."""
    for one in inventory.of("Application"):
        project = inventory.get("AppProject", space(one), one["spec"]["project"])
        if project is None:
            if one["spec"]["project"] != "default":
                yield one, f"there is no AppProject {one['spec']['project']}"
            continue
        for source in [*dig(one, "spec.source"), *dig(one, "spec.sources[]")]:
            if not {source["repoURL"], "*"} & set(dig(project, "spec.sourceRepos[]")):
                yield one, f"{name(project)} does not allow the source {source['repoURL']}"
        target = first(one, "spec.destination.namespace", "")
        if not {target, "*"} & set(dig(project, "spec.destinations[].namespace")):
            yield one, f"{name(project)} does not allow the namespace {target}"


@rule
def application_version(inventory: Inventory) -> Wrong:
    """One day another version of an operator is installed than the CRDs and manifests were made for."""
    for one in inventory.of("Application"):
        for source in [*dig(one, "spec.source"), *dig(one, "spec.sources[]")]:
            if "chart" in source and not re.fullmatch(r"v?\d+\.\d+\.\d+", str(source.get("targetRevision"))):
                yield one, f"chart {source['chart']}: targetRevision {source.get('targetRevision')} is not one version"
            if source["repoURL"].removeprefix("oci://") in MOVED:
                yield (
                    one,
                    f"{source['repoURL']} gets no new versions; it moved to {MOVED[source['repoURL'].removeprefix('oci://')]}",
                )


@rule
def application_apply(inventory: Inventory) -> Wrong:
    """A large CRD or dashboard does not fit into the annotation of a client-side apply, and the sync fails."""
    for one in inventory.of("Application"):
        if "ServerSideApply=true" not in dig(one, SYNC_OPTIONS):
            yield one, "syncOptions has no ServerSideApply=true"


@rule
def application_replicas(inventory: Inventory) -> Wrong:
    """Argo CD calls what the autoscaler did a drift, and heals it."""
    scaled = {space(one) for one in inventory.of("HorizontalPodAutoscaler")}
    for one in inventory.of("Application"):
        if "path" in first(one, "spec.source", {}) and first(one, "spec.destination.namespace") in scaled:
            ignored = "/spec/replicas" in dig(one, "spec.ignoreDifferences[].jsonPointers[]")
            if not ignored or "RespectIgnoreDifferences=true" not in dig(one, SYNC_OPTIONS):
                yield one, "ignoreDifferences of /spec/replicas, or RespectIgnoreDifferences=true, is missing"


@rule
def application_wave(inventory: Inventory) -> Wrong:
    """The sync stops at a kind that no CRD explains yet, or an operator starts without what it looks for only then."""
    order, applications = OPERATORS["order"], {one["metadata"]["name"]: one for one in inventory.of("Application")}
    for key, one in applications.items():
        for other in order.get(key, {}).get("after", ()):
            if other in applications and wave(applications[other]) >= wave(one):
                yield one, f"wave {wave(one)}: not after {other} (wave {wave(applications[other])})"
        groups = {
            each["apiVersion"].partition("/")[0]
            for each in inventory.objects
            if inventory.origin(each) == first(one, "spec.source.path", "").removeprefix("k8s/")
        }
        for other, provides in order.items():
            if groups & set(provides["groups"]) and other in applications and wave(applications[other]) >= wave(one):
                yield one, f"wave {wave(one)}: brings kinds of {other}, which comes in wave {wave(applications[other])}"


@rule
def application_health(inventory: Inventory) -> Wrong:
    """An Application counts as healthy as soon as it exists, and waves between Applications wait for nothing."""
    settings = inventory.get("ConfigMap", "argocd", "argocd-cm")
    if HEALTH not in first(settings, "data", {}):
        for one in inventory.of("Application"):
            if wave(one):
                yield one, f"has a wave, and argocd-cm has no {HEALTH}"


@rule
def application_right(inventory: Inventory) -> Wrong:
    """Argo CD refuses the object: its kind is not on the project's list."""
    for one in inventory.of("Application"):
        project = inventory.get("AppProject", space(one), one["spec"]["project"])
        for each in inventory.objects if project else ():
            if inventory.origin(each) != first(one, "spec.source.path", "").removeprefix("k8s/"):
                continue
            field = "namespaceResourceWhitelist" if space(each) else "clusterResourceWhitelist"
            group = each["apiVersion"].rpartition("/")[0]
            allowed = first(project, f"spec.{field}")
            if allowed is not None and not any(
                rule["kind"] in {each["kind"], "*"} and rule["group"] in {group, "*"} for rule in allowed
            ):
                yield each, f"{name(project or {})} does not allow {each['kind']}"
            if space(each) and not {space(each), "*"} & set(dig(project, "spec.destinations[].namespace")):
                yield each, f"{name(project or {})} does not allow the namespace {space(each)}"
