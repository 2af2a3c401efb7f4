"""Rules for timeouts: each layer must wait a little longer than the one behind it, in code, gateway and compose."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.lint.inventory import Container, Inventory, first
from tools.lint.manifests import Finding, Manifest, read
from tools.lint.references import Reference, links, references
from tools.lint.rules import Findings, every, name_and_consequence, of_the_service, rule
from tools.lint.service import LIMITS, SETTINGS, is_service

ORDER = {
    "service": [
        "gate_timeout < command_timeout < retry_budget",
        "statement_timeout < command_timeout",
        "connect_timeout + command_timeout < retry_budget",
        "body_deadline < retry_budget < request_deadline < write_wait < write_deadline",
        "body_deadline + write_deadline < gateway_patience",
    ],
    "pod": [
        "keep_alive < drain < grace period",
        "readiness period times failures < drain",
        "pause + drain + body_deadline + request_deadline + 1 < grace period",
    ],
    "gateway": ["pause + gateway_patience < grace period"],
    "compose": ["drain + body_deadline + request_deadline + 1 < stop_grace_period"],
    "ClientSettingsPolicy": ["body.timeout < request_deadline"],
    "ProxySettingsPolicy": ["gateway_patience <= timeout.read <= gateway_patience", "request_deadline < timeout.send"],
    "UpstreamSettingsPolicy": ["keepAlive.timeout < keep_alive"],
    "keepalive_timeout": ["keepalive_timeout < keep_alive"],
    "proxy_read_timeout": ["gateway_patience <= proxy_read_timeout <= gateway_patience"],
}
"""Which limit must be below (`<`) or at most (`<=`) which, by their place: limits of code, fields of policies."""

NGINX = {"keepalive_timeout": r"upstream\s+\S+\s*\{([^}]*)\}", "proxy_read_timeout": r"((?s:.+))"}
"""Directives of nginx, and the blocks in which they apply."""

GATEWAYS_DEFAULT = 60.0
"""nginx's default timeout, in seconds."""

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: Any) -> float:
    """Return a duration such as 1m30s, 500ms or 4 in seconds; raise `ValueError` for anything else."""
    if re.fullmatch(r"[0-9.]+", str(text)):
        return float(text)
    if not re.fullmatch(r"([0-9.]+(ms|[smhd]))+", str(text)):
        raise ValueError(f"a duration is text such as 1m30s, 500ms or 4, not {text!r}")
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([0-9.]+)(ms|[smhd])", text))


def find_unordered(where: str, limits: Mapping[str, float]) -> Iterator[str]:
    """Compare each sum of a line with the next one; `limits` are the service's and others, by name."""

    def total(terms: str) -> float:
        return sum(float(limits.get(term, term)) for term in terms.split(" + "))

    for line in ORDER[where]:
        terms = re.split(" (<=?) ", line)
        for less, sign, more in zip(terms[::2], terms[1::2], terms[2::2], strict=False):
            if total(less) > total(more) or (sign == "<" and total(less) == total(more)):
                wanted = "below" if sign == "<" else "at most"
                yield f"{less} ({total(less):g} s) must be {wanted} {more} ({total(more):g} s)"


def drain(variables: dict[str, Any]) -> float:
    """Return how long the service drains, in seconds; for a variable of compose, use its default."""
    stated = str(variables.get("GOALS_DRAIN_SECONDS") or SETTINGS["GOALS_DRAIN_SECONDS"])
    return seconds(re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", stated))


@every(of_the_service)
def service_limits(inventory: Inventory, one: Container) -> Iterator[str]:
    """An attempt that no client waits for keeps its connection, and the response comes from the wrong layer."""
    if one.spec.get("ports"):
        yield from find_unordered("service", inventory.limits)


def stops(inventory: Inventory) -> Iterator[tuple[Manifest, str, tuple[str, dict[str, float]]]]:
    """Yield what serves requests, and the limits of its shutdown."""
    for manifest, where, (pod, spec, variables) in of_the_service(inventory):
        probe = first(spec, "readinessProbe", {})
        limits = {
            "drain": drain(variables),
            "pause": first(spec, "lifecycle.preStop.sleep.seconds", 0),
            "grace period": pod.spec.get("terminationGracePeriodSeconds", 30),
            "readiness period times failures": probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3),
        }
        if spec.get("ports"):
            yield manifest, where, ("pod", limits)
    for proxy in inventory.of("NginxProxy"):
        hook = first(proxy, "spec.kubernetes.deployment.container.lifecycle.preStop", {})
        sleep = re.search(r"\bsleep (\d+)", " ".join(first(hook, "exec.command", [])))
        pause = int(sleep[1]) if sleep else first(hook, "sleep.seconds", 0)
        grace = first(proxy, "spec.kubernetes.deployment.pod.terminationGracePeriodSeconds", 30)
        yield proxy, "", ("gateway", {"pause": pause, "grace period": grace})


