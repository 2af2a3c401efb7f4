"""What Prometheus watches, and who else can see it."""

from collections.abc import Iterator

from lint.inventory import Inventory, Pod, dig, first, matches, space
from lint.manifests import Manifest
from lint.rules import Wrong, rule
from lint.service import is_service, service


def scraped(inventory: Inventory) -> Iterator[tuple[Manifest, Manifest, list[tuple[Pod, int]]]]:
    """Each endpoint of a monitor with the pods' ports that it leads to."""
    for one in inventory.of("ServiceMonitor", "PodMonitor"):
        chosen = first(one, "spec.namespaceSelector", {})
        spaces = list(inventory.namespaces) if chosen.get("any") else chosen.get("matchNames", [space(one)])
        pods = [pod for each in spaces for pod in inventory.select(one["spec"]["selector"], each)]
        for endpoint in [*dig(one, "spec.podMetricsEndpoints[]"), *dig(one, "spec.endpoints[]")]:
            ends: list[tuple[str, str, int]] = []
            if one["kind"] == "PodMonitor":
                wanted = (endpoint.get("port"), endpoint.get("portNumber"))
                yield (
                    one,
                    endpoint,
                    [(pod, number) for pod in pods for key, number in pod.ports.items() if {key, number} & set(wanted)],
                )
                continue
            for each in inventory.of("Service"):
                if space(each) in spaces and matches(one["spec"]["selector"], first(each, "metadata.labels", {})):
                    named = [port for port in dig(each, "spec.ports[]") if port.get("name") == endpoint.get("port")]
                    ends += [(space(each), *end) for port in named for end in inventory.targets(each, port)]
            yield (
                one,
                endpoint,
                [(pod, end[2]) for end in ends for pod in inventory.pods if (pod.namespace, pod.name) == end[:2]],
            )


@rule
def monitor(inventory: Inventory) -> Wrong:
    """Prometheus finds no target and says nothing; alerts on what it would have seen never fire."""
    for one, endpoint, ends in scraped(inventory):
        if "release" not in first(one, "metadata.labels", {}):
            yield one, "has no label release, by which kube-prometheus-stack picks up monitors"
        path = endpoint.get("path", "/metrics")
        if not ends:
            yield one, f"selects nothing that has the port {endpoint.get('port', endpoint.get('portNumber'))}"
        for pod, number in ends:
            for container in dig(pod.spec, "containers[]"):
                if is_service(container.get("image", "")) and path not in service().routes.get(number, ()):
                    yield one, f"asks {path} on {number}, where the service has no such route"
    for one in inventory.of("PrometheusRule"):
        if "release" not in first(one, "metadata.labels", {}):
            yield one, "has no label release, by which kube-prometheus-stack picks up rules"


@rule
def public_metrics(inventory: Inventory) -> Wrong:
    """The whole world reads the service's metrics, and can make it draw them as often as it likes."""
    public = set()
    for route in inventory.of("HTTPRoute"):
        for each in dig(route, "spec.rules[].backendRefs[]"):
            target = inventory.get("Service", each.get("namespace", space(route)), each["name"]) or {}
            entry = inventory.port(target, each.get("port", 0))
            public |= {(space(target), *end) for end in inventory.targets(target, entry)} if entry else set()
    for one, _, ends in scraped(inventory):
        for pod, number in ends:
            if (pod.namespace, pod.name, number) in public:
                yield one, f"scrapes port {number} of {pod.name}, to which a route leads"
