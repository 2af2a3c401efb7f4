"""Rules for Prometheus's monitors, and for other access to the metrics."""

from collections.abc import Iterator
from typing import NamedTuple

from tools.lint.inventory import Inventory, Pod, first, get_path, matches, namespace_of
from tools.lint.manifests import Manifest
from tools.lint.references import links
from tools.lint.rules import every
from tools.lint.service import routes


class Scrape(NamedTuple):
    """An endpoint of a monitor with the pods' ports that it selects."""

    endpoint: Manifest
    ends: list[tuple[Pod, int]]


def scrapes(inventory: Inventory) -> Iterator[tuple[Manifest, str, Scrape]]:
    for one in inventory.of("ServiceMonitor", "PodMonitor"):
        wanted, chosen = one["spec"]["selector"], first(one, "spec.namespaceSelector", {})
        spaces = list(inventory.namespaces) if chosen.get("any") else chosen.get("matchNames", [namespace_of(one)])
        for endpoint in get_path(one, "spec.podMetricsEndpoints[]"):
            pods = [pod for each in spaces for pod in inventory.select(wanted, each)]
            port = {endpoint.get("port"), endpoint.get("portNumber")}
            ends = [(pod, number) for pod in pods for key, number in pod.ports.items() if {key, number} & port]
            yield one, "", Scrape(endpoint, ends)
        for endpoint in get_path(one, "spec.endpoints[]"):
            ends = [
                end
                for each in inventory.of("Service")
                if namespace_of(each) in spaces and matches(wanted, first(each, "metadata.labels", {}))
                for port in get_path(each, "spec.ports[]")
                if port.get("name") == endpoint.get("port")
                for end in inventory.targets(each, port)
            ]
            yield one, "", Scrape(endpoint, ends)


@every(scrapes)
def monitor(inventory: Inventory, one: Scrape) -> Iterator[str]:
    """Prometheus silently finds no target; alerts on the missing metrics never fire."""
    path = one.endpoint.get("path", "/metrics")
    if not one.ends:
        yield f"selects nothing that has the port {one.endpoint.get('port', one.endpoint.get('portNumber'))}"
    ours = [container.pod for container in inventory.containers if container.is_ours and container.serves]
    for pod, number in one.ends:
        if pod in ours and path not in routes().get(number, ()):
            yield f"requests {path} on port {number}, where the service has no such route"


@every(scrapes)
def public_metrics(inventory: Inventory, one: Scrape) -> Iterator[str]:
    """Anyone can read the service's metrics, and make the service render them as often as they like."""
    public = [
        end
        for _, _, link in links("backend")(inventory)
        for port in get_path(inventory.get(*link.target), "spec.ports[]")
        if str(port["port"]) in link.keys
        for end in inventory.targets(inventory.get(*link.target) or {}, port)
    ]
    for pod, number in one.ends:
        if (pod, number) in public:
            yield f"scrapes port {number} of {pod.name}, which a route exposes"
