"""The arithmetic of time: each layer waits a little longer than the one behind it, in code, gateway and compose."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lint.environment import of_the_service
from lint.inventory import Inventory, dig, first, space
from lint.manifests import Finding, Manifest, read
from lint.rules import Wrong, rule, why
from lint.service import is_service, service

GATEWAYS_DEFAULT = 60.0
"""What nginx waits where nothing is said."""


def seconds(text: Any) -> float:
    """A duration such as 1m30s, 500ms or 4; raises `ValueError` for anything else."""
    parts = re.findall(r"([0-9.]+)(ms|s|m|h|)", str(text))
    if not parts or "".join(map("".join, parts)) != str(text):
        raise ValueError(f"{text} is no duration")
    return sum(float(number) * {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)


def find_unordered(*limits: tuple[str, float]) -> Iterator[str]:
    """Each limit must be below the next; the last two of a sentence that says so."""
    for (name, value), (next_name, next_value) in itertools.pairwise(limits):
        if not value < next_value:
            yield f"{name} ({value:g} s) must be below {next_name} ({next_value:g} s)"


@rule
def service_limits(inventory: Inventory) -> Wrong:
    """A try that nobody waits for any more holds a connection, and the answer comes from the wrong layer."""
    code = service()
    for pod, container, _ in of_the_service(inventory):
        if container.get("ports"):
            for limits in (
                (("gate", code.gate_timeout), ("command", code.command_timeout), ("retry budget", code.retry_budget)),
                (("statement", code.statement_timeout), ("command", code.command_timeout)),
                (
                    ("connect and command", code.connect_timeout + code.command_timeout),
                    ("retry budget", code.retry_budget),
                ),
                (
                    ("body", code.body_deadline),
                    ("retry budget", code.retry_budget),
                    ("request deadline", code.request_deadline),
                ),
            ):
                for problem in find_unordered(*limits):
                    yield pod.manifest, problem


@rule
def shutdown(inventory: Inventory) -> Wrong:
    """Requests are cut off at each rollout: the pod is killed before the last of them is answered."""
    code = service()
    for pod, container, values in of_the_service(inventory):
        if container.get("ports"):
            drain = seconds(values.get("GOALS_DRAIN_SECONDS") or code.settings["GOALS_DRAIN_SECONDS"])
            pause = first(container, "lifecycle.preStop.sleep.seconds", 0)
            grace = pod.spec.get("terminationGracePeriodSeconds", 30)
            stop = pause + drain + code.request_deadline + 1
            probe = first(container, "readinessProbe", {})
            unready = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
            for limits in (
                (("keep-alive", code.keep_alive), ("drain", drain), ("grace period", grace)),
                (("readiness period times failures", unready), ("drain", drain)),
                (("pause, drain and the last request", stop), ("grace period", grace)),
            ):
                for problem in find_unordered(*limits):
                    yield pod.manifest, problem
    for proxy in inventory.of("NginxProxy"):
        pod_of = first(proxy, "spec.kubernetes.deployment", {})
        pause = first(pod_of, "container.lifecycle.preStop.sleep.seconds", 0) + code.request_deadline
        for problem in find_unordered(
            ("pause and the last request", pause),
            ("grace period", first(pod_of, "pod.terminationGracePeriodSeconds", 30)),
        ):
            yield proxy, problem


def _leads_to_service(inventory: Inventory, namespace: str, names: set[str]) -> bool:
    """Tell whether one of these Services or routes leads to pods of the service."""
    for route in inventory.of("HTTPRoute"):
        if space(route) == namespace and route["metadata"]["name"] in names:
            names = names | set(dig(route, "spec.rules[].backendRefs[].name"))
    chosen = [
        {"matchLabels": first(one, "spec.selector", {})}
        for one in inventory.of("Service")
        if space(one) == namespace and one["metadata"]["name"] in names
    ]
    serving = [pod for pod, container, _ in of_the_service(inventory) if container in pod.spec["containers"]]
    return any(pod in serving for one in chosen for pod in inventory.select(one, namespace))


POLICIES = {
    "ClientSettingsPolicy": [("spec.body.timeout", False, "request_deadline")],
    "ProxySettingsPolicy": [
        ("spec.timeout.read", True, "request_deadline"),
        ("spec.timeout.send", True, "request_deadline"),
    ],
    "UpstreamSettingsPolicy": [("spec.keepAlive.timeout", False, "keep_alive")],
}
"""What a policy of the gateway limits, whether that must be above the service's own limit, and which one that is."""

