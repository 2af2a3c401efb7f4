"""Find what the API server rejects although a kind's schema allows it: names, labels, quantities, clashing fields.

Kubernetes has these checks in code (pkg/apis/*/validation), not in its OpenAPI document. CRDs contain the checks of
custom resources, except CEL rules and webhooks, which only a cluster runs.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tools.lint.inventory import containers, first, get_path, template
from tools.lint.manifests import Manifest
from tools.lint.workloads import quantity

LABEL = r"(?=.{1,63}$)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = r"(?=.{1,253}$)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*"
SERVICE = r"(?=.{1,63}$)[a-z](?:[-a-z0-9]*[a-z0-9])?"
PORT = r"(?=.{1,15}$)(?=.*[a-z])(?!.*--)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
RBAC = r"(?!\.\.?$)[^/%]+"
VALUE = r"(?:(?=.{1,63}$)[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
KEY = r"(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?(?=[^/]{1,63}$)[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
FILE = r"(?!\.\.?$)[-._a-zA-Z0-9]{1,253}"

NAMES = {"Service": SERVICE, "Namespace": LABEL, "Role": RBAC, "RoleBinding": RBAC}
"""Patterns for the names of the kinds whose names are not DNS subdomains."""

PATTERNS: list[tuple[Any, ...]] = [
    ("", "metadata.namespace", LABEL),
    ("pod", "containers[].name", LABEL),
    ("pod", "containers[].image", r"\S+"),
    ("pod", "containers[].env[].name", r"[ -<>-~]+"),
    ("pod", "containers[].ports[].name", PORT),
    ("pod", "containers[].volumeMounts[].mountPath", r"[^:]+"),
    ("pod", "volumes[].name", LABEL),
    ("Service", "spec.ports[].name", LABEL),
    ("HorizontalPodAutoscaler", "spec.scaleTargetRef.name", r"[^/%]+"),
]
"""The kind, or `pod` for a workload's pod, a path in it, and the pattern that each text there must match."""

ENUMS: list[tuple[Any, ...]] = [
    ("pod", "containers[].imagePullPolicy", "Always IfNotPresent Never"),
    ("pod", "containers[].terminationMessagePolicy", "File FallbackToLogsOnError"),
    ("pod", "containers[].ports[].protocol", "TCP UDP SCTP"),
    ("pod", "containers[].securityContext.seccompProfile.type", "Localhost RuntimeDefault Unconfined"),
    ("pod", "securityContext.seccompProfile.type", "Localhost RuntimeDefault Unconfined"),
    ("pod", "dnsPolicy", "ClusterFirst ClusterFirstWithHostNet Default None"),
    ("pod", "topologySpreadConstraints[].whenUnsatisfiable", "DoNotSchedule ScheduleAnyway"),
    ("pod", "tolerations[].effect", "NoSchedule PreferNoSchedule NoExecute"),
    ("Deployment", "spec.template.spec.restartPolicy", "Always"),
    ("Deployment", "spec.strategy.type", "Recreate RollingUpdate"),
    ("Job", "spec.template.spec.restartPolicy", "Never OnFailure"),
    ("Service", "spec.type", "ClusterIP ExternalName LoadBalancer NodePort"),
    ("Service", "spec.ports[].protocol", "TCP UDP SCTP"),
    ("Service", "spec.sessionAffinity", "ClientIP None"),
    ("NetworkPolicy", "spec.policyTypes[]", "Ingress Egress"),
    ("NetworkPolicy", "spec.ingress[].ports[].protocol", "TCP UDP SCTP"),
    ("NetworkPolicy", "spec.egress[].ports[].protocol", "TCP UDP SCTP"),
    ("StorageClass", "reclaimPolicy", "Delete Retain"),
    ("StorageClass", "volumeBindingMode", "Immediate WaitForFirstConsumer"),
    ("RoleBinding", "subjects[].kind", "Group ServiceAccount User"),
    ("RoleBinding", "roleRef.kind", "ClusterRole Role"),
]
"""The kind, the path, and the values that are allowed."""

