"""Routes, listeners, grants, policies and certificates: who is let in where, and what answers there."""

from collections.abc import Iterator
from typing import NamedTuple

from lint.inventory import Inventory, annotation, dig, first, matches, space
from lint.manifests import Manifest, name
from lint.rules import Wrong, rule

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


def attachments(inventory: Inventory) -> Iterator[Attachment]:
    for route in inventory.of(*ROUTES):
        for reference in dig(route, "spec.parentRefs[]"):
            yield attach(inventory, route, reference, space(route))


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


@rule
def parent(inventory: Inventory) -> Wrong:
    """The route belongs to no gateway, and its address answers 404."""
    for route, reference, gateway, meant, _ in attachments(inventory):
        where = f"{reference.get('namespace', space(route))}/{reference['name']}"
        if gateway is None:
            yield route, f"there is no Gateway {where}"
        elif not meant:
            yield route, f"Gateway {where} has no listener {reference.get('sectionName', reference.get('port'))}"


@rule
def admission(inventory: Inventory) -> Wrong:
    """The listener refuses routes of that namespace; only its allowedRoutes consents, not a ReferenceGrant."""
    for route, _, gateway, meant, admitting in attachments(inventory):
        if gateway and meant and not admitting:
            yield route, f"{name(gateway)}: no listener it means admits routes of namespace {space(route)}"


@rule
def section_name(inventory: Inventory) -> Wrong:
    """The route is served over plain http too: passwords and cookies travel in the clear."""
    for route, reference, _, _, admitting in attachments(inventory):
        protocols = {listener["protocol"] for listener in admitting}
        if "sectionName" not in reference and protocols > {"HTTP"}:
            yield route, "parentRefs has no sectionName, and the gateway listens without TLS as well"


@rule
def plain_route(inventory: Inventory) -> Wrong:
    """Whoever types the address without https talks to the service in the clear."""
    for route, _, gateway, _, admitting in attachments(inventory):
        secured = any(one["protocol"] == "HTTPS" for one in dig(gateway, "spec.listeners[]"))
        if (
            secured
            and {one["protocol"] for one in admitting} == {"HTTP"}
            and any(dig(route, "spec.rules[].backendRefs[]"))
        ):
            yield route, "leads from a listener without TLS to a Service"


@rule
def hostname(inventory: Inventory) -> Wrong:
    """A host outside the listener's is dropped from the route in silence, and answers 404."""
    for route, _, _, _, admitting in attachments(inventory):
        for host in dig(route, "spec.hostnames[]"):
            if admitting and not any(_covers(listener.get("hostname", host), host) for listener in admitting):
                yield route, f"no listener it is attached to has the host {host}"


def _covers(pattern: str, host: str) -> bool:
    return pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))


@rule
def redirect(inventory: Inventory) -> Wrong:
    """Whoever types the address without https gets nothing, or the page in the clear."""
    redirecting = {
        (id(gateway), listener["name"])
        for route, _, gateway, _, admitting in attachments(inventory)
        for listener in admitting
        if "https" in dig(route, "spec.rules[].filters[].requestRedirect.scheme")
    }
    for gateway in inventory.of("Gateway"):
        listeners = gateway["spec"]["listeners"]
        for listener in listeners:
            secured = any(one["protocol"] == "HTTPS" for one in listeners)
            if listener["protocol"] == "HTTP" and secured and (id(gateway), listener["name"]) not in redirecting:
                yield gateway, f"listener {listener['name']}: no route there redirects to https"


@rule
def backend(inventory: Inventory) -> Wrong:
    """The gateway answers 500: it has nowhere to send the request."""
    for route in inventory.of(*ROUTES):
        for reference in dig(route, "spec.rules[].backendRefs[]"):
            namespace = reference.get("namespace", space(route))
            service = inventory.get("Service", namespace, reference["name"])
            if service is None:
                yield route, f"there is no Service {namespace}/{reference['name']}"
            elif inventory.port(service, reference.get("port", 0)) is None:
                yield route, f"{name(service)} has no port {reference.get('port')}"


