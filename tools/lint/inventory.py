"""The objects that manifests create in a cluster, directly or through operators, and how to look them up."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tools.lint.manifests import Manifest, read
from tools.lint.schemas import CLUSTER_WIDE
from tools.lint.service import LIMITS, is_service

OPERATORS: Manifest = read(Path(__file__).with_name("operators.yaml").read_text(encoding="utf-8"))[0]
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod")
SPACELESS = CLUSTER_WIDE | {"ClusterIssuer", "ClusterSecretStore", "ClusterImageCatalog"}
CNPG_APP = frozenset(
    "username user password dbname host port pgpass uri jdbc-uri fqdn-uri fqdn-jdbc-uri".split()  # noqa: SIM905  reads better
)
CERTIFICATE = frozenset({"tls.crt", "tls.key", "ca.crt"})
PARTS = ("spec.listeners[].name", "spec.listeners[].port", "spec.ports[].name", "spec.ports[].port")
ANY = None
"""Stands for keys that only the cluster can determine."""


class Pod(NamedTuple):
    """The pods of a workload or an operator: `manifest` requests them, `spec` is empty if an operator creates them."""

    name: str
    namespace: str
    labels: dict[str, str]
    ports: dict[str, int]
    manifest: Manifest
    spec: Manifest


class Container(NamedTuple):
    """A container of a workload's pod with its environment; a value is None if only the cluster can determine it."""

    pod: Pod
    spec: Manifest
    variables: dict[str, str | None]

    @property
    def is_ours(self) -> bool:
        """Return whether it runs the service."""
        return is_service(self.spec.get("image", ""))

    @property
    def serves(self) -> bool:
        """Return whether it runs as long as its pod, unlike an init container."""
        return self.spec in self.pod.spec["containers"]

    @property
    def command(self) -> str:
        """The command for our image."""
        return str(next(iter(self.spec.get("args", ())), "serve"))


@functools.cache
def _steps(path: str) -> list[str]:
    return re.findall(r"[^.\[\]]+|\[[^\]]*\]", path)


def get_path(value: Any, *paths: str) -> Iterator[Any]:
    """Yield each value at paths such as `spec.rules[].backendRefs[]` or `data[a.key]`; missing parts yield nothing."""
    for path in paths:
        found = [value]
        for step in _steps(path):
            if step == "[]":
                found = [each for one in found for each in one]
            else:
                values = (one.get(step.strip("[]")) for one in found if isinstance(one, dict))
                found = [one for one in values if one is not None]
        yield from found


def first(value: Any, path: str, default: Any = None) -> Any:
    """Return the first value at a path."""
    return next(get_path(value, path), default)


def namespace_of(manifest: Manifest) -> str:
    """Return the namespace of an object; empty if its kind is cluster-scoped."""
    return "" if manifest["kind"] in SPACELESS else str(first(manifest, "metadata.namespace", "default"))