LARGEST, MOST = 2**31 - 1, 65_535
RANGES: list[tuple[Any, ...]] = [
    ("pod", "containers[].ports[].containerPort", 1, MOST),
    *(
        ("pod", f"containers[].{probe}Probe.{field}", least, LARGEST)
        for probe in ("liveness", "readiness", "startup")
        for field, least in (
            ("periodSeconds", 1),
            ("timeoutSeconds", 1),
            ("successThreshold", 1),
            ("failureThreshold", 1),
            ("initialDelaySeconds", 0),
            ("httpGet.port", 1),
            ("tcpSocket.port", 1),
        )
    ),
    ("pod", "containers[].livenessProbe.successThreshold", 1, 1),
    ("pod", "containers[].startupProbe.successThreshold", 1, 1),
    ("pod", "containers[].securityContext.runAsUser", 0, LARGEST),
    ("pod", "securityContext.runAsUser", 0, LARGEST),
    ("pod", "terminationGracePeriodSeconds", 0, LARGEST),
    ("pod", "topologySpreadConstraints[].maxSkew", 1, LARGEST),
    ("Deployment", "spec.replicas", 0, LARGEST),
    ("Deployment", "spec.revisionHistoryLimit", 0, LARGEST),
    ("Job", "spec.backoffLimit", 0, LARGEST),
    ("Job", "spec.completions", 0, LARGEST),
    ("Job", "spec.parallelism", 0, LARGEST),
    ("Job", "spec.ttlSecondsAfterFinished", 0, LARGEST),
    ("Service", "spec.ports[].port", 1, MOST),
    ("Service", "spec.ports[].targetPort", 1, MOST),
    ("Service", "spec.ports[].nodePort", 0, MOST),
    ("HorizontalPodAutoscaler", "spec.minReplicas", 1, LARGEST),
    ("HorizontalPodAutoscaler", "spec.maxReplicas", 1, LARGEST),
    ("NetworkPolicy", "spec.ingress[].ports[].port", 1, MOST),
    ("NetworkPolicy", "spec.egress[].ports[].port", 1, MOST),
]
"""The kind, the path, and the minimum and maximum of a number; a port may be a name instead."""

UNIQUE = [
    ("pod", "containers[].name"),
    ("pod", "volumes[].name"),
    ("Service", "spec.ports[].name"),
]
MAPS = [
    ("", "metadata.labels", KEY, VALUE),
    ("", "metadata.annotations", KEY, r"(?s).*"),
    ("", "spec.template.metadata.labels", KEY, VALUE),
    ("", "spec.template.metadata.annotations", KEY, r"(?s).*"),
    ("Deployment", "spec.selector.matchLabels", KEY, VALUE),
    ("Service", "spec.selector", KEY, VALUE),
    ("pod", "nodeSelector", KEY, VALUE),
    ("ConfigMap", "data", FILE, r"(?s).*"),
    ("Secret", "data", FILE, r"(?s).*"),
    ("Secret", "stringData", FILE, r"(?s).*"),
]
"""The kind, the path, and the patterns that the keys and values of a mapping must match."""

HANDLERS = ("exec", "grpc", "httpGet", "tcpSocket")
EXCLUSIVE = [
    ("PodDisruptionBudget", "spec", ("minAvailable", "maxUnavailable")),
    ("pod", "containers[].env[]", ("value", "valueFrom")),
    *(("pod", f"containers[].{one}Probe", HANDLERS) for one in ("liveness", "readiness", "startup")),
]
"""The kind, the path, and the fields that exclude each other."""

TABLES: list[tuple[list[tuple[Any, ...]], Callable[..., bool], str]] = [
    (PATTERNS, lambda text, pattern: bool(re.fullmatch(pattern, str(text))), "does not have the required format"),
    (ENUMS, lambda word, words: word in words.split(), "must be one of {}"),
    (RANGES, lambda number, least, most: not isinstance(number, int) or least <= number <= most, "must be {} to {}"),
]
WITH_VALUES = {"In": True, "NotIn": True, "Exists": False, "DoesNotExist": False}


