"""Rules for routes, listeners, grants, policies and certificates."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from tools.lint.inventory import Inventory, first, get_path, matches, namespace_of
from tools.lint.manifests import Manifest, name
from tools.lint.references import Reference, links, references
from tools.lint.rules import Findings, every, of, rule

ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute")
TLS_PORTS = frozenset({"443", "8443"})


class Attachment(NamedTuple):
    """A parentRef: its Gateway, if that exists, the listeners that it refers to, and those of them that admit it."""

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
        for listener in get_path(gateway, "spec.listeners[]")
        if reference.get("sectionName", listener["name"]) == listener["name"]
        and reference.get("port", listener["port"]) == listener["port"]
    ]
    admitting = [one for one in meant if gateway and _admits(inventory, gateway, one, namespace)]
    return Attachment(route, reference, gateway, meant, admitting)


def _admits(inventory: Inventory, gateway: Manifest, listener: Manifest, namespace: str) -> bool:
    admitted = first(listener, "allowedRoutes.namespaces", {})
    if admitted.get("from", "Same") == "Selector":
        return matches(admitted["selector"], inventory.namespaces.get(namespace, {}))
    return admitted.get("from", "Same") == "All" or namespace == namespace_of(gateway)


def attachments(inventory: Inventory) -> Iterator[tuple[Manifest, str, Attachment]]:
    for route in inventory.of(*ROUTES):
        for reference in get_path(route, "spec.parentRefs[]"):
            yield route, "", attach(inventory, route, reference, namespace_of(route))


@every(attachments)
def admission(_: Inventory, one: Attachment) -> Iterator[str]:
    """The listener rejects routes of that namespace; only its allowedRoutes can admit them, not a ReferenceGrant."""
    if one.gateway and not one.admitting:
        yield f"{name(one.gateway)}: no selected listener admits routes of namespace {namespace_of(one.route)}"


@every(attachments)
def section_name(_: Inventory, one: Attachment) -> Iterator[str]:
    """The route is also served over plain HTTP: passwords and cookies are sent unencrypted."""
    if "sectionName" not in one.reference and one.protocols > {"HTTP"}:
        yield "parentRefs has no sectionName, and the gateway also has a listener without TLS"


@every(attachments)
def plain_route(_: Inventory, one: Attachment) -> Iterator[str]:
    """A user who types the address without https sends requests to the service unencrypted."""
    secured = "HTTPS" in get_path(one.gateway, "spec.listeners[].protocol")
    if secured and one.protocols == {"HTTP"} and any(get_path(one.route, "spec.rules[].backendRefs[]")):
        yield "routes requests from a listener without TLS to a Service"


@every(attachments)
def hostname(_: Inventory, one: Attachment) -> Iterator[str]:
    """A host that does not match the listener's is silently dropped from the route, and requests for it get 404."""
    for host in get_path(one.route, "spec.hostnames[]"):
        if one.admitting and not any(fnmatchcase(host, each.get("hostname", host)) for each in one.admitting):
            yield f"no listener of this route has the host {host}"


@every(of("Gateway"))
def redirect(inventory: Inventory, gateway: Manifest) -> Iterator[str]:
    """A user who types the address without https gets no page, or gets it unencrypted."""
    redirecting = [
        listener
        for route, _, one in attachments(inventory)
        if one.gateway is gateway and "https" in get_path(route, "spec.rules[].filters[].requestRedirect.scheme")
        for listener in one.admitting
    ]
    for listener in get_path(gateway, "spec.listeners[]"):
        secured = "HTTPS" in get_path(gateway, "spec.listeners[].protocol")
        if listener["protocol"] == "HTTP" and secured and listener not in redirecting:
            yield f"listener {listener['name']}: no route redirects to https"


@every(attachments)
def redirect_hostnames(_: Inventory, one: Attachment) -> Iterator[str]:
    """NGINX creates a separate server for the ACME solver's host, without the redirect: http then answers 404."""
    redirects = "https" in get_path(one.route, "spec.rules[].filters[].requestRedirect.scheme")
    if redirects and not any(get_path(one.route, "spec.hostnames[]")):
        yield "redirects to https but lists no hostnames"


@every(of("NginxProxy"))
def graceful_stop(_: Inventory, one: Manifest) -> Iterator[str]:
    """The data plane's entrypoint stops NGINX fast on TERM: each replaced pod cuts off its requests."""
    if "nginx -s quit" not in str(first(one, "spec.kubernetes.deployment.container.lifecycle.preStop", "")):
        yield "its preStop hook does not let NGINX finish its requests (nginx -s quit)"


