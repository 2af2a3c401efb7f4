"""A table of required field values, which includes the published Pod Security Standard `restricted`.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from tools.lint.inventory import Inventory, first, get_path
from tools.lint.limits import seconds
from tools.lint.manifests import Manifest
from tools.lint.rules import Things, containers, enter, of, pods


class Demand(NamedTuple):
    """A test of a value (None if it is not set), and its description."""

    is_met: Callable[[Any], bool]
    words: str


class Row(NamedTuple):
    """The objects, the path of a field, and the demand that all values at that path must meet."""

    rule: str
    things: Things[Manifest]
    path: str
    demand: Demand


def one_of(*values: str | int | None) -> Demand:
    return Demand(
        lambda value: value in values, " or ".join("unset" if one is None else json.dumps(one) for one in values)
    )


def having(value: str) -> Demand:
    return Demand(lambda values: value in (values or ()), f"a list with {json.dumps(value)}")


def at_most(most: float) -> Demand:
    """Demand an upper limit for a duration, which is in seconds or has a unit."""

    def is_met(value: object) -> bool:
        try:
            return seconds(value) <= most
        except ValueError:
            return False

    return Demand(is_met, f"at most {most:g} s")


OFF = Demand(lambda value: not value, "unset or false")
FALSE = Demand(lambda value: value is False, "false")
TRUE = Demand(lambda value: value is True, "true")
SET = Demand(lambda value: value is not None, "set")
MADE = Demand(lambda value: not value, "left for an operator to set")


def pod_specs(inventory: Inventory) -> Iterator[tuple[Manifest, str, Manifest]]:
    return ((one, where, pod.spec) for one, where, pod in pods(inventory))


def container_specs(inventory: Inventory) -> Iterator[tuple[Manifest, str, Manifest]]:
    """Yield containers; `effective` is the security context of the container merged over that of its pod."""
    for one, where, (pod, spec, _) in containers(inventory):
        effective = {**first(pod.spec, "securityContext", {}), **first(spec, "securityContext", {})}
        yield one, where, {**spec, "effective": effective}


CONSEQUENCES = {
    "pod-security": "The namespace rejects the pod, or an intruder in the pod can take over the node",
    "hardening": "An intruder can write programs to the container and use its token for the API server",
    "pull-policy": "Pods whose image is already on the node do not start while the registry is down",
    "resources": "A node is overcommitted until the kernel kills processes; the autoscaler has no baseline",
    "secret-in-git": "Anyone who can read the repository has the password, and each change must be made in two places",
    "database-quorum": "The loss of one node can lose an acknowledged commit, or the whole database",
    "database-failover": "A failover takes longer than writes wait, or a standby that serves reads falls behind",
    "database-plain": "A client can connect without TLS, and its password can be read in transit",
    "monitor-label": "Prometheus silently ignores the monitor or rule; its alerts never fire",
}

ISOLATED = ("RuntimeDefault", "Localhost")
SYSCTLS = """
    kernel.shm_rmid_forced net.ipv4.ip_local_port_range net.ipv4.ip_local_reserved_ports
    net.ipv4.ip_unprivileged_port_start net.ipv4.ping_group_range net.ipv4.tcp_fin_timeout net.ipv4.tcp_keepalive_intvl
    net.ipv4.tcp_keepalive_probes net.ipv4.tcp_keepalive_time net.ipv4.tcp_rmem net.ipv4.tcp_syncookies
    net.ipv4.tcp_wmem