@rule
def backend_tls(inventory: Inventory) -> Wrong:
    """The service answers http with a redirect to https, round and round, or https is spoken to by http and refused."""
    secured = {
        (space(one), target["name"])
        for one in inventory.of("BackendTLSPolicy")
        for target in dig(one, "spec.targetRefs[]")
    }
    for route in inventory.of("HTTPRoute"):
        for reference in dig(route, "spec.rules[].backendRefs[]"):
            namespace = reference.get("namespace", space(route))
            service = inventory.get("Service", namespace, reference["name"])
            offered = TLS_PORTS & set(dig(service, "spec.ports[].port"))
            if offered and reference.get("port") not in offered:
                yield (
                    route,
                    f"goes to port {reference.get('port')} of {reference['name']}, which has TLS on {min(offered)}",
                )
            elif offered and (namespace, reference["name"]) not in secured:
                yield route, f"no BackendTLSPolicy makes the gateway speak TLS to {namespace}/{reference['name']}"


@rule
def backend_name(inventory: Inventory) -> Wrong:
    """The gateway refuses the backend's certificate and answers 502."""
    for policy in inventory.of("BackendTLSPolicy"):
        host = policy["spec"]["validation"]["hostname"]
        for reference in dig(policy, "spec.validation.caCertificateRefs[]"):
            for certificate in inventory.of("Certificate"):
                made = (space(certificate), certificate["spec"]["secretName"])
                if made == (space(policy), reference["name"]) and host not in dig(certificate, "spec.dnsNames[]"):
                    yield policy, f"expects the name {host}, which {name(certificate)} does not have"


@rule
def argocd_insecure(inventory: Inventory) -> Wrong:
    """Argo CD's sessions and passwords cross the cluster's network in the clear."""
    for settings in inventory.of("ConfigMap"):
        if first(settings, "data", {}).get("server.insecure") == "true":
            yield settings, "server.insecure turns off TLS"


def crossings(inventory: Inventory) -> Iterator[tuple[Manifest, str, str, str]]:
    """References that need a ReferenceGrant where they cross namespaces: from, kind, namespace, name."""
    for one in inventory.of(*ROUTES):
        for reference in dig(one, "spec.rules[].backendRefs[]"):
            yield one, reference.get("kind", "Service"), reference.get("namespace", space(one)), reference["name"]
    for one in inventory.of("Gateway"):
        for reference in dig(one, "spec.listeners[].tls.certificateRefs[]"):
            yield one, reference.get("kind", "Secret"), reference.get("namespace", space(one)), reference["name"]


def _grants(inventory: Inventory, source: Manifest, kind: str, namespace: str, target: str) -> Iterator[Manifest]:
    for grant in inventory.of("ReferenceGrant"):
        given = (one for one in dig(grant, "spec.to[]") if one["kind"] == kind and one.get("name", target) == target)
        taken = ((one["kind"], one["namespace"]) for one in dig(grant, "spec.from[]"))
        if space(grant) == namespace and any(given) and (source["kind"], space(source)) in taken:
            yield grant


@rule
def grant(inventory: Inventory) -> Wrong:
    """The gateway refuses to follow a reference into a namespace that has not consented, and answers 500."""
    for source, kind, namespace, target in crossings(inventory):
        if namespace != space(source) and not any(_grants(inventory, source, kind, namespace, target)):
            yield source, f"refers to {kind} {namespace}/{target}, and no ReferenceGrant there allows it"


@rule
def unused_grant(inventory: Inventory) -> Wrong:
    """A door that nobody uses stays open for whoever finds it."""
    used = {
        id(one)
        for crossing in crossings(inventory)
        if crossing[2] != space(crossing[0])
        for one in _grants(inventory, *crossing)
    }
    for one in inventory.of("ReferenceGrant"):
        if id(one) not in used:
            yield one, "no object of the namespaces it lets in refers to anything here"


