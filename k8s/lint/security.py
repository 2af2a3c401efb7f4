"""Pod Security `restricted` by its published rules, and what a namespace needs so that nothing else may run in it.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from collections.abc import Callable, Iterator

from lint.inventory import Inventory, containers, dig, first, space
from lint.manifests import Manifest
from lint.rules import Wrong, rule
from lint.schemas import KUBERNETES

SYSCTLS = frozenset(
    [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    ]
)
VOLUMES = frozenset(
    """configMap csi downwardAPI emptyDir ephemeral persistentVolumeClaim projected secret image""".split()  # noqa: SIM905  reads better
)
HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop")
SELINUX = frozenset({"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})
LESS_THAN_RESTRICTED = {
    "monitoring": "baseline",  # the chart's pods lack a seccomp profile here and there
    "node-exporter": "privileged",  # reads the node's files and network, which is its purpose
}


def of_pod(spec: Manifest) -> Iterator[str]:
    """Controls of the pod as a whole."""
    context = spec.get("securityContext") or {}
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is on"
    for volume in dig(spec, "volumes[]"):
        for kind in volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is a {kind}"
    for sysctl in dig(context, "sysctls[].name"):
        if sysctl not in SYSCTLS:
            yield f"sysctl {sysctl} is not a safe one"
    for container in containers(spec):
        for problem in of_container(container, context):
            yield f"{container['name']}: {problem}"


def of_container(container: Manifest, pod: Manifest) -> Iterator[str]:
    """Controls of a container; what it does not say the pod says for it."""
    own = container.get("securityContext") or {}
    both = {**pod, **own}
    added = set(dig(own, "capabilities.add[]"))
    checks: dict[str, Callable[[], object]] = {
        "privileged": lambda: own.get("privileged"),
        "allowPrivilegeEscalation is not false": lambda: own.get("allowPrivilegeEscalation") is not False,
        "capabilities: ALL is not dropped": lambda: "ALL" not in dig(own, "capabilities.drop[]"),
        f"capabilities: adds {', '.join(sorted(added))}": lambda: added - {"NET_BIND_SERVICE"},
        "runAsNonRoot is not true": lambda: both.get("runAsNonRoot") is not True,
        "runAsUser is 0": lambda: 0 in (both.get("runAsUser"), pod.get("runAsUser")),
        "seccompProfile is neither RuntimeDefault nor Localhost": lambda: (
            first(both, "seccompProfile.type") not in {"RuntimeDefault", "Localhost"}
        ),
        "appArmorProfile is Unconfined": lambda: "Unconfined" in dig(both, "appArmorProfile.type"),
        "seLinuxOptions": lambda: any(
            one.get("type", "") not in SELINUX or one.get("user") or one.get("role")
            for each in (pod, own)
            for one in dig(each, "seLinuxOptions")
        ),
        "procMount is not Default": lambda: own.get("procMount", "Default") != "Default",
        "windowsOptions.hostProcess": lambda: first(both, "windowsOptions.hostProcess"),
        "has a hostPort": lambda: any(dig(container, "ports[].hostPort")),
        "a probe or hook names a host": lambda: any(
            host
            for handler in HANDLERS
            for kind in ("httpGet", "tcpSocket")
            for host in dig(container, f"{handler}.{kind}.host")
        ),
    }
    return (problem for problem, broken in checks.items() if broken())


@rule
def pod_security(inventory: Inventory) -> Wrong:
    """The namespace refuses the pod; where it does not, whoever breaks into it holds the node."""
    for pod in inventory.workloads:
        for problem in of_pod(pod.spec):
            yield pod.manifest, problem


@rule
def hardening(inventory: Inventory) -> Wrong:
    """Whoever breaks in writes programs into the container and asks the API server with its token."""
    for pod in inventory.workloads:
        if pod.spec.get("automountServiceAccountToken", True):
            yield pod.manifest, "automountServiceAccountToken is not false"
        for container in containers(pod.spec):
            if first(container, "securityContext.readOnlyRootFilesystem") is not True:
                yield pod.manifest, f"{container['name']}: readOnlyRootFilesystem is not true"


@rule
def namespace_level(inventory: Inventory) -> Wrong:
    """Any pod may be started there, a privileged one too."""
    for one in inventory.of("Namespace"):
        labels, wanted = (
            first(one, "metadata.labels", {}),
            LESS_THAN_RESTRICTED.get(one["metadata"]["name"], "restricted"),
        )
        if labels.get("pod-security.kubernetes.io/enforce") != wanted:
            yield one, f"pod-security.kubernetes.io/enforce is not {wanted}"
        elif labels.get("pod-security.kubernetes.io/enforce-version") != f"v{KUBERNETES}":
            yield (
                one,
                f"pod-security.kubernetes.io/enforce-version is not v{KUBERNETES}: an upgrade changes the rules",
            )


def _spaces(inventory: Inventory) -> Iterator[tuple[str, Manifest]]:
    """Each namespace with pods of these manifests, or that they make, and an object to speak of it by."""
    found = {space(one): one for one in inventory.objects if space(one)}
    found |= {pod.namespace: pod.manifest for pod in inventory.pods if pod.manifest}
    found |= {one["metadata"]["name"]: one for one in inventory.of("Namespace")}
    made = {one["metadata"]["name"] for one in inventory.of("Namespace")}
    yield from (
        (key, one) for key, one in found.items() if key in made | {pod.namespace for pod in inventory.workloads}
    )


@rule
def default_deny(inventory: Inventory) -> Wrong:
    """Whoever breaks into one pod reaches every other, the database first."""
    denied = {
        (space(one), direction)
        for one in inventory.of("NetworkPolicy")
        if not one["spec"].get("podSelector")
        for direction in one["spec"].get("policyTypes", ["Ingress"])
    }
    for namespace, one in _spaces(inventory):
        # In the network of its node, where no policy reaches.
        if LESS_THAN_RESTRICTED.get(namespace) != "privileged":
            for direction in ("Ingress", "Egress"):
                if (namespace, direction) not in denied:
                    yield one, f"no NetworkPolicy of {namespace} denies {direction} for all pods"


@rule
def quota(inventory: Inventory) -> Wrong:
    """A controller that runs away fills the cluster, or somebody opens a door beside the gateway."""
    limited = {space(one): first(one, "spec.hard", {}) for one in inventory.of("ResourceQuota")}
    for namespace in sorted({pod.namespace for pod in inventory.workloads}):
        wanted = {"pods", "services.loadbalancers", "services.nodeports"}
        if missing := wanted - limited.get(namespace, {}).keys():
            one = next(pod.manifest for pod in inventory.workloads if pod.namespace == namespace)
            yield one, f"no ResourceQuota of {namespace} limits {', '.join(sorted(missing))}"
    for one in inventory.of("ResourceQuota"):
        scaled = {
            each["spec"]["scaleTargetRef"]["name"]: each["spec"]["maxReplicas"]
            for each in inventory.of("HorizontalPodAutoscaler")
        }
        # Each workload surges by one in a rollout, each PostgreSQL cluster has a Job while an instance joins.
        needed = sum(
            1 + scaled.get(pod.name, first(pod.manifest, "spec.replicas", 1))
            for pod in inventory.workloads
            if pod.namespace == space(one)
        )
        needed += sum(
            1 + each["spec"].get("instances", 1) for each in inventory.of("Cluster") if space(each) == space(one)
        )
        if int(first(one, "spec.hard", {}).get("pods", needed)) < needed:
            yield one, f"allows fewer pods than the {needed} that its workloads may have"
