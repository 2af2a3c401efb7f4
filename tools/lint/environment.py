"""Rules for the environment of the service's containers, checked against the settings in the service's code."""

from collections.abc import Iterator

from tools.lint.inventory import Container, Inventory, get_path, namespace_of
from tools.lint.rules import every, of_the_service
from tools.lint.service import SETTINGS, problem


@every(of_the_service)
def setting(_: Inventory, one: Container) -> Iterator[str]:
    """The variable is silently ignored, or the service fails to start."""
    settings, given = SETTINGS, {key: value for key, value in one.variables.items() if value is not None}
    if unknown := one.variables.keys() - settings.keys():
        yield f"the service has no setting {', '.join(sorted(unknown))}"
    if said := problem(given):
        yield said
    volumes = {volume["name"]: volume for volume in get_path(one.pod.spec, "volumes[]")}
    mounted = {
        f"{mount['mountPath']}/{file}"
        for mount in get_path(one.spec, "volumeMounts[]")
        for file in get_path(volumes.get(mount["name"]), "secret.items[].path", "configMap.items[].path")
    }
    for key, value in given.items():
        if key.endswith("_FILE") and value and value not in mounted:
            yield f"{key}={value} is not mounted"
    for port in ("GOALS_PORT", "GOALS_OPS_PORT"):
        number = int(str(given.get(port) or settings[port]))
        if one.spec.get("ports") and number not in get_path(one.spec, "ports[].containerPort"):
            yield f"no containerPort for {port}={number}"


@every(of_the_service)
def service_links(inventory: Inventory, one: Container) -> Iterator[str]:
    """Kubernetes sets NAME_PORT=tcp://… for each Service, which overrides a setting of the same name."""
    names = [each["metadata"]["name"] for each in inventory.of("Service") if namespace_of(each) == one.pod.namespace]
    links = {f"{name.upper().replace('-', '_')}_PORT" for name in names} & SETTINGS.keys()
    if one.pod.spec.get("enableServiceLinks", True) and links:
        yield f"enableServiceLinks must be false: {', '.join(sorted(links))}"


@every(of_the_service)
def migration(_: Inventory, one: Container) -> Iterator[str]:
    """The service starts with a schema that it does not support, and never becomes ready."""
    steps = get_path(one.pod.spec, "initContainers[].args[]")
    if one.serves and one.command not in {"migrate", "check-restore"} and "migrate" not in steps:
        yield "no init container migrates the database before the service starts"
