"""Rules that restrict what may run in a namespace and which connections are allowed."""

from collections.abc import Iterator

from tools.lint.inventory import WORKLOADS, Inventory, first, namespace_of
from tools.lint.manifests import Manifest
from tools.lint.rules import Findings, every, of, rule
from tools.lint.schemas import KUBERNETES
from tools.lint.workloads import scaled

LESS_THAN_RESTRICTED = {
    "monitoring": "baseline",  # some of the chart's pods have no seccomp profile
    "node-exporter": "privileged",  # reads the node's files and network, which is its purpose
}
WANTED = {"pods", "services.loadbalancers", "services.nodeports"}


@every(of("Namespace"))
def namespace_level(_: Inventory, one: Manifest) -> Iterator[str]:
    """Any pod can be started there, even a privileged one."""
    wanted = LESS_THAN_RESTRICTED.get(one["metadata"]["name"], "restricted")
    for field, value in (("enforce", wanted), ("enforce-version", f"v{KUBERNETES}")):
        if first(one, f"metadata.labels[pod-security.kubernetes.io/{field}]") != value:
            yield f"pod-security.kubernetes.io/{field} is not {value}"


def spaces(inventory: Inventory) -> Iterator[tuple[Manifest, str, str]]:
    """Yield each namespace that these manifests create or put pods into, and an object for its findings."""
    found = {pod.namespace: pod.manifest for pod in inventory.workloads}
    found |= {one["metadata"]["name"]: one for one in inventory.of("Namespace")}
    return ((one, "", namespace) for namespace, one in found.items())


@every(spaces)
def default_deny(inventory: Inventory, namespace: str) -> Iterator[str]:
    """An intruder in one pod can reach every other, including the database."""
    policies = (each for each in inventory.of("NetworkPolicy") if namespace_of(each) == namespace)
    everyone = [each["spec"] for each in policies if not each["spec"].get("podSelector")]
    for direction in ("Ingress", "Egress"):
        denied = any(direction in spec.get("policyTypes", ["Ingress"]) for spec in everyone)
        # Pods of a privileged namespace use the node's network, to which policies do not apply.
        if not denied and LESS_THAN_RESTRICTED.get(namespace) != "privileged":
            yield f"no NetworkPolicy of {namespace} denies {direction} for all pods"


def pods_needed(inventory: Inventory, namespace: str) -> int:
    """Return the most pods at one time: each workload surges by one, PostgreSQL runs a Job while an instance joins."""
    most = {id(target): scaler["spec"]["maxReplicas"] for _, _, (scaler, target) in scaled(inventory)}
    counts: list[int] = [
        most.get(id(one), first(one, "spec.replicas", first(one, "spec.instances", 1)))
        for one in inventory.of("Cluster", *WORKLOADS)
        if namespace_of(one) == namespace
    ]
    return sum(counts) + len(counts)


@rule
def quota(inventory: Inventory) -> Findings:
    """A runaway controller can fill the cluster, or a Service can bypass the gateway."""
    limited = {namespace_of(one): first(one, "spec.hard", {}) for one in inventory.of("ResourceQuota")}
    for namespace, one in {pod.namespace: pod.manifest for pod in reversed(inventory.workloads)}.items():
        if missing := WANTED - limited.get(namespace, {}).keys():
            yield one, f"no ResourceQuota of {namespace} limits {', '.join(sorted(missing))}"
    for one in inventory.of("ResourceQuota"):
        needed = pods_needed(inventory, namespace_of(one))
        if int(first(one, "spec.hard.pods", needed)) < needed:
            yield one, f"allows fewer pods than the {needed} that its workloads may need"
