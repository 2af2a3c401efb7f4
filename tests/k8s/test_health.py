"""The health rules, run by Lua 5.1 as Argo CD runs them, against states as Argo CD and the controllers record them."""

from pathlib import Path
from typing import Any

import pytest
from lupa.lua51 import LuaRuntime

from tools.lint.manifests import ROOT, read

(SETTINGS,) = read(Path(ROOT / "platform/argocd/configmap-argocd-cm.yaml").read_text(encoding="utf-8"))
RULES = "resource.customizations.health."


def judge(status: dict[str, Any] | None, kind: str = "argoproj.io_Application") -> tuple[str, str]:
    """Status and message that the rule of that kind gives an object in that state."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    known = {"metadata": {"generation": 1}} | ({} if status is None else {"status": status})
    lua.globals().obj = lua.table_from(known, recursive=True)
    health = lua.execute(SETTINGS["data"][RULES + kind])
    return health["status"], health["message"]


def state(health: str, sync: str, phase: str | None, message: str | None = None) -> dict[str, Any]:
    operation = (
        {} if phase is None else {"operationState": {"phase": phase} | ({"message": message} if message else {})}
    )
    return {"health": {"status": health}, "sync": {"status": sync}} | operation


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(None, "Progressing", id="made, and not yet looked at"),
        pytest.param({"sync": {"status": "OutOfSync"}}, "Progressing", id="no health yet"),
        pytest.param({"health": {"status": "Healthy"}}, "Progressing", id="no sync yet"),
        pytest.param(state("Missing", "OutOfSync", None), "Progressing", id="before the first sync"),
        pytest.param(
            state("Healthy", "OutOfSync", None), "Progressing", id="nothing of it is there, so nothing is unwell"
        ),
        pytest.param(
            state("Healthy", "OutOfSync", "Running"), "Progressing", id="first wave of its own is done, next runs"
        ),
        pytest.param(state("Healthy", "Synced", "Running"), "Progressing", id="hooks still run"),
        pytest.param(state("Degraded", "OutOfSync", "Running"), "Progressing", id="unwell while the sync goes on"),
        pytest.param(state("Healthy", "Synced", "Terminating"), "Progressing", id="a sync is being ended"),
        pytest.param(state("Healthy", "OutOfSync", "Succeeded"), "Progressing", id="git has moved on"),
        pytest.param(state("Healthy", "Unknown", "Succeeded"), "Progressing", id="git does not answer"),
        pytest.param(state("Healthy", "Synced", "Succeeded"), "Healthy", id="done"),
        pytest.param(state("Progressing", "Synced", "Succeeded"), "Progressing", id="pods are starting"),
        pytest.param(state("Degraded", "Synced", "Succeeded"), "Degraded", id="pods fail"),
        pytest.param(state("Degraded", "OutOfSync", "Succeeded"), "Degraded", id="pods fail, and git has moved on"),
        pytest.param(state("Missing", "OutOfSync", "Failed"), "Degraded", id="the sync failed"),
        pytest.param(state("Healthy", "OutOfSync", "Error"), "Degraded", id="the sync could not be tried"),
        pytest.param(state("Healthy", "Synced", "Failed"), "Healthy", id="an old failure, put right since"),
    ],
)
def test_only_a_finished_application_lets_the_next_wave_begin(status: dict[str, Any] | None, expected: str) -> None:
    assert judge(status)[0] == expected


def test_the_reason_is_given() -> None:
    refused = "one or more objects failed to apply"
    assert judge(state("Missing", "OutOfSync", "Failed", refused)) == ("Degraded", refused)
    assert (
        judge(state("Healthy", "OutOfSync", "Running", "waiting for healthy state"))[1] == "waiting for healthy state"
    )
    assert judge(None)[1] == "waiting for the first sync"


def condition(type_: str, status: str = "True", reason: str = "", generation: int = 1) -> dict[str, Any]:
    said = {"type": type_, "status": status, "reason": reason or type_, "message": f"{reason or type_} of {type_}"}
    return said | {"observedGeneration": generation}


LISTENER = [condition("Accepted"), condition("Conflicted", "False"), condition("Programmed"), condition("ResolvedRefs")]
UNCERTIFIED = [
    condition("Accepted", "False", "InvalidCertificateRef"),
    condition("Conflicted", "False"),
    condition("Programmed", "False", "Invalid"),
    condition("ResolvedRefs", "False", "InvalidCertificateRef"),
]
"""What NGINX Gateway Fabric 2.6.7 writes of a listener whose Secret is not there (its `conditions` package)."""


def gateway(*own: dict[str, Any], https: list[dict[str, Any]] = LISTENER) -> dict[str, Any]:
    accepted = [condition("Accepted"), condition("Programmed"), condition("ResolvedRefs")]
    listeners = [{"name": "http", "conditions": LISTENER}, {"name": "https-goals", "conditions": https}]
    return {"conditions": [*own] or accepted, "listeners": listeners}


def route(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"parents": [{"conditions": [condition("Accepted"), condition("ResolvedRefs")]}, {"conditions": conditions}]}


def scaler(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"conditions": [condition("AbleToScale"), *conditions]}


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        pytest.param("Gateway", None, "Progressing", id="gateway: not yet looked at"),
        pytest.param("Gateway", gateway(), "Healthy", id="gateway: done"),
        pytest.param("Gateway", gateway(https=UNCERTIFIED), "Progressing", id="gateway: before its certificate exists"),
        pytest.param(
            "Gateway", gateway(condition("Programmed", "False")), "Progressing", id="gateway: its pods are starting"
        ),
        pytest.param("Gateway", gateway(condition("Accepted", "False")), "Degraded", id="gateway: refused"),
        pytest.param(
            "Gateway",
            gateway(https=[condition("ResolvedRefs", "False", "RefNotPermitted")]),
            "Degraded",
            id="gateway: a Secret that it may not use",
        ),
        pytest.param(
            "Gateway",
            gateway(https=[condition("Programmed", "False", "Pending")]),
            "Progressing",
            id="gateway: a listener is being made",
        ),
        pytest.param("HTTPRoute", None, "Progressing", id="route: not yet looked at"),
        pytest.param("HTTPRoute", route(condition("Accepted")), "Healthy", id="route: done"),
        pytest.param(
            "HTTPRoute",
            route(condition("Accepted", "False", "InvalidListener")),
            "Progressing",
            id="route: before its listener has a certificate",
        ),
        pytest.param(
            "HTTPRoute",
            route(condition("Accepted", generation=0)),
            "Progressing",
            id="route: its change is not yet looked at",
        ),
        pytest.param(
            "HTTPRoute",
            route(condition("ResolvedRefs", "False", "BackendNotFound")),
            "Degraded",
            id="route: to a Service that is not there",
        ),
        pytest.param("HorizontalPodAutoscaler", None, "Progressing", id="autoscaler: not yet looked at"),
        pytest.param(
            "HorizontalPodAutoscaler", scaler(condition("ScalingLimited", "False")), "Healthy", id="autoscaler: done"
        ),
        pytest.param(
            "HorizontalPodAutoscaler",
            scaler(condition("ScalingActive", "False", "FailedGetResourceMetric")),
            "Progressing",
            id="autoscaler: before the first metrics",
        ),
        pytest.param(
            "HorizontalPodAutoscaler",
            scaler(condition("ScalingActive", "False", "InvalidSelector")),
            "Degraded",
            id="autoscaler: cannot work",
        ),
    ],
)
def test_what_is_still_to_come_fails_no_sync(kind: str, status: dict[str, Any] | None, expected: str) -> None:
    group = "autoscaling" if kind == "HorizontalPodAutoscaler" else "gateway.networking.k8s.io"
    assert judge(status, f"{group}_{kind}")[0] == expected