@every(links("backend"))
def backend_tls(inventory: Inventory, link: Reference) -> Iterator[str]:
    """The service redirects plain HTTP to https in a loop, or rejects plain HTTP on its TLS port."""
    offered = TLS_PORTS & (inventory.keys(*link.target) or frozenset()) if link.source["kind"] == "HTTPRoute" else set()
    policies = (target for one in inventory.of("BackendTLSPolicy") for _, target, _ in references(one, "reference"))
    if offered and not offered & {*link.keys}:
        yield f"uses port {', '.join(link.keys)} of {link}, which offers TLS on {min(offered)}"
    elif offered and link.target not in policies:
        yield f"no BackendTLSPolicy makes the gateway use TLS to {link}"


crossings = links("backend", "listener-certificate")
"""References that need a ReferenceGrant if they cross namespaces."""


def grants(inventory: Inventory, link: Reference) -> Iterator[Manifest]:
    """Yield the ReferenceGrants that allow a reference to cross namespaces."""
    kind, namespace, named = link.target
    source = (link.source["kind"], namespace_of(link.source))
    for one in inventory.of("ReferenceGrant") if namespace != namespace_of(link.source) else ():
        given = [(each["kind"], each.get("name", named)) for each in get_path(one, "spec.to[]")]
        taken = [(each["kind"], each["namespace"]) for each in get_path(one, "spec.from[]")]
        if namespace_of(one) == namespace and (kind, named) in given and source in taken:
            yield one


@every(crossings)
def grant(inventory: Inventory, link: Reference) -> Iterator[str]:
    """The gateway does not follow a reference into a namespace without a ReferenceGrant, and answers 500."""
    if link.target[1] != namespace_of(link.source) and not any(grants(inventory, link)):
        yield f"refers to {link}, but no ReferenceGrant there allows it"


@every(of("ReferenceGrant"))
def unused_grant(inventory: Inventory, one: Manifest) -> Iterator[str]:
    """An unused permission stays open to misuse."""
    if not any(one is used for _, _, link in crossings(inventory) for used in grants(inventory, link)):
        yield "no object of the namespaces that it allows refers to anything here"


# part azure
@every(of("ClusterIssuer", "Issuer"))
def acme_solver(inventory: Inventory, issuer: Manifest) -> Iterator[str]:
    """The challenge's route is attached to https listeners or is redirected, and no certificate is ever issued."""
    for solver in get_path(issuer, "spec.acme.solvers[].http01.gatewayHTTPRoute"):
        if solver.get("serviceType") != "ClusterIP":
            yield "serviceType is not ClusterIP: the solver opens a port on every node"
        for reference in get_path(solver, "parentRefs[]"):
            found = attach(inventory, issuer, reference, reference.get("namespace", namespace_of(issuer)))
            if "sectionName" not in reference:
                yield "the solver's parentRef has no sectionName"
            elif found.protocols != {"HTTP"}:
                yield f"the solver's sectionName {reference['sectionName']} is not an HTTP listener that admits it"


@every(of("ClusterIssuer", "Issuer"))
def acme_staging(inventory: Inventory, issuer: Manifest) -> Iterator[str]:
    """Let's Encrypt limits certificates per week; a few mistakes can exhaust the limit, and https is down for days."""
    servers = list(get_path([*inventory.of("ClusterIssuer", "Issuer")], "[].spec.acme.server"))
    if "letsencrypt" in first(issuer, "spec.acme.server", "") and not any("staging" in server for server in servers):
        yield "no issuer uses the staging server, which should be tried first"


# end azure
def fields(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of the fields that a policy sets."""
    for key, one in value.items() if isinstance(value, dict) else ():
        if key not in {"targetRef", "targetRefs"}:
            yield from fields(one, f"{path}{key}.") if isinstance(one, dict) else (f"{path}{key}",)


@rule
def policy_overlap(inventory: Inventory) -> Findings:
    """NGINX Gateway Fabric rejects the policy (TargetConflict): its limits and timeouts do not apply."""
    setters: dict[tuple[str, ...], Manifest] = {}
    seen: dict[tuple[str, ...], Manifest] = {}
    ruled = set()
    for policy in inventory.objects:
        if policy["apiVersion"].startswith("gateway.nginx.org/") and "Policy" in policy["kind"]:
            for _, target, _ in references(policy, "reference"):
                ruled.add(target)
                # Policies that set different fields are merged.
                for field in fields(policy["spec"]):
                    other = setters.setdefault((policy["kind"], *target, field), policy)
                    if other is not policy:
                        yield policy, f"{name(other)} also sets {field} of the same target"
    for route, _, one in attachments(inventory):
        for host in get_path(route, "spec.hostnames[]"):
            for path in get_path(route, "spec.rules[].matches[].path.value"):
                other = seen.setdefault((one.reference.get("sectionName", ""), host, path), route)
                pair = {(each["kind"], namespace_of(each), each["metadata"]["name"]) for each in (route, other)}
                if other is not route and pair & ruled:
                    yield route, f"shares {host}{path} with {name(other)}, and a policy targets one of them"
