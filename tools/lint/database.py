"""Rules for PostgreSQL and the service: availability, backups, settings, and confidentiality."""

import math
from collections.abc import Iterator

from tools.lint.inventory import Container, Inventory, annotation, first, get_path, namespace_of
from tools.lint.manifests import Manifest, name
from tools.lint.rules import every, of, of_the_service
from tools.lint.service import LIMITS, SETTINGS
from tools.lint.workloads import quantity, scaled

# part azure
LEAST_STORAGE = "10Gi"
# end azure
RESERVED = 3 + 4
"""Reserved connections: PostgreSQL's for superusers, and the operator's."""


# part azure
@every(of("Cluster"))
def database_backup(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """The goals of a public site are lost with the cluster, or with a full disk."""
    issuers = (annotation(gateway, "cert-manager.io/cluster-issuer") for gateway in inventory.of("Gateway"))
    public = any(any(get_path(inventory.get("ClusterIssuer", "", issuer), "spec.acme")) for issuer in issuers)
    scheduled = [each["spec"]["cluster"]["name"] for each in inventory.of("ScheduledBackup")]
    if public and (one["metadata"]["name"] not in scheduled or not any(get_path(one, "spec.plugins[].isWALArchiver"))):
        yield "no plugin archives its WAL, or no ScheduledBackup refers to it"
    if public and quantity(first(one, "spec.storage.size", "0")) < quantity(LEAST_STORAGE):
        yield f"storage.size is below {LEAST_STORAGE}"


# end azure
def _services_of_instances(inventory: Inventory, cluster: Manifest) -> list[str]:
    (instances,) = (pod for pod in inventory.pods if pod.manifest is cluster)
    return [
        each["metadata"]["name"]
        for each in inventory.of("Service")
        if first(each, "spec.clusterIP") == "None"
        and first(each, "spec.publishNotReadyAddresses")
        and namespace_of(each) == namespace_of(cluster)
        and inventory.select({"matchLabels": first(each, "spec.selector", {})}, namespace_of(cluster)) == [instances]
    ]


def _replies(cluster: Manifest) -> str:
    standbys = int(first(cluster, "spec.instances", 1)) - 1
    return str(standbys - int(first(cluster, "spec.postgresql.synchronous.number", 0)) + 1)


@every(of("Cluster"))
def database_instances(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """While the primary is unavailable, the service cannot find the standbys that could serve reads."""
    if not _services_of_instances(inventory, one):
        yield "no headless Service lists the addresses of exactly its instances, ready or not"


@every(of_the_service)
def standby_reads(inventory: Inventory, one: Container) -> Iterator[str]:
    """While the primary is unavailable, pages lack acknowledged goals, or reads that a standby could serve fail."""
    asked = _databases(one) if one.serves and one.command == "serve" else []
    for cluster in filter(None, (inventory.get("Cluster", one.pod.namespace, each) for each in asked)):
        if one.variables.get("DB_STANDBY_HOST") not in _services_of_instances(inventory, cluster):
            yield "DB_STANDBY_HOST does not name the headless Service of all instances"
        if one.variables.get("DB_STANDBY_REPLIES") != (needed := _replies(cluster)):
            yield f"DB_STANDBY_REPLIES must be {needed}: the standbys, minus the synchronous ones, plus one"


@every(of("Cluster"))
def database_log(_: Inventory, one: Manifest) -> Iterator[str]:
    """The texts of goals appear in PostgreSQL's log, which is stored and read outside the database."""
    for parameter in ("log_parameter_max_length", "log_parameter_max_length_on_error"):
        if first(one, f"spec.postgresql.parameters.{parameter}") != "0":
            yield f"{parameter} is not 0: the parameters of slow or failed statements are logged"


# part azure
@every(of("Cluster"))
def database_archive(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """Two clusters that archive into the same folder corrupt both backups."""
    for other in inventory.of("Cluster"):
        if other is not one and namespace_of(other) == namespace_of(one):
            for store, folder in archives(one) & archives(other):
                yield f"archives to {folder} in {store}, as {name(other)} does"


@every(of("ScheduledBackup"))
def backup_schedule(_: Inventory, one: Manifest) -> Iterator[str]:
    """The first field of CloudNativePG's schedules is seconds: five fields mean another time, or far more backups."""
    schedule = str(first(one, "spec.schedule", ""))
    if not schedule.startswith("@") and len(schedule.split()) != 6:  # noqa: PLR2004  said in the message
        yield f"schedule {schedule!r} does not have six fields, starting with seconds"


def archives(cluster: Manifest) -> set[tuple[str, str]]:
    given = get_path(cluster, "spec.plugins[].parameters")
    return {(str(one.get("barmanObjectName")), one.get("serverName", cluster["metadata"]["name"])) for one in given}


# end azure
def _databases(one: Container) -> list[str]:
    """Return the names of the Clusters whose Secrets the container uses."""
    mounted = set(get_path(one.spec, "volumeMounts[].name"))
    volumes = [volume for volume in get_path(one.pod.spec, "volumes[]") if volume["name"] in mounted]
    secrets = [*get_path(one.spec, "env[].valueFrom.secretKeyRef.name"), *get_path(volumes, "[].secret.secretName")]
    return sorted({secret.removesuffix("-app").removesuffix("-ca") for secret in secrets})


@every(of_the_service)
def database_credentials(inventory: Inventory, one: Container) -> Iterator[str]:
    """The service connects to one database with the password of another, and is rejected."""
    clusters = _databases(one)
    if len(clusters) > 1:
        yield f"its Secrets belong to several databases: {', '.join(clusters)}"
    for cluster in clusters:
        if inventory.get("Cluster", one.pod.namespace, cluster) is None:
            yield f"no Cluster creates the password that it uses ({cluster}); two copies must be kept in sync by hand"


@every(of_the_service)
def database_tls(_: Inventory, one: Container) -> Iterator[str]:
    """Anyone between the service and the database can read the password, or impersonate the database."""
    given = one.variables
    if "DB_HOST" in given and (given.get("SSL") != "verify-full" or not given.get("DB_CA_FILE")):
        yield "SSL=verify-full and DB_CA_FILE are not set"


@every(of("Cluster"))
def connections(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """At the highest load, the last pods get no connections, and a rollout stops halfway."""
    offered = int(first(one, "spec.postgresql.parameters.max_connections", 100))
    for _, _, (scaler, target) in scaled(inventory):
        most, surge = scaler["spec"]["maxReplicas"], str(first(target, "spec.strategy.rollingUpdate.maxSurge", "25%"))
        pods = most + (math.ceil(most * float(surge[:-1]) / 100) if surge.endswith("%") else int(surge))
        for each in inventory.containers:
            if (
                each.is_ours
                and each.serves
                and each.pod.manifest is target
                and namespace_of(target) == namespace_of(one)
            ):
                size = each.variables.get("GOALS_POOL_SIZE") or SETTINGS["GOALS_POOL_SIZE"]
                each_pod = int(str(size)) + int(LIMITS["server_connections"])
                if (needed := each_pod * pods + RESERVED) > offered:
                    yield f"max_connections is {offered}; {name(scaler)} may need {needed}"