@rule
def listener_certificate(inventory: Inventory) -> Wrong:
    """The listener never comes up: it has no certificate."""
    for gateway in inventory.of("Gateway"):
        for listener in dig(gateway, "spec.listeners[]"):
            for reference in dig(listener, "tls.certificateRefs[]"):
                if (reference.get("namespace", space(gateway)), reference["name"]) not in inventory.secrets:
                    yield gateway, f"listener {listener['name']}: nothing makes the Secret {reference['name']}"


@rule
def gateway_issuer(inventory: Inventory) -> Wrong:
    """cert-manager makes no certificate, and https never answers."""
    for gateway in inventory.of("Gateway"):
        for key, kind in (("cluster-issuer", "ClusterIssuer"), ("issuer", "Issuer")):
            issuer = annotation(gateway, f"cert-manager.io/{key}")
            if issuer and inventory.get(kind, space(gateway), issuer) is None:
                yield gateway, f"there is no {kind} {issuer}"


@rule
def acme_solver(inventory: Inventory) -> Wrong:
    """The challenge's route meets https listeners or a redirect, and no certificate is ever issued."""
    for issuer in inventory.of("ClusterIssuer", "Issuer"):
        for solver in dig(issuer, "spec.acme.solvers[].http01.gatewayHTTPRoute"):
            if solver.get("serviceType") != "ClusterIP":
                yield issuer, "serviceType is not ClusterIP: the solver opens a port on every node"
            for reference in dig(solver, "parentRefs[]"):
                found = attach(inventory, issuer, reference, reference.get("namespace", space(issuer)))
                if "sectionName" not in reference:
                    yield issuer, "the solver's parentRef has no sectionName"
                elif {listener["protocol"] for listener in found.admitting} != {"HTTP"}:
                    yield (
                        issuer,
                        f"the solver's sectionName {reference['sectionName']} is no plain listener that admits it",
                    )


@rule
def acme_staging(inventory: Inventory) -> Wrong:
    """Let's Encrypt allows few certificates a week; the first mistakes use them up, and https is down for days."""
    issuers = list(inventory.of("ClusterIssuer", "Issuer"))
    if not any(STAGING in server for one in issuers for server in dig(one, "spec.acme.server")):
        for issuer in issuers:
            if any("letsencrypt" in server for server in dig(issuer, "spec.acme.server")):
                yield issuer, "there is no issuer of the staging server to try first"


@rule
def policy_overlap(inventory: Inventory) -> Wrong:
    """NGINX Gateway Fabric refuses the policy (TargetConflict): limits and time-outs are not in force."""
    policies = [
        one
        for one in inventory.objects
        if one["apiVersion"].startswith("gateway.nginx.org/") and "Policy" in one["kind"]
    ]
    targets: dict[tuple[str, str, str, str], Manifest] = {}
    for policy in policies:
        for target in [*dig(policy, "spec.targetRef"), *dig(policy, "spec.targetRefs[]")]:
            key = (policy["kind"], space(policy), target["kind"], target["name"])
            if targets.setdefault(key, policy) is not policy:
                yield policy, f"{name(targets[key])} of the same kind has the same target"
    seen: dict[tuple[str, str, str], Manifest] = {}
    for route, reference, _, _, _ in attachments(inventory):
        for host in dig(route, "spec.hostnames[]"):
            for path in dig(route, "spec.rules[].matches[].path.value"):
                other = seen.setdefault((reference.get("sectionName", ""), host, path), route)
                if other is not route and any(_targeting(policies, route, other)):
                    yield route, f"shares {host}{path} with {name(other)}, and one of them has a policy"


def _targeting(policies: list[Manifest], *routes: Manifest) -> Iterator[Manifest]:
    wanted = {(space(one), one["metadata"]["name"]) for one in routes}
    for policy in policies:
        for target in [*dig(policy, "spec.targetRef"), *dig(policy, "spec.targetRefs[]")]:
            if target["kind"] in ROUTES and (space(policy), target["name"]) in wanted:
                yield target
