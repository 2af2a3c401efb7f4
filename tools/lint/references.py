"""Rules for references: the target must exist and have the requested keys, and each object must have one source."""

from collections.abc import Iterator
from typing import NamedTuple

from tools.lint.inventory import ANY, Inventory, containers, first, get_path, namespace_of, template
from tools.lint.manifests import Manifest, name
from tools.lint.rules import Things, enter, every, of

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
        ("Cluster", "spec.certificates.serverCASecret", "Secret"),
        ("Backup Pooler Publication ScheduledBackup Subscription", "spec.cluster.name", "Cluster"),
        ("RoleBinding", "roleRef", ""),
        ("RoleBinding", "subjects[]", ""),
        ("SecretStore", "spec.provider.azurekv.serviceAccountRef.name", "ServiceAccount"),
        (WORKLOADS, "pod.serviceAccountName", "ServiceAccount"),
        (WORKLOADS, "pod.volumes[].persistentVolumeClaim.claimName", "PersistentVolumeClaim"),
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
"""References by rule: the kinds that have them, the path, and the target's kind if the reference does not name one."""

CONSEQUENCES = {
    "reference": "An object that depends on the missing one waits for it forever, or is rejected",
    "configuration": "The pod stays in CreateContainerConfigError: its configuration does not exist",
    "listener-certificate": "The listener never becomes ready: it has no certificate",
    "gateway-issuer": "cert-manager issues no certificate, and https never works",
    "parent": "The route is not attached to any gateway, and its address answers 404",
    "backend": "The gateway answers 500: the route has no backend",
}

BUILT_IN = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
UNKNOWN = frozenset({"ClusterRole", "Group", "User"})
"""Kinds that the cluster, its operators or its user directory provide: the linter cannot check whether they exist."""
ISSUERS_NAMESPACE = "cert-manager"


class Reference(NamedTuple):
    """The source, the target's kind, namespace and name, and its keys, listeners or ports (none means all)."""

    source: Manifest
    target: tuple[str, str, str]
    keys: list[str]

    def __str__(self) -> str:
        kind, namespace, named = self.target
        return f"{kind} {namespace}/{named}"


def references(one: Manifest, *rules: str) -> Iterator[Reference]:
    """Yield the references of an object, by these rules or by all of them."""
    spec = first(template(one), "spec", {})
    whole = one | {"pod": spec | {"containers": containers(spec)}}
    for rule, kinds, path, kind in ((key, *row) for key in rules or REFERENCES for row in REFERENCES[key]):
        for found in get_path(whole, path) if one["kind"] in kinds.split() else ():
            given = {"kind": kind} | (found if isinstance(found, dict) else {"name": found})
            named = given.get("secretName") or given["name"]
            if not (given.get("optional") or given["kind"] in UNKNOWN or (given["kind"], named) in BUILT_IN):
                keys = [*get_path(given, "key", "sectionName", "port", "items[].key")] or ["no port"] * (
                    rule == "backend"
                )
                namespace = given.get("namespace", namespace_of(one) or ISSUERS_NAMESPACE)
                yield Reference(one, (given["kind"], namespace, named), [str(key) for key in keys])


def links(*rules: str) -> Things[Reference]:
    """Yield all references by these rules."""
    return lambda inventory: ((one, "", link) for one in inventory.objects for link in references(one, *rules))


def find_missing(inventory: Inventory, link: Reference) -> Iterator[str]:
    (kind, _, named), known = link.target, inventory.keys(*link.target)
    if link.target in inventory.refused:
        return
    if inventory.get(*link.target) is None:
        elsewhere = [name(other) for other in inventory.of(kind) if other["metadata"]["name"] == named]
        yield f"there is no {link}, " + (f"only {elsewhere[0]}" if elsewhere else "and nothing creates it")
    elif known is not ANY:
        has = ", ".join(sorted(known)) or "nothing"
        yield from (f"{link} has no {key}, only {has}" for key in link.keys if key not in known)


for _rule, _consequence in CONSEQUENCES.items():
    enter(_rule, _consequence, links(_rule), find_missing)


@every(of())
def conflict(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """Two sources that define an object differently overwrite each other's changes forever."""
    last = inventory.known[one["kind"], namespace_of(one), one["metadata"]["name"]]
    if last != one:
        yield f"is defined differently in {inventory.origin(last)}"


@every(links("configuration"))
def private_key(inventory: Inventory, link: Reference) -> Iterator[str]:
    """An intruder in the pod has the CA's private key and can impersonate any server."""
    if "ca.key" in (inventory.keys(*link.target) or ()) and ("ca.key" in link.keys or not link.keys):
        yield f"mounts the whole {link}, including the CA's private key"


@every(of())
def default_namespace(_: Inventory, one: Manifest) -> Iterator[str]:
    """Everything shares one namespace: policies, quotas and permissions cannot separate the parts."""
    if namespace_of(one) == "default":
        yield "is in the namespace default"
