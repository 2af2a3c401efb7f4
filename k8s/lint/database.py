"""PostgreSQL: what it survives, how many it serves, and who may read along."""

import math

from lint.environment import of_the_service
from lint.inventory import Inventory, annotation, dig, first, space
from lint.manifests import Manifest, name
from lint.rules import Wrong, rule
from lint.scaling import quantity
from lint.service import service

LEAST_INSTANCES = 3
LEAST_STORAGE = "10Gi"
RESERVED = 3 + 4
"""Connections kept back: PostgreSQL's own for superusers, and the operator's."""


@rule
def database_quorum(inventory: Inventory) -> Wrong:
    """A commit that was answered is lost with its node, or the whole database with one node."""
    for one in inventory.of("Cluster"):
        spec = one["spec"]
        if spec.get("instances", 1) < LEAST_INSTANCES:
            yield one, f"has fewer than {LEAST_INSTANCES} instances"
        if first(spec, "postgresql.synchronous.dataDurability") != "required" or not first(
            spec, "postgresql.synchronous.failoverQuorum"
        ):
            yield one, "no synchronous replication with dataDurability required and failoverQuorum"
        if not first(spec, "affinity.enablePodAntiAffinity"):
            yield one, "nothing keeps its instances on different nodes"
        if first(spec, "resources.requests.memory", "") != first(spec, "resources.limits.memory"):
            yield (
                one,
                "resources: request and limit of memory differ or are missing, so its pods are killed before others",
            )


@rule
def database_backup(inventory: Inventory) -> Wrong:
    """Goals of people who found the site by its public name are gone with the cluster, or with a full disk."""
    public = any(
        any(dig(inventory.get("ClusterIssuer", "", annotation(one, "cert-manager.io/cluster-issuer")), "spec.acme"))
        for one in inventory.of("Gateway")
    )
    for one in inventory.of("Cluster") if public else ():
        archiving = any(dig(one, "spec.plugins[].isWALArchiver"))
        scheduled = any(
            each["spec"]["cluster"]["name"] == one["metadata"]["name"] for each in inventory.of("ScheduledBackup")
        )
        if not archiving or not scheduled:
            yield one, "no plugin archives its WAL, or no ScheduledBackup names it"
        if quantity(first(one, "spec.storage.size", "0")) < quantity(LEAST_STORAGE):
            yield one, f"storage.size is below {LEAST_STORAGE}"


@rule
def database_archive(inventory: Inventory) -> Wrong:
    """Two clusters that archive into one folder ruin both of their backups."""
    seen: dict[tuple[str, str, str], Manifest] = {}
    for one in inventory.of("Cluster"):
        for given in dig(one, "spec.plugins[].parameters"):
            key = (space(one), given.get("barmanObjectName"), given.get("serverName", one["metadata"]["name"]))
            if seen.setdefault(key, one) is not one:
                yield one, f"archives as {key[2]}, as {name(seen[key])} does"


@rule
def database_credentials(inventory: Inventory) -> Wrong:
    """The service speaks to one database with the password of another, and is refused."""
    for pod, container, _ in of_the_service(inventory):
        named = {each["secretKeyRef"]["name"] for each in dig(container, "env[].valueFrom") if "secretKeyRef" in each}
        mounted = {each["name"] for each in container.get("volumeMounts", ())}
        secrets = [
            one["secret"]["secretName"]
            for one in dig(pod.spec, "volumes[]")
            if one["name"] in mounted and "secret" in one
        ]
        clusters = {one.removesuffix("-app").removesuffix("-ca") for one in [*named, *secrets]}
        if len(clusters) > 1:
            yield (
                pod.manifest,
                f"{container['name']}: its secrets are of several databases: {', '.join(sorted(clusters))}",
            )
        for cluster in clusters:
            if inventory.cluster(pod.namespace, cluster) is None:
                where = f"{container['name']}: no Cluster makes the password it uses ({cluster})"
                yield pod.manifest, f"{where}; two copies must be kept the same by hand"


@rule
def database_tls(inventory: Inventory) -> Wrong:
    """Whoever is between service and database reads the password, or is the database."""
    for pod, container, values in of_the_service(inventory):
        if "DB_HOST" in values and (values.get("SSL") != "verify-full" or not values.get("DB_CA_FILE")):
            yield pod.manifest, f"{container['name']}: SSL=verify-full and DB_CA_FILE are not set"
    for one in inventory.of("Cluster"):
        if "host all all all reject" not in dig(one, "spec.postgresql.pg_hba[]"):
            yield one, "pg_hba does not end in a line that refuses plain connections"


@rule
def connections(inventory: Inventory) -> Wrong:
    """At the highest load the last pods get no connection, and a rollout stops half-way."""
    for scaler in inventory.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]["name"]
        for pod, container, values in of_the_service(inventory):
            if (pod.namespace, pod.name) == (space(scaler), target) and container in pod.spec["containers"]:
                each = int(str(values.get("GOALS_POOL_SIZE") or service().settings["GOALS_POOL_SIZE"]))
                most = scaler["spec"]["maxReplicas"]
                surge = str(first(pod.manifest, "spec.strategy.rollingUpdate.maxSurge", "25%"))
                more = math.ceil(most * float(surge[:-1]) / 100) if surge.endswith("%") else int(surge)
                needed = each * (most + more) + RESERVED
                for one in inventory.of("Cluster"):
                    offered = int(first(one, "spec.postgresql.parameters.max_connections", 100))
                    if space(one) == pod.namespace and needed > offered:
                        yield one, f"max_connections is {offered}; {name(scaler)} may need {needed}"
