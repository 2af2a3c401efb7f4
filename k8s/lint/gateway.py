"""Routes, listeners, grants, policies and certificates: who is let in where, and what answers there."""

from collections.abc import Iterator
from typing import NamedTuple

from lint.inventory import Inventory, dig, first, matches, space
from lint.manifests import Manifest, name
from lint.references import Reference, references
from lint.rules import Wrong, every, of, rule

ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute")
STAGING = "acme-staging"
TLS_PORTS = frozenset({443, 8443})


class Attachment(NamedTuple):
    """A parentRef: the Gateway it names, if it is there, the listeners it means, and those of them that admit it."""

    route: Manifest
    reference: Manifest
    gateway: Manifest | None
    meant: list[Manifest]
    admitting: list[Manifest]

    @property
    def protocols(self) -> set[str]:
        return {one["protocol"] for one in self.admitting}


def attach(inventory: Inventory, route: Manifest, reference: Manifest, namespace: str) -> Attachment:
    gateway = inventory.get("Gateway", reference.get("namespace", namespace), reference["name"])
    meant = [
        listener
        for listener in dig(gateway, "spec.listeners[]")
        if reference.get("sectionName", listener["name"]) == listener["name"]
        and reference.get("port", listener["port"]) == listener["port"]
    ]
    admitting = [one for one in meant if gateway and _admits(inventory, gateway, one, namespace)]
    return Attachment(route, reference, gateway, meant, admitting)


def _admits(inventory: Inventory, gateway: Manifest, listener: Manifest, namespace: str) -> bool:
    admitted = first(listener, "allowedRoutes.namespaces", {})
    match admitted.get("from", "Same"):
        case "All":
            return True
        case "Selector":
            return matches(admitted["selector"], inventory.namespaces.get(namespace, {}))
    return namespace == space(gateway)


def attachments(inventory: Inventory) -> Iterator[tuple[Manifest, str, Attachment]]:
    for route in inventory.of(*ROUTES):
        for reference in dig(route, "spec.parentRefs[]"):
            yield route, "", attach(inventory, route, reference, space(route))


class Backend(NamedTuple):
    """A backendRef of a route, with its Service and the entry of that Service's port, if they are there."""

    route: Manifest
    reference: Reference
    service: Manifest | None
    port: Manifest | None


def backends(inventory: Inventory) -> Iterator[tuple[Manifest, str, Backend]]:
    for route in inventory.of(*ROUTES):
        for reference in references(route, "backend"):
            service = inventory.get("Service", reference.namespace, reference.name)
            port = next((one for one in dig(service, "spec.ports[]") if one["port"] == reference.port), None)
            yield route, "", Backend(route, reference, service, port)


@every(attachments)
def parent(_: Inventory, one: Attachment) -> Iterator[str]:
    """The route belongs to no gateway, and its address answers 404."""
    where = f"{one.reference.get('namespace', space(one.route))}/{one.reference['name']}"
    if one.gateway is None:
        yield f"there is no Gateway {where}"
    elif not one.meant:
        yield f"Gateway {where} has no listener {one.reference.get('sectionName', one.reference.get('port'))}"


@every(attachments)
def admission(_: Inventory, one: Attachment) -> Iterator[str]:
    """The listener refuses routes of that namespace; only its allowedRoutes consents, not a ReferenceGrant."""
    if one.gateway and one.meant and not one.admitting:
        yield f"{name(one.gateway)}: no listener it means admits routes of namespace {space(one.route)}"


@every(attachments)
def section_name(_: Inventory, one: Attachment) -> Iterator[str]:
    """The route is served over plain http too: passwords and cookies travel in the clear."""
    if "sectionName" not in one.reference and one.protocols > {"HTTP"}:
        yield "parentRefs has no sectionName, and the gateway listens without TLS as well"


@every(attachments)
def plain_route(_: Inventory, one: Attachment) -> Iterator[str]:
    """Whoever types the address without https talks to the service in the clear."""
    secured = "HTTPS" in dig(one.gateway, "spec.listeners[].protocol")
    if secured and one.protocols == {"HTTP"} and any(dig(one.route, "spec.rules[].backendRefs[]")):
        yield "leads from a listener without TLS to a Service"


@every(attachments)
def hostname(_: Inventory, one: Attachment) -> Iterator[str]:
    """A host outside the listener's is dropped from the route in silence, and answers 404."""
    for host in dig(one.route, "spec.hostnames[]"):
        if one.admitting and not any(_covers(listener.get("hostname", host), host) for listener in one.admitting):
            yield f"no listener it is attached to has the host {host}"


def _covers(pattern: str, host: str) -> bool:
    return pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))


@every(of("Gateway"))
def redirect(inventory: Inventory, gateway: Manifest) -> Iterator[str]:
    """Whoever types the address without https gets nothing, or the page in the clear."""
    redirecting = [
        listener
        for route, _, one in attachments(inventory)
        if one.gateway is gateway and "https" in dig(route, "spec.rules[].filters[].requestRedirect.scheme")
        for listener in one.admitting
    ]
    for listener in dig(gateway, "spec.listeners[]"):
        secured = "HTTPS" in dig(gateway, "spec.listeners[].protocol")
        if listener["protocol"] == "HTTP" and secured and listener not in redirecting:
            yield f"listener {listener['name']}: no route there redirects to https"