def annotation(manifest: Manifest, key: str) -> str:
    return str(first(manifest, f"metadata.annotations[{key}]", ""))


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Return whether a label selector matches, as in Kubernetes: an empty one matches everything."""
    operators: dict[str, Callable[[str, Any], bool]] = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
        "Exists": lambda key, _: key in labels,
        "DoesNotExist": lambda key, _: key not in labels,
    }
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        operators[one["operator"]](one["key"], one.get("values", ())) for one in selector.get("matchExpressions", ())
    )


def template(manifest: Manifest) -> Manifest:
    """Return the pod template of a workload."""
    if manifest["kind"] == "Pod":
        return manifest
    path = "spec.jobTemplate.spec.template" if manifest["kind"] == "CronJob" else "spec.template"
    return dict(first(manifest, path, {}))


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", ()), *spec.get("containers", ()), *spec.get("ephemeralContainers", ())]


def _secrets(one: Manifest, name: str, spec: Manifest) -> Iterator[tuple[str, frozenset[str] | None]]:
    """Yield the Secrets that an object is, or that an operator creates for it, with their keys."""
    match one["kind"]:
        case "Secret":
            yield name, frozenset({*one.get("data", {}), *one.get("stringData", {})}) or ANY
        case "Cluster":
            yield f"{name}-ca", frozenset({"ca.crt", "ca.key"})
            yield from ((f"{name}-{suffix}", CERTIFICATE) for suffix in ("server", "replication"))
            if not any(get_path(spec, "bootstrap.initdb.secret")):
                yield f"{name}-app", CNPG_APP
        case "Certificate":
            yield spec["secretName"], CERTIFICATE
        case "Gateway" if any(annotation(one, f"cert-manager.io/{key}") for key in ("cluster-issuer", "issuer")):
            named = [listener for listener in spec["listeners"] if listener.get("hostname")]
            references = [each for listener in named for each in get_path(listener, "tls.certificateRefs[]")]
            yield from (
                (each["name"], CERTIFICATE)
                for each in references
                if each.get("namespace", namespace_of(one)) == namespace_of(one)
            )
        case "ExternalSecret" if first(spec, "target.creationPolicy", "Owner") == "Owner":
            template = first(spec, "target.template.data")
            keys = frozenset(template or get_path(spec, "data[].secretKey"))
            yield first(spec, "target.name", name), ANY if spec.get("dataFrom") and not template else keys


class Inventory:
    """The objects of some renders, and those that exist because of them."""

    def __init__(
        self,
        renders: dict[str, list[Manifest]],
        operators: frozenset[str] | None = None,
        limits: Mapping[str, float] = LIMITS,
        refused: frozenset[tuple[str, str, str]] = frozenset(),
    ) -> None:
        """Take the objects by the name of their source; `operators` limits which operators are installed.

        `limits` are those of the service. `refused` are kind, namespace and name of objects that exist but are
        invalid, so their fields are not used.
        """
        self.limits = limits
        self.refused = refused
        # Some kinds may omit their spec.
        given: list[tuple[str, Manifest]] = [
            (where, {"spec": {}, **one}) for where, manifests in renders.items() for one in manifests
        ]
        self.objects = [one for _, one in given]
        self._origins = {id(one): where for where, one in given}
        self.known = {
            (one["kind"], namespace_of(one), one["metadata"]["name"]): one
            for one in [*OPERATORS["objects"], *self.objects]
        }
        self._policies: dict[tuple[str, str, str], list[Manifest]] = {}
        self.operators = [one for one in OPERATORS["pods"] if operators is None or one["from"] in operators]

    def origin(self, manifest: Manifest) -> str:
        """Return the source that an object was rendered from; empty if an operator creates it."""
        return self._origins.get(id(manifest), "")

    def may_run_more(self, namespace: str) -> bool:
        """Return whether the namespace may have unknown pods, because a workload is invalid."""
        return any(kind in WORKLOADS and where == namespace for kind, where, _ in self.refused)

    def of(self, *kinds: str) -> Iterator[Manifest]:
        return (one for one in self.objects if one["kind"] in kinds)

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Return the object; for a Secret, the object that creates it."""
        if kind == "Secret":
            return self._secrets.get((namespace, name), (None, ANY))[0]
        return self.known.get((kind, "" if kind in SPACELESS else namespace, name))

    def keys(self, kind: str, namespace: str, name: str) -> frozenset[str] | None:
        """Return what others can refer to: a Secret's or ConfigMap's keys, a Gateway's listeners, a Service's ports."""
        found = self.get(kind, namespace, name)
        match kind:
            case "Secret":
                return self._secrets.get((namespace, name), (None, ANY))[1]
            case "ConfigMap":
                return frozenset(first(found, "data", {}))
            case "Gateway" | "Service":
                return frozenset(map(str, get_path(found, *PARTS)))
        return ANY

    @functools.cached_property
    def namespaces(self) -> dict[str, dict[str, str]]:
        """Labels by namespace, including the label with its name; a namespace without a manifest has only that one."""
        found = {namespace_of(one): {} for one in self.objects if namespace_of(one)} | {
            one["namespace"]: {} for one in self.operators
        }
        for one in self.of("Namespace"):
            found[one["metadata"]["name"]] = first(one, "metadata.labels", {})
        return {name: {"kubernetes.io/metadata.name": name, **labels} for name, labels in found.items()}

    @functools.cached_property
    def workloads(self) -> list[Pod]:
        """The pods of the manifests themselves."""
        return [
            Pod(
                one["metadata"]["name"],
                namespace_of(one),
                first(template(one), "metadata.labels", {}),
                {
                    port.get("name", str(port["containerPort"])): port["containerPort"]
                    for port in get_path(template(one), "spec.containers[].ports[]")
                },
                one,
                first(template(one), "spec", {}),
            )
            for one in self.of(*WORKLOADS)
        ]

    @functools.cached_property
    def containers(self) -> list[Container]:
        """The containers of the workloads."""
        found = []
        for pod in self.workloads:
            for one in containers(pod.spec):
                maps = (
                    self.get("ConfigMap", pod.namespace, each) for each in get_path(one, "envFrom[].configMapRef.name")
                )
                given = {key: value for each in maps for key, value in first(each, "data", {}).items()}
                own = {each["name"]: each.get("value") for each in one.get("env", ())}
                found.append(Container(pod, one, {**given, **own}))
        return found

    @functools.cached_property
    def pods(self) -> list[Pod]:
        """All pods: the workloads', PostgreSQL's, the gateways' and the operators'."""
        found = list(self.workloads)
        for one in self.of("Cluster", "Pooler"):
            name, pooler = one["metadata"]["name"], one["kind"] == "Pooler"
            labels = first(one, "spec.inheritedMetadata.labels", {}) | {
                "cnpg.io/cluster": first(one, "spec.cluster.name", name),
                "cnpg.io/podRole": "pooler" if pooler else "instance",
                "cnpg.io/instanceRole": "primary",  # true for one instance; no policy selects standbys
                "cnpg.io/poolerName" if pooler else "cnpg.io/instanceName": name,
            }
            ports = (
                {"postgresql": 5432, "metrics": 9127}
                if pooler
                else {"status": 8000, "postgresql": 5432, "metrics": 9187}
            )
            found.append(Pod(name, namespace_of(one), labels, ports, one, {}))
        for one in self.of("Gateway"):
            name = one["metadata"]["name"]
            labels = {
                "gateway.networking.k8s.io/gateway-name": name,
                "app.kubernetes.io/name": f"{name}-{one['spec']['gatewayClassName']}",
            }
            ports = {str(each["port"]): each["port"] for each in one["spec"]["listeners"]} | {"metrics": 9113}
            found.append(Pod(f"gateway {name}", namespace_of(one), labels, ports, one, {}))
            solver = {"acme.cert-manager.io/http01-solver": "true"}
            found.append(Pod("ACME solver", namespace_of(one), solver, {"http": 8089}, one, {}))
        found += [Pod(one["name"], one["namespace"], one["labels"], one["ports"], {}, {}) for one in self.operators]
        return found

    def policies(self, pod: Pod, direction: str) -> list[Manifest]:
        """Return the network policies for the connections to a pod (ingress) or from it (egress)."""
        key = (pod.namespace, pod.name, direction)
        if key not in self._policies:
            self._policies[key] = [
                one
                for one in self.of("NetworkPolicy")
                if namespace_of(one) == pod.namespace
                and matches(one["spec"].get("podSelector") or {}, pod.labels)
                and direction.title()
                in one["spec"].get("policyTypes", ["Ingress", *(["Egress"] if "egress" in one["spec"] else [])])
            ]
        return self._policies[key]

    def select(self, selector: Manifest, namespace: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.namespace == namespace and matches(selector, pod.labels)]

    @functools.cached_property
    def _secrets(self) -> dict[tuple[str, str], tuple[Manifest, frozenset[str] | None]]:
        """The object that creates each Secret, and the Secret's keys."""
        return {
            (namespace_of(one), secret): (one, keys)
            for one in [*OPERATORS["objects"], *self.objects]
            for secret, keys in _secrets(one, one["metadata"]["name"], one.get("spec") or {})
        }

    def targets(self, service: Manifest, port: Manifest) -> list[tuple[Pod, int]]:
        """Return the pods and their ports that one port of a Service forwards to."""
        target = port.get("targetPort", port["port"])
        return [
            (pod, number)
            for pod in self.select({"matchLabels": first(service, "spec.selector", {})}, namespace_of(service))
            for name, number in pod.ports.items()
            if target in (name, number)
        ]
