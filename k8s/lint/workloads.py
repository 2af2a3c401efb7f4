"""Pods as they start and are reached: Services, selectors, images, resources, probes."""

import re

from lint.inventory import Inventory, Pod, containers, dig, first, matches, space, template
from lint.rules import Wrong, rule
from lint.service import is_service, service


@rule
def service_port(inventory: Inventory) -> Wrong:
    """Connections to the Service are refused."""
    for one in inventory.of("Service"):
        selector = first(one, "spec.selector")
        if selector and not inventory.select({"matchLabels": selector}, space(one)):
            yield one, "selects no pod"
            continue
        for port in dig(one, "spec.ports[]") if selector else ():
            if not inventory.targets(one, port):
                yield one, f"port {port['port']}: no selected pod listens on {port.get('targetPort', port['port'])}"


@rule
def selector(inventory: Inventory) -> Wrong:
    """The API server refuses the workload, or its pods are spread and kept apart from nothing."""
    for pod in inventory.workloads:
        chosen = first(pod.manifest, "spec.selector") or {}
        if pod.manifest["kind"] != "Job" and not matches(chosen, pod.labels):
            yield pod.manifest, "spec.selector does not match the labels of its own template"
        for one in dig(pod.spec, "topologySpreadConstraints[].labelSelector"):
            if not matches(one, pod.labels):
                yield pod.manifest, "topologySpreadConstraints counts other pods than its own"
        preferred = (
            "affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[].podAffinityTerm.labelSelector"
        )
        required = "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[].labelSelector"
        for one in [*dig(pod.spec, preferred), *dig(pod.spec, required)]:
            if not inventory.select(one, pod.namespace):
                yield pod.manifest, "podAntiAffinity keeps it apart from pods that do not exist"
    for cluster in inventory.of("Cluster"):
        for one in dig(cluster, "spec.topologySpreadConstraints[].labelSelector"):
            if cluster["metadata"]["name"] not in [pod.name for pod in inventory.select(one, space(cluster))]:
                yield cluster, "topologySpreadConstraints counts other pods than its own"


@rule
def image(inventory: Inventory) -> Wrong:
    """Another program runs after a restart than the one that was tried."""
    for one in inventory.objects:
        own = [*dig(one, "spec.images[].image"), *dig(one, "spec.imageName")]
        for value in [*own, *(each.get("image", "") for each in containers(first(template(one), "spec", {})))]:
            registry, _, last = value.rpartition("/")
            tag = last.partition("@")[0].partition(":")[2]
            if not tag or tag == "latest":
                yield one, f"{value}: no version"
            elif registry and not re.search(r"@sha256:[0-9a-f]{64}$", value):
                yield one, f"{value}: the registry may hand out another image by this tag; add its digest"


@rule
def pull_policy(inventory: Inventory) -> Wrong:
    """A registry that is down stops pods from starting whose image is already there."""
    for pod in inventory.workloads:
        for container in containers(pod.spec):
            if container.get("imagePullPolicy") == "Always":
                yield pod.manifest, f"{container['name']}: imagePullPolicy is Always"


@rule
def resources(inventory: Inventory) -> Wrong:
    """The scheduler packs a node until the kernel kills what it likes; the autoscaler has no number to start from."""
    for pod in inventory.workloads:
        for container in containers(pod.spec):
            for path in ("requests.cpu", "requests.memory", "limits.memory"):
                if first(container, f"resources.{path}") is None:
                    yield pod.manifest, f"{container['name']}: resources.{path} is missing"


@rule
def probe(inventory: Inventory) -> Wrong:
    """Pods are killed, or kept out, for the wrong reason; or sent requests they cannot serve."""
    for pod in inventory.workloads:
        for container in first(pod.spec, "containers", ()):
            found = {
                kind: container[f"{kind}Probe"]
                for kind in ("startup", "liveness", "readiness")
                if f"{kind}Probe" in container
            }
            targets = {kind: one["httpGet"] for kind, one in found.items() if "httpGet" in one}
            ports = {key: pod.ports.get(str(one["port"]), one["port"]) for key, one in targets.items()}
            for kind, port in ports.items():
                path = targets[kind].get("path", "/")
                if port not in pod.ports.values():
                    yield pod.manifest, f"{container['name']}: {kind}Probe asks port {port}, which it does not have"
                elif is_service(container.get("image", "")) and path not in service().routes.get(port, ()):
                    yield (
                        pod.manifest,
                        f"{container['name']}: {kind}Probe asks {path} on {port}, where the service has no such route",
                    )
            if "liveness" in targets and targets.get("readiness", {}).get("path") == targets["liveness"].get("path"):
                yield (
                    pod.manifest,
                    f"{container['name']}: one address for both probes: a lost database restarts every pod",
                )
            if container.get("ports") and is_served(inventory, pod) and "readiness" not in found:
                yield pod.manifest, f"{container['name']}: a Service sends it requests, and no readinessProbe says when"


def is_served(inventory: Inventory, pod: Pod) -> bool:
    """Tell whether a Service balances requests to it: a headless one only gives names."""
    found = (one for one in inventory.of("Service") if space(one) == pod.namespace and first(one, "spec.selector"))
    return any(
        matches({"matchLabels": one["spec"]["selector"]}, pod.labels) and first(one, "spec.clusterIP") != "None"
        for one in found
    )
