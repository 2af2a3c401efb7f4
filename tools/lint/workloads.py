"""Rules for pods: Services, selectors, images, probes, autoscalers and disruption budgets."""

import re
from collections import Counter
from collections.abc import Iterator
from math import nan

from tools.lint.inventory import (
    Container,
    Inventory,
    Pod,
    containers as all_containers,
    first,
    get_path,
    matches,
    namespace_of,
    template,
)
from tools.lint.manifests import Manifest, name
from tools.lint.rules import Findings, containers, every, of, rule
from tools.lint.service import routes

ANTI_AFFINITY = (
    "affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[].podAffinityTerm.labelSelector",
    "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[].labelSelector",
)
UNITS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
UNITS |= {f"{letter}i": 2.0 ** (10 * power) for power, letter in enumerate("KMGTPE", 1)}


def quantity(text: object) -> float:
    """Return a Kubernetes quantity as a number; NaN if it is invalid, which the schema check reports."""
    found = re.fullmatch(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)", str(text))
    return float(found[1]) * UNITS.get(found[2], nan) if found else nan


def is_served(inventory: Inventory, pod: Pod) -> bool:
    """Return whether a Service balances requests to a pod: a headless one only provides addresses."""
    chosen = [
        inventory.select({"matchLabels": first(one, "spec.selector")}, namespace_of(one))
        for one in inventory.of("Service")
        if first(one, "spec.selector") and first(one, "spec.clusterIP") != "None"
    ]
    return any(pod in each for each in chosen)


