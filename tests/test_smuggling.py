"""No request hides behind another: what is carried out is answered, at both ports (through gateways: tests/k8s)."""

from dataclasses import replace

import pytest
from sqlalchemy import text

from goals.database import Database
from goals.settings import Settings
from tests.conftest import LIMITS, WIDE, serving, until_ready
from tests.smuggling import SHAPES, send_all


def test_there_are_as_many_shapes_as_are_known() -> None:
    assert len(SHAPES) == 122


@pytest.mark.parametrize("public", [True, False])
async def test_a_request_behind_an_ambiguous_one_is_answered_or_not_carried_out(
    settings: Settings,
    database: Database,
    public: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    async with serving(settings, replace(WIDE, body_deadline=LIMITS.body_deadline)) as service:
        await until_ready(service)
        outcomes = await send_all(service.port if public else service.ops_port)
    added = {row.goal_name for row in await database.fetch(text("SELECT goal_name FROM goals"))}
    answered = {name for name, outcome in outcomes.items() if 303 in outcome.statuses}
    assert added == answered
    # Where the first request has an end that all agree on, the second one is a request like any other.
    assert ("length: two zeros" in added) == public
    assert added <= (set(SHAPES) if public else set())
    assert {name for name, outcome in outcomes.items() if not outcome.closed or not outcome.statuses} == set()
    statuses = {status for outcome in outcomes.values() for status in outcome.statuses}
    assert statuses <= {100, 200, 303, 400, 404, 405, 408, 413, 422, 501, 503}  # the last where PostgreSQL is slow
