"""One object names another: is it there, does it hold what is asked for, and who else says it is theirs."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from lint.inventory import Inventory, Pod, containers, dig, first, space, template
from lint.manifests import Manifest, name
from lint.rules import enter, every, of, pods

WORKLOADS = "DaemonSet Deployment StatefulSet Job CronJob Pod"
REFERENCES = {
    "reference": [
        ("Certificate", "spec.issuerRef", "Issuer"),
        ("BackendTLSPolicy ProxySettingsPolicy RateLimitPolicy UpstreamSettingsPolicy", "spec.targetRefs[]", ""),
        ("ClientSettingsPolicy", "spec.targetRef", ""),
        ("HorizontalPodAutoscaler", "spec.scaleTargetRef", ""),
        ("Cluster", "spec.imageCatalogRef", ""),
        ("Cluster", "spec.storage.storageClass", "StorageClass"),
        ("Cluster", "spec.walStorage.storageClass", "StorageClass"),
        ("Cluster", "spec.plugins[].parameters.barmanObjectName", "ObjectStore"),
        ("Cluster", "spec.externalClusters[].plugin.parameters.barmanObjectName", "ObjectStore"),
        ("ExternalSecret", "spec.secretStoreRef", "SecretStore"),
        ("ExternalSecret", "spec.dataFrom[].sourceRef.generatorRef", ""),
        ("Gateway", "spec.gatewayClassName", "GatewayClass"),
        ("Gateway", "spec.infrastructure.parametersRef", ""),
        ("Pooler ScheduledBackup", "spec.cluster.name", "Cluster"),
        ("RoleBinding", "roleRef", ""),
        ("RoleBinding", "subjects[]", ""),
        ("SecretStore", "spec.provider.azurekv.serviceAccountRef.name", "ServiceAccount"),
        (WORKLOADS, "pod.serviceAccountName", "ServiceAccount"),
    ],
    "configuration": [
        ("AlertmanagerConfig", "spec.receivers[].webhookConfigs[].urlSecret", "Secret"),
        ("BackendTLSPolicy", "spec.validation.caCertificateRefs[]", "Secret"),
        ("Cluster", "spec.bootstrap.initdb.secret", "Secret"),
        ("Cluster", "spec.superuserSecret", "Secret"),
        ("ClusterIssuer Issuer", "spec.ca", "Secret"),
        (WORKLOADS, "pod.imagePullSecrets[]", "Secret"),
        (WORKLOADS, "pod.containers[].envFrom[].secretRef", "Secret"),
        (WORKLOADS, "pod.containers[].envFrom[].configMapRef", "ConfigMap"),
        (WORKLOADS, "pod.containers[].env[].valueFrom.secretKeyRef", "Secret"),
        (WORKLOADS, "pod.containers[].env[].valueFrom.configMapKeyRef", "ConfigMap"),
        (WORKLOADS, "pod.volumes[].secret", "Secret"),
        (WORKLOADS, "pod.volumes[].configMap", "ConfigMap"),
        (WORKLOADS, "pod.volumes[].projected.sources[].secret", "Secret"),
        (WORKLOADS, "pod.volumes[].projected.sources[].configMap", "ConfigMap"),
    ],
    "listener-certificate": [("Gateway", "spec.listeners[].tls.certificateRefs[]", "Secret")],
    "gateway-issuer": [
        ("Gateway", "metadata.annotations[cert-manager.io/cluster-issuer]", "ClusterIssuer"),
        ("Gateway", "metadata.annotations[cert-manager.io/issuer]", "Issuer"),
    ],
    "parent": [("GRPCRoute HTTPRoute TLSRoute", "spec.parentRefs[]", "Gateway")],
    "backend": [("GRPCRoute HTTPRoute TLSRoute", "spec.rules[].backendRefs[]", "Service")],
}
"""Where an object names another, by the rule that asks for it: whose field, and the kind where it does not say one."""

HARM = {
    "reference": "What depends on the missing object waits for it for ever, or is refused",
    "configuration": "The pod stays in CreateContainerConfigError: what it is configured by does not exist",
    "listener-certificate": "The listener never comes up: it has no certificate",
    "gateway-issuer": "cert-manager makes no certificate, and https never answers",
}
"""The rules made of these tables alone; gateway.py asks more of parents and backends."""

BUILT_IN = {("ClusterRole", each) for each in ("cluster-admin", "edit", "view", "system:auth-delegator")}
BUILT_IN |= {("ServiceAccount", "default")}
PEOPLE = frozenset({"User", "Group"})
ISSUERS_NAMESPACE = "cert-manager"


class Reference(NamedTuple):
    """What an object asks for; no keys where it takes all of them or there are none."""

    kind: str
    namespace: str
    name: str
    keys: list[str]
    port: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def references(one: Manifest, *rules: str) -> Iterator[Reference]:
    """What an object refers to: by these rules, or by all of them."""
    spec = first(template(one), "spec", {})
    whole = one | {"pod": spec | {"containers": containers(spec)}}
    for kinds, path, kind in [row for rule in rules or REFERENCES for row in REFERENCES[rule]]:
        for found in dig(whole, path) if one["kind"] in kinds.split() else ():
            given = {"kind": kind} | (found if isinstance(found, dict) else {"name": found})
            named = given.get("secretName") or given["name"]
            if not (given.get("optional") or given["kind"] in PEOPLE or (given["kind"], named) in BUILT_IN):
                keys = [given["key"]] if "key" in given else list(dig(given, "items[].key"))
                namespace = given.get("namespace", space(one) or ISSUERS_NAMESPACE)
                yield Reference(given["kind"], namespace, named, keys, given.get("port"))


def find_missing(rule: str, inventory: Inventory, one: Manifest) -> Iterator[str]:
    for wanted in references(one, rule):
        kind, namespace, target, keys, _ = wanted
        if inventory.get(kind, namespace, target) is None:
            elsewhere = [name(other) for other in inventory.of(kind) if other["metadata"]["name"] == target]
            yield f"there is no {wanted}, " + (f"only {elsewhere[0]}" if elsewhere else "and nothing makes it")
        elif keys and (known := inventory.keys(kind, namespace, target)):
            yield from (
                f"{wanted} has no key {key}, but {', '.join(sorted(known))}" for key in keys if key not in known
            )


for _rule, _harm in HARM.items():
    enter(_rule, _harm, of(), partial(find_missing, _rule))


@every(of())
def conflict(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """Two who apply one object in two ways undo each other's work for ever."""
    last = inventory.known[one["kind"], space(one), one["metadata"]["name"]]
    if last != one:
        yield f"is another in {inventory.origin(last)}"


@every(pods)
def private_key(inventory: Inventory, pod: Pod) -> Iterator[str]:
    """Whoever takes over the pod holds the key of the CA and can be any server."""
    for one in references(pod.manifest, "configuration"):
        if "ca.key" in (inventory.keys(*one[:3]) or ()) and ("ca.key" in one.keys or not one.keys):
            yield f"takes all of the {one}, the CA's private key too"


@every(of())
def default_namespace(_: Inventory, one: Manifest) -> Iterator[str]:
    """Everything shares one namespace: no policy, quota or right can tell one part from another."""
    if space(one) == "default":
        yield "lands in the namespace default"