@every(of("Service"))
def service_port(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """Connections to the Service are refused."""
    selector = first(one, "spec.selector")
    if inventory.may_run_more(namespace_of(one)):
        return
    if selector and not inventory.select({"matchLabels": selector}, namespace_of(one)):
        yield "selects no pod"
    elif selector:
        for port in get_path(one, "spec.ports[]"):
            # A containerPort is informational: pods may listen on a port that they do not list.
            if isinstance(port.get("targetPort"), str) and not inventory.targets(one, port):
                yield f"port {port['port']}: no selected pod listens on {port['targetPort']}"


def owned(inventory: Inventory) -> Iterator[tuple[Manifest, str, Pod]]:
    """Yield all pods that a manifest requests."""
    return ((pod.manifest, "", pod) for pod in inventory.pods if pod.manifest)


@every(owned)
def selector(inventory: Inventory, pod: Pod) -> Iterator[str]:
    """The API server rejects the workload, or its spread constraints and anti-affinity have no effect."""
    spec = pod.spec or pod.manifest["spec"]
    if pod.manifest["kind"] != "Job" and not matches(first(pod.manifest, "spec.selector", {}), pod.labels):
        yield "spec.selector does not match the labels of its template"
    for one in get_path(spec, "topologySpreadConstraints[].labelSelector"):
        if not matches(one, pod.labels):
            yield "topologySpreadConstraints does not select its own pods"
    for one in get_path(spec, *ANTI_AFFINITY):
        if not inventory.select(one, pod.namespace):
            yield "podAntiAffinity selects pods that do not exist"


@every(of())
def image(_: Inventory, one: Manifest) -> Iterator[str]:
    """After a restart, a pod may run an untested program."""
    of_pods = (each.get("image", "") for each in all_containers(first(template(one), "spec", {})))
    for value in [*get_path(one, "spec.images[].image", "spec.imageName"), *of_pods]:
        registry, _slash, last = value.rpartition("/")
        tag = last.partition("@")[0].partition(":")[2]
        if re.search(r"@sha256:[0-9a-f]{64}$", value):
            continue  # a digest is immutable
        if not tag or tag == "latest":
            yield f"{value}: no version"
        elif registry:
            yield f"{value}: the tag may later refer to a different image; add its digest"


@every(containers)
def probe(inventory: Inventory, one: Container) -> Iterator[str]:
    """Pods are killed or excluded for the wrong reason, or get requests that they cannot serve."""
    asked = {}
    for kind in ("startup", "liveness", "readiness"):
        for target in get_path(one.spec, f"{kind}Probe.httpGet"):
            port, path = one.pod.ports.get(str(target["port"]), target["port"]), target.get("path", "/")
            asked[kind] = path
            if isinstance(port, str):
                yield f"{kind}Probe uses port {port}, which the container does not have"
            elif one.is_ours and path not in routes().get(port, ()):
                yield f"{kind}Probe requests {path} on port {port}, where the service has no such route"
    if "liveness" in asked and asked["liveness"] == asked.get("readiness"):
        yield "both probes use the same path: a lost database restarts every pod"
    if one.serves and "ports" in one.spec and "readinessProbe" not in one.spec and is_served(inventory, one.pod):
        yield "a Service sends it requests, but it has no readinessProbe"


def scaled(inventory: Inventory) -> Iterator[tuple[Manifest, str, tuple[Manifest, Manifest]]]:
    """Yield each autoscaler with its target."""
    for one in inventory.of("HorizontalPodAutoscaler"):
        target = inventory.get(
            one["spec"]["scaleTargetRef"]["kind"], namespace_of(one), one["spec"]["scaleTargetRef"]["name"]
        )
        if target is not None:
            yield target, "", (one, target)


@every(scaled)
def autoscaler_replicas(_: Inventory, pair: tuple[Manifest, Manifest]) -> Iterator[str]:
    """Each apply resets the number of pods, even under the load that raised it."""
    scaler, target = pair
    if first(target, "spec.replicas") is not None:
        yield f"sets replicas, which {name(scaler)} manages"


@every(of("HorizontalPodAutoscaler"))
def autoscaler_target(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """The number of pods changes with every small change in load, or never."""
    targets = [target for _, _, (scaler, target) in scaled(inventory) if scaler is one]
    memory = sum(map(quantity, get_path(targets, "[].spec.template.spec.containers[].resources.requests.memory")))
    if one["spec"].get("minReplicas", 1) < 2:  # noqa: PLR2004  said in the message
        yield "minReplicas is below 2: moving the only pod is an outage"
    for metric in get_path(one, "spec.metrics[].resource"):
        share, amount = first(metric, "target.averageUtilization"), first(metric, "target.averageValue")
        if metric["name"] == "cpu" and share is not None and not 50 <= share <= 90:  # noqa: PLR2004  said in the message
            yield f"CPU target {share} %: outside 50 to 90, it reacts to every fluctuation, or too late"
        if metric["name"] == "memory" and amount is not None and quantity(amount) >= memory:
            yield f"memory target {amount} is not below the request: reached only shortly before pods are killed"


@rule
def disruption_budget(inventory: Inventory) -> Findings:
    """Draining a node evicts all pods at the same time, or is impossible."""
    covered = Counter[int]()
    for one in inventory.of("PodDisruptionBudget"):
        found = inventory.select(first(one, "spec.selector", {}), namespace_of(one))
        covered.update(id(pod) for pod in found)
        if not found and not inventory.may_run_more(namespace_of(one)):
            yield one, "selects no pod"
        if any(pod.manifest.get("kind") == "Cluster" for pod in found):
            yield one, "CloudNativePG creates its own budgets for its instances; two for one pod block every eviction"
        if str(first(one, "spec.maxUnavailable", 1)) in {"0", "0%"} or first(one, "spec.minAvailable") == "100%":
            yield one, "allows no disruption: a node with such a pod cannot be drained"
    for one, _, pod in owned(inventory):
        balanced = one["kind"] == "Deployment" and is_served(inventory, pod)
        scales = any(target is one for _, _, (_, target) in scaled(inventory))
        several = scales or first(one, "spec.replicas", 1 if pod.spec else 2) > 1
        if balanced or (one["kind"] in {"Gateway", "Pooler"} and pod.name != "ACME solver"):
            if several and not covered[id(pod)]:
                yield one, f"no PodDisruptionBudget covers its pods ({pod.name})"
            if covered[id(pod)] > 1:
                yield one, f"{covered[id(pod)]} PodDisruptionBudgets cover its pods, and every eviction is rejected"
