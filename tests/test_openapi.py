"""The OpenAPI document tells the truth: Schemathesis tries to prove the opposite, with every check it has."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx2
import jsonschema_rs
import pytest
import schemathesis
from anyio import to_thread
from schemathesis.engine import StopReason, events, from_schema
from schemathesis.engine.run import PhaseName

from goals import api, app
from goals.openapi import DOCUMENT
from tests.conftest import Service


async def test_the_document_is_served_at_the_root_and_beside_the_api(client: httpx2.AsyncClient) -> None:
    for target in ("/openapi.json", "/api/v1/openapi.json"):
        response = await client.get(target)
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        assert response.json() == DOCUMENT


def test_every_route_of_the_api_is_described_and_no_other() -> None:
    served = {
        (route.path, method.lower())
        for route in app.PUBLIC_ROUTES
        if route.path.startswith(api.ROOT)
        for method in route.methods or ()
        if method != "HEAD"
    }
    described = {
        (path, method) for path, methods in DOCUMENT["paths"].items() for method in methods if method != "parameters"
    }
    assert described == served


def test_the_schemas_are_json_schema() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"})


CONFIGURATION = {
    "generation": {"max-examples": 15, "deterministic": True},
    "continue-on-failure": True,
    # Besides what counts as taken: an If-Match that does not hold is a wish that cannot be granted, not bad data.
    "checks": {
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "3xx", "401", "403", "404", "409", "412", "429", "5xx"]
        }
    },
}


@pytest.fixture
def _fresh_keys() -> Iterator[None]:
    """Give each creation a key of its own: one that has made a goal of another name is rightly refused."""

    @schemathesis.hook
    def before_call(_context: schemathesis.HookContext, case: schemathesis.Case[Any], _kwargs: object) -> None:
        try:
            UUID(case.headers.get("Idempotency-Key"))
        except (AttributeError, TypeError, ValueError):
            return
        case.headers["Idempotency-Key"] = str(uuid4())

    yield
    schemathesis.hooks.unregister(before_call)


def explore(url: str) -> tuple[set[PhaseName], int, list[str]]:
    """Run all phases against the service: those that ran, how many requests they made, and what was wrong."""
    config = schemathesis.Config.from_dict(CONFIGURATION)
    schema = schemathesis.openapi.from_url(url, config=config)
    phases, requests, faults = set(), 0, []
    for event in from_schema(schema).execute():
        assert not isinstance(event, (events.NonFatalError, events.FatalError)), event
        if isinstance(event, events.ScenarioFinished):
            phases.add(event.phase)
            requests += len(event.recorder.interactions)
            faults += [
                f"{event.recorder.label}: {check.name}: {check.failure_info.failure}"
                for checks in event.recorder.checks.values()
                for check in checks
                if check.failure_info is not None
            ]
    assert isinstance(event, events.EngineFinished)
    assert event.stop_reason is StopReason.COMPLETED
    return phases, requests, faults


@pytest.mark.usefixtures("database", "_fresh_keys")
async def test_schemathesis_finds_no_request_that_the_document_does_not_foretell(service: Service) -> None:
    phases, requests, faults = await to_thread.run_sync(explore, f"http://127.0.0.1:{service.port}/openapi.json")
    assert faults == []
    assert {phase.value for phase in phases} >= {"examples", "coverage", "fuzzing", "stateful"}
    assert requests > 100
