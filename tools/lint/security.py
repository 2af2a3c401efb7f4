"""What a namespace needs so that nothing else may run or talk in it."""

from collections.abc import Iterator

from tools.lint.inventory import WORKLOADS, Inventory, first, namespace_of
from tools.lint.manifests import Manifest
from tools.lint.rules import Findings, every, of, rule
from tools.lint.schemas import KUBERNETES
from tools.lint.workloads import scaled

LESS_THAN_RESTRICTED = {
    "monitoring": "baseline",  # the chart's pods lack a seccomp profile here and there
    "node-exporter": "privileged",  # reads the node's files and network, which is its purpose
}
WANTED = {"pods", "services.loadbalancers", "services.nodeports"}


@every(of("Namespace"))
def namespace_level(_: Inventory, one: Manifest) -> Iterator[str]:
    """Any pod may be started there, a privileged one too."""
    wanted = LESS_THAN_RESTRICTED.get(one["metadata"]["name"], "restricted")
    for field, value in (("enforce", wanted), ("enforce-version", f"v{KUBERNETES}")):
        if first(one, f"metadata.labels[pod-security.kubernetes.io/{field}]") != value:
            yield f"pod-security.kubernetes.io/{field} is not {value}"


def spaces(inventory: Inventory) -> Iterator[tuple[Manifest, str, str]]:
    """Each namespace that these manifests make or put pods into, and an object to speak of it by."""
    found = {pod.namespace: pod.manifest for pod in inventory.workloads}
    found |= {one["metadata"]["name"]: one for one in inventory.of("Namespace")}
    return ((one, "", namespace) for namespace, one in found.items())


@every(spaces)
def default_deny(inventory: Inventory, namespace: str) -> Iterator[str]:
    """An intruder in one pod reaches every other, the database first."""
    policies = (each for each in inventory.of("NetworkPolicy") if namespace_of(each) == namespace)
    everyone = [each["spec"] for each in policies if not each["spec"].get("podSelector")]
    for direction in ("Ingress", "Egress"):
        denied = any(direction in spec.get("policyTypes", ["Ingress"]) for spec in everyone)
        # A privileged one is in the network of its node, where no policy reaches.
        if not denied and LESS_THAN_RESTRICTED.get(namespace) != "privileged":
            yield f"no NetworkPolicy of {namespace} denies {direction} for all pods"


def pods_needed(inventory: Inventory, namespace: str) -> int:
    """How many there may be: a workload surges by one in a rollout, PostgreSQL has a Job while an instance joins."""
    most = {id(target): scaler["spec"]["maxReplicas"] for _, _, (scaler, target) in scaled(inventory)}
    counts: list[int] = [
        most.get(id(one), first(one, "spec.replicas", first(one, "spec.instances", 1)))
        for one in inventory.of("Cluster", *WORKLOADS)
        if namespace_of(one) == namespace
    ]
    return sum(counts) + len(counts)


@rule
def quota(inventory: Inventory) -> Findings:
    """A controller that runs away fills the cluster, or somebody opens a door beside the gateway."""
    limited = {namespace_of(one): first(one, "spec.hard", {}) for one in inventory.of("ResourceQuota")}
    for namespace, one in {pod.namespace: pod.manifest for pod in reversed(inventory.workloads)}.items():
        if missing := WANTED - limited.get(namespace, {}).keys():
            yield one, f"no ResourceQuota of {namespace} limits {', '.join(sorted(missing))}"
    for one in inventory.of("ResourceQuota"):
        needed = pods_needed(inventory, namespace_of(one))
        if int(first(one, "spec.hard.pods", needed)) < needed:
            yield one, f"allows fewer pods than the {needed} that its workloads may have"