@every(stops)
def shutdown(inventory: Inventory, one: tuple[str, dict[str, float]]) -> Iterator[str]:
    """Each rollout cuts off requests: the pod is killed before it has answered the last of them."""
    yield from find_unordered(one[0], {**inventory.limits, **one[1]})


def _leads_to_service(inventory: Inventory, link: Reference) -> bool:
    """Return whether a Service or a route forwards to pods of the service."""
    kind, namespace, _ = link.target
    found = inventory.get(*link.target) or {}
    if kind == "HTTPRoute":
        return any(_leads_to_service(inventory, each) for each in references(found, "backend")) if found else False
    chosen = inventory.select({"matchLabels": first(found, "spec.selector", {})}, namespace) if found else []
    return any(one.pod in chosen for one in inventory.containers if one.is_ours and one.serves)


def _fields(policy: Manifest) -> dict[str, float]:
    paths = re.findall(r"\w+\.\w+", " ".join(ORDER[policy["kind"]]))
    return {path: seconds(first(policy["spec"], path, GATEWAYS_DEFAULT)) for path in paths}


@rule
def gateway_limits(inventory: Inventory) -> Findings:
    """The gateway uses a connection that the service is closing, or answers 504 instead of the service."""
    ruled = set()
    for policy in inventory.of(*(kind for kind in ORDER if kind.endswith("Policy"))):
        targets = list(references(policy, "reference"))
        ruled |= {link.target for link in targets if policy["kind"] == "UpstreamSettingsPolicy"}
        if any(_leads_to_service(inventory, link) for link in targets):
            limits = {**inventory.limits, **_fields(policy)}
            yield from ((policy, problem) for problem in find_unordered(policy["kind"], limits))
    for route, _, link in links("backend")(inventory):
        if link.target not in ruled and _leads_to_service(inventory, link):
            yield route, f"no UpstreamSettingsPolicy limits idle connections to {link} below the service's keep-alive"


def find_in_compose(root: Path) -> Iterator[Finding]:
    """The gateways in compose and in the cluster behave differently: what works in one fails in the other."""
    file = root / "compose.yaml"
    if file.is_file():
        (compose,) = read(file.read_text(encoding="utf-8")) or [{}]
        for what, problem in [*_stopped_early(compose), *_proxied(root, compose)]:
            yield Finding(file.name, what, problem, "compose", name_and_consequence(find_in_compose)[1])


def _stopped_early(compose: Manifest) -> Iterator[tuple[str, str]]:
    services = compose.get("services", {})
    ours = {key: one for key, one in services.items() if is_service(str(one.get("image", key)))}
    serving = {key: one for key, one in ours.items() if "migrate" not in str(one.get("command"))}
    if not serving:
        yield "services", "no service uses the image goals, so its limits cannot be checked"
    for key, one in serving.items():
        given = one.get("environment", {})
        given = dict(item.split("=", 1) for item in given) if isinstance(given, list) else given
        limits = {"drain": drain(given), "stop_grace_period": seconds(one.get("stop_grace_period", 10))}
        yield from ((key, problem) for problem in find_unordered("compose", LIMITS | limits))


def _proxied(root: Path, compose: Manifest) -> Iterator[tuple[str, str]]:
    for key, one in compose.get("services", {}).items():
        image = str(one.get("image", "")) + str(one.get("build", ""))
        if "nginx" in image and "exporter" not in image:
            text = "\n".join(_mounted(root, one))
            if "upstream" not in text:
                yield key, "no mounted file has an upstream, so its limits cannot be checked"
                continue
            for directive, block in NGINX.items():
                for each in re.findall(block, text):
                    for value in re.findall(rf"{directive}\s+([^;\s]+)", each) or [GATEWAYS_DEFAULT]:
                        limit = {directive: seconds(value)}
                        yield from ((key, problem) for problem in find_unordered(directive, LIMITS | limit))


def _mounted(root: Path, one: Manifest) -> Iterator[str]:
    """Yield the texts of the files and folders that a service of compose mounts."""
    for path in (root / str(each).partition(":")[0] for each in one.get("volumes", ())):
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                yield file.read_text(encoding="utf-8", errors="replace")
