"""Rules for Argo CD: the order in which it applies the manifests, its permissions, its versions, and access to it."""

import re
from collections.abc import Iterator
from functools import partial

from tools.lint.fields import FIELDS, Row, asked_by, find_unmet, having, one_of
from tools.lint.inventory import OPERATORS, Inventory, annotation, first, get_path, namespace_of
from tools.lint.manifests import Manifest, name
from tools.lint.references import Reference, links, references
from tools.lint.rules import enter, every, of
from tools.lint.service import is_service
from tools.lint.tree import PATHS, Found, Tree, tree_rule

HEALTH = "resource.customizations.health.argoproj.io_Application"
MOVED = {"ghcr.io/nginxinc/charts": "ghcr.io/nginx/charts"}
CONSEQUENCES = {
    "argocd-insecure": "Argo CD's sessions and passwords cross the cluster's network in the clear",
    "application-apply": "The sync fails: a large CRD or dashboard is too long for a client-side apply's annotation",
}
FIELDS += [
    Row("argocd-insecure", of("ConfigMap"), "data[server.insecure]", one_of(None, "false")),
    Row("application-apply", of("Application"), "spec.syncPolicy.syncOptions", having("ServerSideApply=true")),
]
for _rule, _consequence in CONSEQUENCES.items():
    enter(_rule, _consequence, partial(asked_by, _rule), find_unmet)


def wave(one: Manifest) -> int:
    given = annotation(one, "argocd.argoproj.io/sync-wave")
    return int(given) if re.fullmatch(r"[+-]?\d+", given) else 0


def hook(one: Manifest) -> str:
    return annotation(one, "argocd.argoproj.io/hook")


def needed(inventory: Inventory, one: Manifest) -> Iterator[Manifest]:
    """Yield the objects of the manifests that must exist before an object works."""
    targets = [("Namespace", "", namespace_of(one)), *(link.target for link in references(one))]
    found = (inventory.get(*target) for target in targets)
    return (each for each in found if each and inventory.origin(each))


def migrates(one: Manifest) -> bool:
    return (
        one["kind"] == "Job"
        and bool(hook(one))
        and ["migrate"] in get_path(one, "spec.template.spec.containers[].args")
    )


