"""Pods as they start, are reached and are counted: Services, selectors, images, probes, autoscalers and budgets."""

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
    """A Kubernetes quantity as a number; what is none, which the schema tells of, compares with nothing."""
    found = re.fullmatch(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)", str(text))
    return float(found[1]) * UNITS.get(found[2], nan) if found else nan


def is_served(inventory: Inventory, pod: Pod) -> bool:
    """Tell whether a Service balances requests to it: a headless one only gives names."""
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
            # A containerPort only informs: pods may listen on a number that they do not name.
            if isinstance(port.get("targetPort"), str) and not inventory.targets(one, port):
                yield f"port {port['port']}: no selected pod listens on {port['targetPort']}"


def owned(inventory: Inventory) -> Iterator[tuple[Manifest, str, Pod]]:
    """All pods that some manifest asks for."""
    return ((pod.manifest, "", pod) for pod in inventory.pods if pod.manifest)


@every(owned)
def selector(inventory: Inventory, pod: Pod) -> Iterator[str]:
    """The API server refuses the workload, or its pods are spread and kept apart from nothing."""
    spec = pod.spec or pod.manifest["spec"]
    if pod.manifest["kind"] != "Job" and not matches(first(pod.manifest, "spec.selector", {}), pod.labels):
        yield "spec.selector does not match the labels of its own template"
    for one in get_path(spec, "topologySpreadConstraints[].labelSelector"):
        if not matches(one, pod.labels):
            yield "topologySpreadConstraints counts other pods than its own"
    for one in get_path(spec, *ANTI_AFFINITY):
        if not inventory.select(one, pod.namespace):
            yield "podAntiAffinity keeps it apart from pods that do not exist"


@every(of())
def image(_: Inventory, one: Manifest) -> Iterator[str]:
    """Another program runs after a restart than the one that was tried."""
    of_pods = (each.get("image", "") for each in all_containers(first(template(one), "spec", {})))
    for value in [*get_path(one, "spec.images[].image", "spec.imageName"), *of_pods]:
        registry, _slash, last = value.rpartition("/")
        tag = last.partition("@")[0].partition(":")[2]
        if re.search(r"@sha256:[0-9a-f]{64}$", value):
            continue  # nothing is more fixed
        if not tag or tag == "latest":
            yield f"{value}: no version"
        elif registry:
            yield f"{value}: the registry may hand out another image by this tag; add its digest"


@every(containers)
def probe(inventory: Inventory, one: Container) -> Iterator[str]:
    """Pods are killed, or kept out, for the wrong reason; or sent requests they cannot serve."""
    asked = {}
    for kind in ("startup", "liveness", "readiness"):
        for target in get_path(one.spec, f"{kind}Probe.httpGet"):
            port, path = one.pod.ports.get(str(target["port"]), target["port"]), target.get("path", "/")
            asked[kind] = path
            if isinstance(port, str):
                yield f"{kind}Probe asks port {port}, which it does not have"
            elif one.is_ours and path not in routes().get(port, ()):
                yield f"{kind}Probe asks {path} on {port}, where the service has no such route"
    if "liveness" in asked and asked["liveness"] == asked.get("readiness"):
        yield "one address for both probes: a lost database restarts every pod"
    if one.serves and "ports" in one.spec and "readinessProbe" not in one.spec and is_served(inventory, one.pod):
        yield "a Service sends it requests, and no readinessProbe says when"


def scaled(inventory: Inventory) -> Iterator[tuple[Manifest, str, tuple[Manifest, Manifest]]]:
    """Each autoscaler with what it scales."""
    for one in inventory.of("HorizontalPodAutoscaler"):
        target = inventory.get(
            one["spec"]["scaleTargetRef"]["kind"], namespace_of(one), one["spec"]["scaleTargetRef"]["name"]
        )
        if target is not None:
            yield target, "", (one, target)


@every(scaled)
def autoscaler_replicas(_: Inventory, pair: tuple[Manifest, Manifest]) -> Iterator[str]:
    """Each apply sets the number of pods back, in the middle of the load that raised it."""
    scaler, target = pair
    if first(target, "spec.replicas") is not None:
        yield f"has replicas, which {name(scaler)} owns"


@every(of("HorizontalPodAutoscaler"))
def autoscaler_target(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """Pods come and go at every breath, or never: the number means nothing."""
    targets = [target for _, _, (scaler, target) in scaled(inventory) if scaler is one]
    memory = sum(map(quantity, get_path(targets, "[].spec.template.spec.containers[].resources.requests.memory")))
    if one["spec"].get("minReplicas", 1) < 2:  # noqa: PLR2004  one is none as soon as it moves
        yield "minReplicas is below 2: one pod that moves is an outage"
    for metric in get_path(one, "spec.metrics[].resource"):
        share, amount = first(metric, "target.averageUtilization"), first(metric, "target.averageValue")
        if metric["name"] == "cpu" and share is not None and not 50 <= share <= 90:  # noqa: PLR2004  said in the message
            yield f"CPU target {share} %: between 50 and 90 it neither trembles nor comes too late"
        if metric["name"] == "memory" and amount is not None and quantity(amount) >= memory:
            yield f"memory target {amount} is the request or more: reached only shortly before the kill"


@rule
def disruption_budget(inventory: Inventory) -> Findings:
    """A drained node takes all pods at once, or cannot be drained at all."""
    covered = Counter[int]()
    for one in inventory.of("PodDisruptionBudget"):
        found = inventory.select(first(one, "spec.selector", {}), namespace_of(one))
        covered.update(id(pod) for pod in found)
        if not found and not inventory.may_run_more(namespace_of(one)):
            yield one, "selects no pod"
        if any(pod.manifest.get("kind") == "Cluster" for pod in found):
            yield one, "CloudNativePG makes the budgets of its instances itself; two for one pod block every eviction"
        if str(first(one, "spec.maxUnavailable", 1)) in {"0", "0%"} or first(one, "spec.minAvailable") == "100%":
            yield one, "allows no disruption: no node with such a pod can be drained"
    for one, _, pod in owned(inventory):
        balanced = one["kind"] == "Deployment" and is_served(inventory, pod)
        scales = any(target is one for _, _, (_, target) in scaled(inventory))
        several = scales or first(one, "spec.replicas", 1 if pod.spec else 2) > 1
        if balanced or (one["kind"] in {"Gateway", "Pooler"} and pod.name != "ACME solver"):
            if several and not covered[id(pod)]:
                yield one, f"no PodDisruptionBudget covers its pods ({pod.name})"
            if covered[id(pod)] > 1:
                yield one, f"{covered[id(pod)]} PodDisruptionBudgets cover its pods, and every eviction is refused"