""".split()  # noqa: SIM905  reads better
SELINUX = one_of(None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
VOLUMES = set("configMap csi downwardAPI emptyDir ephemeral image persistentVolumeClaim projected secret".split())  # noqa: SIM905  reads better
HANDLERS = "livenessProbe readinessProbe startupProbe lifecycle.postStart lifecycle.preStop".split()  # noqa: SIM905  reads better

RESTRICTED = [
    *((pod_specs, field, OFF) for field in ("hostNetwork", "hostPID", "hostIPC")),
    (pod_specs, "securityContext.sysctls[].name", one_of(None, *SYSCTLS)),
    (pod_specs, "volumes[]", Demand(lambda one: (one or {}).keys() - {"name"} <= VOLUMES, "of an allowed type")),
    *(
        (things, f"securityContext.{path}", demand)
        for things in (pod_specs, container_specs)
        for path, demand in (
            ("runAsUser", Demand(lambda user: user != 0, "a user other than root")),
            ("seccompProfile.type", one_of(None, *ISOLATED)),
            ("appArmorProfile.type", one_of(None, *ISOLATED)),
            ("seLinuxOptions.type", SELINUX),
            ("seLinuxOptions.user", one_of(None, "")),
            ("seLinuxOptions.role", one_of(None, "")),
            ("windowsOptions.hostProcess", OFF),
        )
    ),
    (container_specs, "effective.runAsNonRoot", TRUE),
    (container_specs, "effective.seccompProfile.type", one_of(*ISOLATED)),
    (container_specs, "securityContext.privileged", OFF),
    (container_specs, "securityContext.allowPrivilegeEscalation", FALSE),
    (container_specs, "securityContext.capabilities.drop", having("ALL")),
    (container_specs, "securityContext.capabilities.add[]", one_of(None, "NET_BIND_SERVICE")),
    (container_specs, "securityContext.procMount", one_of(None, "Default")),
    (container_specs, "ports[].hostPort", one_of(None, 0)),
    *(
        (container_specs, f"{handler}.{kind}.host", one_of(None, ""))
        for handler in HANDLERS
        for kind in ("httpGet", "tcpSocket")
    ),
]

FIELDS = [
    *(Row("pod-security", *row) for row in RESTRICTED),
    Row("hardening", pod_specs, "automountServiceAccountToken", FALSE),
    Row("hardening", container_specs, "securityContext.readOnlyRootFilesystem", TRUE),
    Row("pull-policy", container_specs, "imagePullPolicy", one_of(None, "IfNotPresent", "Never")),
    *(
        Row("resources", container_specs, f"resources.{path}", SET)
        for path in ("requests.cpu", "requests.memory", "limits.memory")
    ),
    Row("secret-in-git", of("Secret"), "data", MADE),
    Row("secret-in-git", of("Secret"), "stringData", MADE),
    Row("database-quorum", of("Cluster"), "spec.instances", Demand(lambda count: (count or 1) >= 3, "at least 3")),  # noqa: PLR2004  said in words
    Row("database-quorum", of("Cluster"), "spec.postgresql.synchronous.dataDurability", one_of("required")),
    Row("database-quorum", of("Cluster"), "spec.postgresql.synchronous.failoverQuorum", TRUE),
    Row("database-quorum", of("Cluster"), "spec.affinity.enablePodAntiAffinity", TRUE),
    Row(
        "database-quorum",
        of("Cluster"),
        "spec.resources",
        Demand(
            lambda one: first(one, "requests.memory", "") == first(one, "limits.memory"),
            "equal for the request and the limit of memory, or its pods are killed before others",
        ),
    ),
    *(
        Row("database-failover", of("Cluster"), f"spec.{path}", at_most(most))
        for path, most in (
            ("primaryLease.leaseDurationSeconds", 5),
            ("primaryLease.renewDeadlineSeconds", 4),
            ("primaryLease.retryPeriodSeconds", 1),
            ("smartShutdownTimeout", 1),
            ("postgresql.parameters.wal_retrieve_retry_interval", 0.5),
            ("postgresql.parameters.max_standby_streaming_delay", 0.3),
        )
    ),
    Row("database-plain", of("Cluster"), "spec.postgresql.pg_hba", having("host all all all reject")),
    Row("monitor-label", of("ServiceMonitor", "PodMonitor", "PrometheusRule"), "metadata.labels.release", SET),
]


def find_unmet(_: Inventory, asked: tuple[Row, Manifest]) -> Iterator[str]:
    row, thing = asked
    for value in list(get_path(thing, row.path)) or [None]:
        if not row.demand.is_met(value):
            # Print only the keys of a mapping: it may belong to a Secret.
            said = f"has {', '.join(value)}" if isinstance(value, dict) else f"is {json.dumps(value)}"
            yield f"{row.path} {'is not set' if value is None else said}; it must be {row.demand.words}"


def asked_by(rule: str, inventory: Inventory) -> Iterator[tuple[Manifest, str, tuple[Row, Manifest]]]:
    """Yield each row of a rule with each object that it applies to."""
    for row in FIELDS:
        if row.rule == rule:
            yield from ((one, where, (row, thing)) for one, where, thing in row.things(inventory))


for _rule, _consequence in CONSEQUENCES.items():
    enter(_rule, _consequence, partial(asked_by, _rule), find_unmet)
