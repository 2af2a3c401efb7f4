"""The health rule for Applications, run by Lua 5.1 as Argo CD runs it, against states as Argo CD records them."""

from pathlib import Path
from typing import Any

import pytest
from lupa.lua51 import LuaRuntime

from tools.lint.manifests import ROOT, read

(SETTINGS,) = read(Path(ROOT / "platform/argocd/configmap-argocd-cm.yaml").read_text(encoding="utf-8"))
RULE = SETTINGS["data"]["resource.customizations.health.argoproj.io_Application"]


def judge(status: dict[str, Any] | None) -> tuple[str, str]:
    """Status and message that the rule gives an Application in that state."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    lua.globals().obj = lua.table_from({} if status is None else {"status": status}, recursive=True)
    health = lua.execute(RULE)
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