NGINX = [
    (r"upstream\s+\S+\s*\{([^}]*)\}", r"keepalive_timeout\s+([^;\s]+)", False, "keep_alive"),
    (r"((?s:.*))", r"proxy_read_timeout\s+([^;\s]+)", True, "request_deadline"),
]
"""The same for nginx's own configuration: the block, the directive in it, above or below, and the service's limit."""


def _compare(what: str, value: float, above: bool, limit: str) -> Iterator[str]:  # noqa: FBT001  a column of the tables
    pair = [(what, value), (limit.replace("_", " "), float(getattr(service(), limit)))]
    return find_unordered(*(reversed(pair) if above else pair))


@rule
def gateway_limits(inventory: Inventory) -> Wrong:
    """The gateway uses a connection that is just being closed, or answers 504 in the service's place."""
    for policy in inventory.of(*POLICIES):
        targets = {*dig(policy, "spec.targetRefs[].name"), *dig(policy, "spec.targetRef.name")}
        for path, above, limit in (
            POLICIES[policy["kind"]] if _leads_to_service(inventory, space(policy), targets) else ()
        ):
            for problem in _compare(path, seconds(first(policy, path, GATEWAYS_DEFAULT)), above, limit):
                yield policy, problem
    ruled = {one for policy in inventory.of("UpstreamSettingsPolicy") for one in dig(policy, "spec.targetRefs[].name")}
    for route in inventory.of("HTTPRoute"):
        for name in set(dig(route, "spec.rules[].backendRefs[].name")) - ruled:
            if _leads_to_service(inventory, space(route), {name}):
                yield (
                    route,
                    f"no UpstreamSettingsPolicy keeps idle connections to {name} below the service's keep-alive",
                )


def find_in_compose(root: Path) -> Iterator[Finding]:
    """The laptop's gateway and the cluster's behave differently: what is tried in one breaks in the other."""
    file = root / "compose.yaml"
    if file.is_file():
        (compose,) = read(file.read_text(encoding="utf-8")) or [{}]
        for what, problem in [*_stopped_early(compose), *_proxied(root, compose)]:
            yield Finding(file.name, what, problem, *why("compose", find_in_compose))


def _stopped_early(compose: Manifest) -> Iterator[tuple[str, str]]:
    ours = {key: one for key, one in compose.get("services", {}).items() if is_service(str(one.get("image", key)))}
    serving = {key: one for key, one in ours.items() if "migrate" not in str(one.get("command"))}
    if not serving:
        yield "services", "none runs the image goals, so its limits cannot be checked"
    for key, one in serving.items():
        given = one.get("environment", {})
        given = dict(item.split("=", 1) for item in given) if isinstance(given, list) else given
        stated = str(given.get("GOALS_DRAIN_SECONDS") or service().settings["GOALS_DRAIN_SECONDS"])
        stop = seconds(re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", stated)) + service().request_deadline + 1
        grace = seconds(one.get("stop_grace_period", 10))
        for problem in find_unordered(("drain and the last request", stop), ("stop_grace_period", grace)):
            yield key, problem


def _proxied(root: Path, compose: Manifest) -> Iterator[tuple[str, str]]:
    for key, one in compose.get("services", {}).items():
        image = str(one.get("image", "")) + str(one.get("build", ""))
        if "nginx" not in image or "exporter" in image:
            continue
        text = "\n".join(_mounted(root, compose, one))
        if "upstream" not in text:
            yield key, "no file it mounts has an upstream, so its limits cannot be checked"
            continue
        for block, directive, above, limit in NGINX:
            for each in re.findall(block, text):
                found = re.findall(directive, each) or [str(GATEWAYS_DEFAULT)]
                for problem in (
                    said
                    for value in found
                    for said in _compare(directive.partition("\\")[0], seconds(value), above, limit)
                ):
                    yield key, problem


def _mounted(root: Path, compose: Manifest, one: Manifest) -> Iterator[str]:
    """The texts that a service of compose is given as volumes or configs."""
    for each in one.get("configs", ()):
        config = compose["configs"][each["source"] if isinstance(each, dict) else each]
        yield str(config.get("content", ""))
        yield from _texts(root / config.get("file", "nowhere"))
    for each in one.get("volumes", ()):
        yield from _texts(root / (each.get("source", "nowhere") if isinstance(each, dict) else each.partition(":")[0]))


def _texts(path: Path) -> list[str]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]