@every(of())
def sync_wave(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """The sync never ends, because it waits for something that only a later wave creates."""
    for other in needed(inventory, one):
        if inventory.origin(other) != inventory.origin(one):
            continue
        if wave(other) > wave(one):
            yield f"wave {wave(one)}, but {name(other)}, which it needs, comes in wave {wave(other)}"
        # A database needs minutes to start; a hook that starts at the same time fails until then.
        if other["kind"] in {"Cluster", "ExternalSecret"} and hook(one) and wave(other) >= wave(one):
            yield f"starts in wave {wave(one)} together with {name(other)}, which must be ready first"
    for other in inventory.of("Deployment") if migrates(one) else ():
        serves = any(map(is_service, get_path(other, "spec.template.spec.containers[].image")))
        if serves and wave(one) >= wave(other):
            yield f"wave {wave(one)}: not before {name(other)} (wave {wave(other)}), whose schema it migrates"


@every(of())
def sync_hook(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """The first sync never ends: the hook waits for what only the sync creates, or is deleted before it is seen."""
    for other in needed(inventory, one) if hook(one) == "PreSync" else ():
        if not hook(other) and other["kind"] != "Namespace":
            yield f"runs before the sync but needs {name(other)}, which the sync creates"
    if hook(one) and first(one, "spec.ttlSecondsAfterFinished") is not None:
        yield "ttlSecondsAfterFinished deletes the hook while Argo CD still waits for it"
    if hook(one) and one["kind"] == "Job" and not annotation(one, "argocd.argoproj.io/hook-delete-policy"):
        yield "has no hook-delete-policy: its template is immutable, so the next version is rejected"


def brought(inventory: Inventory, one: Manifest) -> list[Manifest]:
    """Return the objects at an Application's path."""
    path = first(one, "spec.source.path", "").removeprefix("k8s/")
    return [each for each in inventory.objects if inventory.origin(each) == path]


def forbidden(project: Manifest, namespace: str) -> Iterator[str]:
    if not {namespace, "*"} & set(get_path(project, "spec.destinations[].namespace")):
        yield f"{name(project)} does not allow the namespace {namespace}"


@every(of("Application"))
def application(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """Argo CD rejects the Application: its project does not allow what it requests."""
    project = inventory.get("AppProject", namespace_of(one), one["spec"]["project"])
    if project is None and one["spec"]["project"] != "default":
        yield f"there is no AppProject {one['spec']['project']}"
    elif project:
        for source in get_path(one, "spec.source.repoURL", "spec.sources[].repoURL"):
            if not {source, "*"} & set(get_path(project, "spec.sourceRepos[]")):
                yield f"{name(project)} does not allow the source {source}"
        yield from forbidden(project, first(one, "spec.destination.namespace", ""))


@every(of("Application"))
def application_version(_: Inventory, one: Manifest) -> Iterator[str]:
    """Eventually, an operator version is installed that does not match the CRDs and manifests."""
    for source in get_path(one, "spec.source", "spec.sources[]"):
        version, address = str(source.get("targetRevision")), source["repoURL"].removeprefix("oci://")
        if "chart" in source and not re.fullmatch(r"v?\d+\.\d+\.\d+", version):
            yield f"chart {source['chart']}: targetRevision {version} is not an exact version"
        if address in MOVED:
            yield f"{address} receives no new versions; use {MOVED[address]}"


@every(of("Application"))
def application_replicas(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """Argo CD treats the autoscaler's changes as drift and reverts them."""
    spaces = [namespace_of(each) for each in inventory.of("HorizontalPodAutoscaler")]
    scaled = any(get_path(one, "spec.source.path")) and first(one, "spec.destination.namespace") in spaces
    ignored = "/spec/replicas" in get_path(one, "spec.ignoreDifferences[].jsonPointers[]")
    if scaled and not (ignored and "RespectIgnoreDifferences=true" in get_path(one, "spec.syncPolicy.syncOptions[]")):
        yield "ignoreDifferences of /spec/replicas, or RespectIgnoreDifferences=true, is missing"


@every(of("Application"))
def application_wave(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """The sync fails at a kind whose CRD is missing, or an operator lacks something that it checks only at startup."""
    groups = {each["apiVersion"].partition("/")[0] for each in brought(inventory, one)}
    after = first(OPERATORS, f"order[{one['metadata']['name']}].after", ())
    for other in inventory.of("Application"):
        key = other["metadata"]["name"]
        if wave(other) >= wave(one) and (key in after or groups & set(get_path(OPERATORS, f"order[{key}].groups[]"))):
            yield f"wave {wave(one)}: not after {key} (wave {wave(other)}), whose CRDs or pods it needs"


@every(of("Application"))
def application_health(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """An Application counts as healthy as soon as it exists, so waves between Applications have no effect."""
    if wave(one) and HEALTH not in first(inventory.get("ConfigMap", "argocd", "argocd-cm"), "data", {}):
        yield f"has a wave, but argocd-cm has no {HEALTH}"


def governed(inventory: Inventory) -> Iterator[tuple[Manifest, str, tuple[Manifest, Manifest]]]:
    """Yield each object at the path of an Application with the project that controls it."""
    for one in inventory.of("Application"):
        project = inventory.get("AppProject", namespace_of(one), one["spec"]["project"])
        yield from ((each, "", (each, project)) for each in brought(inventory, one) if project)


@every(governed)
def application_right(_: Inventory, pair: tuple[Manifest, Manifest]) -> Iterator[str]:
    """Argo CD rejects the object: the project does not list its kind or its namespace."""
    one, project = pair
    group = one["apiVersion"].rpartition("/")[0]
    field = "namespaceResourceWhitelist" if namespace_of(one) else "clusterResourceWhitelist"
    allowed = first(project, f"spec.{field}")
    if allowed is not None and not any(
        each["kind"] in {one["kind"], "*"} and each["group"] in {group, "*"} for each in allowed
    ):
        yield f"{name(project)} does not allow {one['kind']}"
    if namespace_of(one):
        yield from forbidden(project, namespace_of(one))


@tree_rule
def application_path(tree: Tree) -> Found:
    """Argo CD finds nothing at the path, and the Application stays unknown."""
    for one in tree.applications():
        for path in get_path(one, *PATHS):
            if not (tree.root.parent / path.removeprefix("$values/")).exists():
                yield "argocd/apps", one["metadata"]["name"], f"there is no {path}"


@every(links("backend"))
def silent_streams(inventory: Inventory, link: Reference) -> Iterator[str]:
    """Argo CD's page and command line lose each stream that is idle for 60 s."""
    policies = [one for one in inventory.of("ProxySettingsPolicy") if namespace_of(one) == namespace_of(link.source)]
    if link.target[2] == "argocd-server" and "1h" not in get_path(policies, "[].spec.timeout.read"):
        yield f"no ProxySettingsPolicy lets a stream of {link} be idle for 1h"


@every(links("configuration"))
def backend_name(inventory: Inventory, link: Reference) -> Iterator[str]:
    """The gateway refuses the backend's certificate and answers 502."""
    host, maker = first(link.source, "spec.validation.hostname"), inventory.get(*link.target)
    if host and maker and maker["kind"] == "Certificate" and host not in get_path(maker, "spec.dnsNames[]"):
        yield f"expects the name {host}, which {name(maker)} does not have"
