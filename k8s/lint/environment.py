"""What the service's containers are configured by, held against the settings in its code."""

from collections.abc import Iterator

from lint.inventory import Inventory, Pod, containers, dig, first, space
from lint.manifests import Manifest
from lint.rules import Wrong, rule
from lint.service import is_service, problem, service


def variables(inventory: Inventory, pod: Pod, container: Manifest) -> dict[str, str | None]:
    """A container's environment; nothing for a value that only the cluster knows."""
    found: dict[str, str | None] = {}
    for each in dig(container, "envFrom[].configMapRef.name"):
        found |= first(inventory.get("ConfigMap", pod.namespace, each), "data", {})
    return found | {each["name"]: each.get("value") for each in container.get("env", ())}


def of_the_service(inventory: Inventory) -> Iterator[tuple[Pod, Manifest, dict[str, str | None]]]:
    for pod in inventory.workloads:
        for container in containers(pod.spec):
            if is_service(container.get("image", "")):
                yield pod, container, variables(inventory, pod, container)


@rule
def setting(inventory: Inventory) -> Wrong:
    """The variable is ignored in silence, or the service refuses to start."""
    for pod, container, values in of_the_service(inventory):
        if unknown := values.keys() - service().settings.keys():
            yield pod.manifest, f"{container['name']}: the service has no setting {', '.join(sorted(unknown))}"
        if said := problem({key: value for key, value in values.items() if value is not None}):
            yield pod.manifest, f"{container['name']}: {said}"
        mounts = {each["mountPath"]: each["name"] for each in container.get("volumeMounts", ())}
        for key, value in values.items():
            folder, _, file = (value or "").rpartition("/")
            volume: Manifest = next(
                (one for one in pod.spec.get("volumes", ()) if one["name"] == mounts.get(folder)), {}
            )
            if (
                key.endswith("_FILE")
                and value
                and file not in [*dig(volume, "secret.items[].path"), *dig(volume, "configMap.items[].path")]
            ):
                yield pod.manifest, f"{container['name']}: {key}={value} is not mounted"
        for port in ("GOALS_PORT", "GOALS_OPS_PORT"):
            number = int(str(values.get(port) or service().settings[port]))
            if container.get("ports") and number not in dig(container, "ports[].containerPort"):
                yield pod.manifest, f"{container['name']}: no containerPort for {port}={number}"


@rule
def service_links(inventory: Inventory) -> Wrong:
    """Kubernetes puts NAME_PORT=tcp://… of each Service into the environment, over a setting of that name."""
    for pod, _, _ in of_the_service(inventory):
        links = {
            f"{one['metadata']['name'].upper().replace('-', '_')}_PORT"
            for one in inventory.of("Service")
            if space(one) == pod.namespace
        }
        if pod.spec.get("enableServiceLinks", True) and links & service().settings.keys():
            yield pod.manifest, f"enableServiceLinks must be false: {', '.join(links & service().settings.keys())}"


@rule
def migration(inventory: Inventory) -> Wrong:
    """The service starts on a schema it does not know, and is never ready."""
    for pod, container, _ in of_the_service(inventory):
        first_steps = [args for one in pod.spec.get("initContainers", ()) for args in one.get("args", ())]
        if (
            container in pod.spec["containers"]
            and container.get("args") != ["migrate"]
            and "migrate" not in first_steps
        ):
            yield pod.manifest, "no init container migrates the database before the service starts"