def problems(manifest: Manifest) -> Iterator[str]:
    """Yield one line for each such problem of an object that its schema allows."""
    spec = first(template(manifest), "spec", {})
    pod = {**spec, "containers": containers(spec)} if isinstance(spec, dict) else {}
    kind, name = manifest["kind"], str(first(manifest, "metadata.name", ""))
    if not re.fullmatch(NAMES.get(kind, SUBDOMAIN), name):
        yield f"metadata.name: {name!r} is not a valid name for a {kind}"
    yield from _check_tables(manifest, pod)
    yield from _check_selectors(manifest)
    yield from _check_containers(pod)
    if kind in CHECKS:
        yield from CHECKS[kind](manifest.get("spec", manifest))


def _check_tables(manifest: Manifest, pod: Manifest) -> Iterator[str]:
    for table, is_right, words in TABLES:
        for where, path, *demand in table:
            for value in _values(manifest, pod, where, path):
                if not is_right(value, *demand):
                    yield f"{path}: {value!r} {words.format(*demand)}"
    for where, path in UNIQUE:
        counts = Counter(_values(manifest, pod, where, path))
        yield from (f"{path}: {value!r} occurs {count} times" for value, count in counts.items() if count > 1)
    for where, path, keys, values in MAPS:
        for each in _values(manifest, pod, where, path):
            yield from _check_map(path, each, keys, values)
    for where, path, fields in EXCLUSIVE:
        for each in _values(manifest, pod, where, path):
            given = [field for field in fields if field in each]
            yield from (f"{path}: {given[0]} and {other} cannot both be set" for other in given[1:])


def _values(manifest: Manifest, pod: Manifest, where: str, path: str) -> Iterator[Any]:
    if where in {"", "pod", manifest["kind"]}:
        yield from get_path(pod if where == "pod" else manifest, path)


def _check_map(path: str, given: dict[str, Any], keys: str, values: str) -> Iterator[str]:
    for key, value in given.items():
        if not re.fullmatch(keys, key):
            yield f"{path}: the key {key!r} has invalid characters or an invalid length"
        if not re.fullmatch(values, str(value)):
            yield f"{path}: {key}: {value!r} has invalid characters or an invalid length"


def _check_selectors(value: Any) -> Iterator[str]:
    """Check all selectors; they occur in too many places to list their paths."""
    if isinstance(value, dict):
        for one in value.get("matchExpressions") or ():
            wanted = WITH_VALUES.get(one.get("operator"))
            if wanted is None or wanted != bool(one.get("values")):
                words = ", ".join(WITH_VALUES)
                yield f"matchExpressions: {one.get('key')}: the operator must be {words}; the first two need values"
        yield from (problem for one in value.values() for problem in _check_selectors(one))
    elif isinstance(value, list):
        yield from (problem for one in value for problem in _check_selectors(one))


def _check_containers(pod: Manifest) -> Iterator[str]:
    volumes = set(get_path(pod, "volumes[].name"))
    for one in pod.get("containers", ()):
        for mount in get_path(one, "volumeMounts[].name"):
            if mount not in volumes:
                yield f"{one['name']}: volumeMounts: the pod has no volume {mount}"
        for path in ("volumeMounts[].mountPath", "ports[].name"):
            twice = [value for value, count in Counter(get_path(one, path)).items() if count > 1]
            yield from (f"{one['name']}: {path}: {value} occurs twice" for value in twice)
        requests, limits = (first(one, f"resources.{kind}", {}) for kind in ("requests", "limits"))
        yield from _check_quantities(f"{one['name']}: resources.requests", requests)
        yield from _check_quantities(f"{one['name']}: resources.limits", limits)
        for key in requests.keys() & limits.keys():
            if quantity(requests[key]) > quantity(limits[key]):
                yield f"{one['name']}: resources: the request for {key} exceeds its limit"
    for size in get_path(pod, "volumes[].emptyDir.sizeLimit"):
        yield from _check_quantities("volumes[].emptyDir", {"sizeLimit": size})


