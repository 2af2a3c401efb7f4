"""One object names another: is it there, does it hold what is asked for, and who else says it is theirs."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from lint.inventory import ANY, Inventory, containers, dig, first, space, template
from lint.manifests import Manifest, name
from lint.rules import Wrong, rule

OBJECTS = {
    "Certificate": [("spec.issuerRef", "Issuer")],
    "ClientSettingsPolicy": [("spec.targetRef", "")],
    "Cluster": [
        ("spec.imageCatalogRef", ""),
        ("spec.storage.storageClass", "StorageClass"),
        ("spec.walStorage.storageClass", "StorageClass"),
        ("spec.plugins[].parameters.barmanObjectName", "ObjectStore"),
        ("spec.externalClusters[].plugin.parameters.barmanObjectName", "ObjectStore"),
    ],
    "ExternalSecret": [("spec.secretStoreRef", "SecretStore"), ("spec.dataFrom[].sourceRef.generatorRef", "")],
    "Gateway": [("spec.gatewayClassName", "GatewayClass"), ("spec.infrastructure.parametersRef", "")],
    "HorizontalPodAutoscaler": [("spec.scaleTargetRef", "")],
    "Pooler": [("spec.cluster.name", "Cluster")],
    "RoleBinding": [("roleRef", ""), ("subjects[]", "")],
    "ScheduledBackup": [("spec.cluster.name", "Cluster")],
    "SecretStore": [("spec.provider.azurekv.serviceAccountRef.name", "ServiceAccount")],
    "BackendTLSPolicy": [("spec.targetRefs[]", "")],
    "ProxySettingsPolicy": [("spec.targetRefs[]", "")],
    "RateLimitPolicy": [("spec.targetRefs[]", "")],
    "UpstreamSettingsPolicy": [("spec.targetRefs[]", "")],
    "DaemonSet": [("spec.template.spec.serviceAccountName", "ServiceAccount")],
    "Deployment": [("spec.template.spec.serviceAccountName", "ServiceAccount")],
    "Job": [("spec.template.spec.serviceAccountName", "ServiceAccount")],
    "StatefulSet": [("spec.template.spec.serviceAccountName", "ServiceAccount")],
}
"""Where an object names another: the path, and the kind where the reference does not say it."""

BUILT_IN = frozenset({"cluster-admin", "edit", "view", "system:auth-delegator", "default"})
"""What is in every cluster: roles, and the ServiceAccount of each namespace."""

PEOPLE = frozenset({"User", "Group"})
SECRETS = {
    "AlertmanagerConfig": ["spec.receivers[].webhookConfigs[].urlSecret"],
    "Cluster": ["spec.bootstrap.initdb.secret", "spec.superuserSecret"],
    "BackendTLSPolicy": ["spec.validation.caCertificateRefs[]"],
    "ClusterIssuer": ["spec.ca"],
    "Issuer": ["spec.ca"],
}
"""Where an object other than a workload names a Secret."""

ISSUERS_NAMESPACE = "cert-manager"


class Use(NamedTuple):
    """A Secret or ConfigMap that an object needs; no keys where all of them are taken."""

    kind: str
    namespace: str
    name: str
    keys: list[str]


def objects_named(one: Manifest) -> Iterator[tuple[str, str, str]]:
    """Kind, namespace and name of each object that this one refers to."""
    for path, kind in OBJECTS.get(one["kind"], ()):
        for target in dig(one, path):
            reference = target if isinstance(target, dict) else {"name": target}
            if reference["name"] not in BUILT_IN and reference.get("kind") not in PEOPLE:
                yield reference.get("kind", kind), reference.get("namespace", space(one)), reference["name"]


def uses(one: Manifest) -> Iterator[Use]:
    """Every Secret and ConfigMap that an object or its pods need."""
    namespace = space(one) or ISSUERS_NAMESPACE
    for path in SECRETS.get(one["kind"], ()):
        for reference in dig(one, path):
            keys = [reference["key"]] if "key" in reference else []
            yield Use(
                reference.get("kind", "Secret"), namespace, reference.get("secretName") or reference["name"], keys
            )
    spec = first(template(one), "spec", {})
    needed: list[tuple[str, Any, list[str]]] = [("Secret", each, []) for each in dig(spec, "imagePullSecrets[]")]
    for container in containers(spec):
        for kind, short in (("Secret", "secret"), ("ConfigMap", "configMap")):
            needed += [(kind, each, []) for each in dig(container, f"envFrom[].{short}Ref")]
            needed += [(kind, each, [each["key"]]) for each in dig(container, f"env[].valueFrom.{short}KeyRef")]
    for volume in [*dig(spec, "volumes[]"), *dig(spec, "volumes[].projected.sources[]")]:
        for kind, short in (("Secret", "secret"), ("ConfigMap", "configMap")):
            needed += [(kind, each, list(dig(each, "items[].key"))) for each in dig(volume, short)]
    for kind, each, keys in needed:
        if not each.get("optional"):
            yield Use(kind, namespace, each.get("secretName") or each["name"], keys)


@rule
def conflict(inventory: Inventory) -> Wrong:
    """Two who apply one object in two ways undo each other's work for ever."""
    seen: dict[tuple[str, str, str], Manifest] = {}
    for one in inventory.objects:
        other = seen.setdefault((one["kind"], space(one), one["metadata"]["name"]), one)
        if other != one:
            yield one, f"is another in {inventory.origin(other)}"


@rule
def reference(inventory: Inventory) -> Wrong:
    """What depends on the missing object waits for it for ever, or is refused."""
    for one in inventory.objects:
        for kind, namespace, target in objects_named(one):
            if inventory.get(kind, namespace, target) is None:
                elsewhere = [name(other) for other in inventory.of(kind) if other["metadata"]["name"] == target]
                yield one, f"there is no {kind} {namespace}/{target}" + (f", only {elsewhere[0]}" if elsewhere else "")


@rule
def configuration(inventory: Inventory) -> Wrong:
    """The pod stays in CreateContainerConfigError: what it is configured by does not exist."""
    for one in inventory.objects:
        for kind, namespace, target, keys in uses(one):
            found = inventory.get("ConfigMap", namespace, target)
            known = (
                inventory.secrets.get((namespace, target), frozenset())
                if kind == "Secret"
                else frozenset(first(found, "data", {}))
            )
            if (namespace, target) not in inventory.secrets if kind == "Secret" else found is None:
                yield one, f"nothing makes the {kind} {namespace}/{target}"
            for key in keys:
                if known is not ANY and known and key not in known:
                    yield one, f"{kind} {namespace}/{target} has no key {key}, but {', '.join(sorted(known))}"


@rule
def private_key(inventory: Inventory) -> Wrong:
    """Whoever takes over the pod holds the key of the CA and can be any server."""
    for pod in inventory.workloads:
        for kind, namespace, target, keys in uses(pod.manifest):
            held = inventory.secrets.get((namespace, target)) or frozenset()
            if kind == "Secret" and "ca.key" in held and ("ca.key" in keys or not keys):
                yield pod.manifest, f"takes all of the Secret {target}, the CA's private key too"


@rule
def secret_in_git(inventory: Inventory) -> Wrong:
    """Whoever reads the repository has the password, and a second place must be changed with it."""
    for one in inventory.of("Secret"):
        if one.get("data") or one.get("stringData"):
            yield one, "holds its values in the manifest; let an operator make them"


@rule
def default_namespace(inventory: Inventory) -> Wrong:
    """Everything shares one namespace: no policy, quota or right can tell one part from another."""
    for one in inventory.objects:
        if space(one) == "default":
            yield one, "lands in the namespace default"