@every(backends)
def backend(_: Inventory, one: Backend) -> Iterator[str]:
    """The gateway answers 500: it has nowhere to send the request."""
    if one.service is None:
        yield f"there is no {one.reference}"
    elif one.port is None:
        yield f"{one.reference} has no port {one.reference.port}"


@every(backends)
def backend_tls(inventory: Inventory, one: Backend) -> Iterator[str]:
    """The service answers http with a redirect to https, round and round, or https is spoken to by http and refused."""
    offered = TLS_PORTS & set(dig(one.service, "spec.ports[].port")) if one.route["kind"] == "HTTPRoute" else set()
    policies = (target[:3] for policy in inventory.of("BackendTLSPolicy") for target in references(policy, "reference"))
    if offered and one.reference.port not in offered:
        yield f"goes to port {one.reference.port} of {one.reference}, which has TLS on {min(offered)}"
    elif offered and one.reference[:3] not in policies:
        yield f"no BackendTLSPolicy makes the gateway speak TLS to {one.reference}"


@every(of("BackendTLSPolicy"))
def backend_name(inventory: Inventory, policy: Manifest) -> Iterator[str]:
    """The gateway refuses the backend's certificate and answers 502."""
    host = policy["spec"]["validation"]["hostname"]
    for reference in references(policy, "configuration"):
        maker = inventory.get(reference.kind, reference.namespace, reference.name)
        if maker and maker["kind"] == "Certificate" and host not in dig(maker, "spec.dnsNames[]"):
            yield f"expects the name {host}, which {name(maker)} does not have"


def crossings(inventory: Inventory) -> Iterator[tuple[Manifest, str, tuple[Manifest, Reference]]]:
    """References from one namespace into another, which must have consented."""
    for one in inventory.of("Gateway", *ROUTES):
        for reference in references(one, "backend", "listener-certificate"):
            if reference.namespace != space(one):
                yield one, "", (one, reference)


def _grants(inventory: Inventory, source: Manifest, target: Reference) -> Iterator[Manifest]:
    for one in inventory.of("ReferenceGrant"):
        given = [(each["kind"], each.get("name", target.name)) for each in dig(one, "spec.to[]")]
        taken = [(each["kind"], each["namespace"]) for each in dig(one, "spec.from[]")]
        consents = (target.kind, target.name) in given and (source["kind"], space(source)) in taken
        if consents and space(one) == target.namespace:
            yield one


@every(crossings)
def grant(inventory: Inventory, crossing: tuple[Manifest, Reference]) -> Iterator[str]:
    """The gateway refuses to follow a reference into a namespace that has not consented, and answers 500."""
    if not any(_grants(inventory, *crossing)):
        yield f"refers to {crossing[1]}, and no ReferenceGrant there allows it"


@every(of("ReferenceGrant"))
def unused_grant(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """A door that nobody uses stays open for whoever finds it."""
    if not any(one is used for _, _, crossing in crossings(inventory) for used in _grants(inventory, *crossing)):
        yield "no object of the namespaces it lets in refers to anything here"


@every(of("ClusterIssuer", "Issuer"))
def acme_solver(inventory: Inventory, issuer: Manifest) -> Iterator[str]:
    """The challenge's route meets https listeners or a redirect, and no certificate is ever issued."""
    for solver in dig(issuer, "spec.acme.solvers[].http01.gatewayHTTPRoute"):
        if solver.get("serviceType") != "ClusterIP":
            yield "serviceType is not ClusterIP: the solver opens a port on every node"
        for reference in dig(solver, "parentRefs[]"):
            found = attach(inventory, issuer, reference, reference.get("namespace", space(issuer)))
            if "sectionName" not in reference:
                yield "the solver's parentRef has no sectionName"
            elif found.protocols != {"HTTP"}:
                yield f"the solver's sectionName {reference['sectionName']} is no plain listener that admits it"


@every(of("ClusterIssuer", "Issuer"))
def acme_staging(inventory: Inventory, issuer: Manifest) -> Iterator[str]:
    """Let's Encrypt allows few certificates a week; the first mistakes use them up, and https is down for days."""
    servers = list(dig([*inventory.of("ClusterIssuer", "Issuer")], "[].spec.acme.server"))
    if "letsencrypt" in first(issuer, "spec.acme.server", "") and not any(STAGING in server for server in servers):
        yield "there is no issuer of the staging server to try first"


@rule
def policy_overlap(inventory: Inventory) -> Wrong:
    """NGINX Gateway Fabric refuses the policy (TargetConflict): limits and time-outs are not in force."""
    targets: dict[tuple[str, ...], Manifest] = {}
    seen: dict[tuple[str, ...], Manifest] = {}
    ruled = set()
    for policy in inventory.objects:
        if policy["apiVersion"].startswith("gateway.nginx.org/") and "Policy" in policy["kind"]:
            for target in references(policy, "reference"):
                ruled.add(target[:3])
                other = targets.setdefault((policy["kind"], *target[:3]), policy)
                if other is not policy:
                    yield policy, f"{name(other)} of the same kind has the same target"
    for route, _, one in attachments(inventory):
        for host in dig(route, "spec.hostnames[]"):
            for path in dig(route, "spec.rules[].matches[].path.value"):
                other = seen.setdefault((one.reference.get("sectionName", ""), host, path), route)
                pair = {(each["kind"], space(each), each["metadata"]["name"]) for each in (route, other)}
                if other is not route and pair & ruled:
                    yield route, f"shares {host}{path} with {name(other)}, and one of them has a policy"