def _check_quantities(path: str, given: dict[str, Any]) -> Iterator[str]:
    for key, value in given.items():
        if not quantity(value) >= 0:  # every comparison with NaN is false
            yield f"{path}.{key}: {value!r} is not a quantity such as 100m, 64Mi or 1Gi"


def _check_deployment(spec: Manifest) -> Iterator[str]:
    strategy = spec.get("strategy") or {}
    if strategy.get("type") == "Recreate" and strategy.get("rollingUpdate") is not None:
        yield "spec.strategy: Recreate does not allow rollingUpdate"
    rolling = strategy.get("rollingUpdate") or {}
    if all(str(rolling.get(field)) in {"0", "0%"} for field in ("maxSurge", "maxUnavailable")):
        yield "spec.strategy.rollingUpdate: maxSurge and maxUnavailable are both 0, so no rollout could proceed"
    if not spec["selector"]:
        yield "spec.selector is empty"


def _check_service(spec: Manifest) -> Iterator[str]:
    ports = spec.get("ports") or []
    if not ports and spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None":
        yield "spec.ports is empty"
    if len(ports) > 1 and not all(port.get("name") for port in ports):
        yield "spec.ports: if there are several ports, each needs a name"
    counts = Counter(f"{port['port']}/{port.get('protocol', 'TCP')}" for port in ports)
    yield from (f"spec.ports: {port} is defined twice" for port, count in counts.items() if count > 1)
    for target in get_path(spec, "ports[].targetPort"):
        if isinstance(target, str) and not re.fullmatch(PORT, target):
            yield f"spec.ports[].targetPort: {target!r} is not a valid name for a port"


def _check_autoscaler(spec: Manifest) -> Iterator[str]:
    if spec.get("minReplicas", 1) > spec["maxReplicas"]:
        yield "spec: minReplicas exceeds maxReplicas"


def _check_policy(spec: Manifest) -> Iterator[str]:
    for block in get_path(spec, "ingress[].from[].ipBlock", "egress[].to[].ipBlock"):
        try:
            whole = ipaddress.ip_network(block["cidr"])
            outside = [one for one in block.get("except", ()) if not _is_inside(ipaddress.ip_network(one), whole)]
        except ValueError as error:
            yield f"ipBlock: {error}"
        else:
            yield from (f"ipBlock: {one} is not within {whole}" for one in outside)
    for port in get_path(spec, "ingress[].ports[]", "egress[].ports[]"):
        if "endPort" in port and not (isinstance(port.get("port"), int) and port["port"] <= port["endPort"] <= MOST):
            yield "ports: endPort needs a numeric port that does not exceed it"


def _is_inside(one: Any, whole: Any) -> bool:
    return bool(one.version == whole.version and one.subnet_of(whole))


def _check_quota(spec: Manifest) -> Iterator[str]:
    yield from _check_quantities("spec.hard", spec.get("hard", {}))


def _check_role(role: Manifest) -> Iterator[str]:
    for one in role.get("rules") or ():
        if not one.get("verbs") or not (one.get("resources") and one.get("apiGroups")):
            yield "rules: each rule needs verbs, apiGroups and resources"


def _check_binding(binding: Manifest) -> Iterator[str]:
    for one in binding.get("subjects") or ():
        if one["kind"] == "ServiceAccount" and not one.get("namespace"):
            yield f"subjects: the ServiceAccount {one['name']} needs a namespace"


CHECKS = {
    "Deployment": _check_deployment,
    "Service": _check_service,
    "HorizontalPodAutoscaler": _check_autoscaler,
    "NetworkPolicy": _check_policy,
    "ResourceQuota": _check_quota,
    "Role": _check_role,
    "RoleBinding": _check_binding,
}
