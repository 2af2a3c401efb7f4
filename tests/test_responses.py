"""One shape for every error: RFC 9457 under `/api`, a page elsewhere, and never a word about internals."""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx2
import pytest
from sqlalchemy import text

from goals.database import Database
from goals.errors import ConfigurationError, GoalChangedError, GoalRemovedError, GoalsError, TemporaryError
from goals.responses import _STATUSES, _WORDS, answer
from goals.schemas import Problem
from goals.settings import Settings
from tests.conftest import LIMITS, ROOT, WIDE, serving, speaking_to

GOALS = "/api/v1/goals"
ONE = f"{GOALS}/1"
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
ETAG = {"if-match": '"other"'}


class Invalid(NamedTuple):
    """A request that cannot be granted, and the status and fields of its answer."""

    method: str
    target: str
    status: int
    fields: tuple[str, ...] = ()
    headers: Mapping[str, str] = MappingProxyType({})
    body: str = ""


NAME = '{"goal_name": "a"}'
WRONG = [
    Invalid("GET", f"{GOALS}?limit=0", 422, ("limit",)),
    Invalid("GET", f"{GOALS}?limit=x&before=y&other=z", 422, ("before", "limit", "other")),
    Invalid("GET", f"{GOALS}?before=1&before=2&limit=1&limit=1", 422, ("before", "limit")),
    Invalid("GET", f"{GOALS}?before=%zz", 400),
    Invalid("GET", f"{GOALS}?before={'1' * 2048}", 414),
    Invalid("GET", GOALS, 431, headers={"x": "a" * 20_000}),
    Invalid("PUT", GOALS, 405),
    Invalid("OPTIONS", GOALS, 405),
    Invalid("POST", GOALS, 415, body=NAME),
    Invalid("POST", GOALS, 415, headers={"content-type": "text/plain"}, body=NAME),
    Invalid("POST", GOALS, 415, headers=JSON | {"content-encoding": "gzip"}, body=NAME),
    Invalid("POST", GOALS, 415, headers={"content-type": "application/json; charset=utf-16"}, body=NAME),
    Invalid("POST", GOALS, 403, headers=JSON | {"origin": "https://evil.example"}, body=NAME),
    Invalid("POST", GOALS, 413, headers=JSON, body=" " * (LIMITS.body_size + 1)),
    Invalid("POST", GOALS, 400, headers=JSON),
    Invalid("POST", GOALS, 400, headers=JSON, body="{"),
    Invalid("POST", GOALS, 400, headers=JSON, body="[" * 10_000),
    Invalid("POST", GOALS, 400, headers=JSON, body='{"goal_name": NaN}'),
    Invalid("POST", GOALS, 400, headers=JSON, body='{"goal_name": "\\ud800"}'),
    Invalid("POST", GOALS, 400, headers=JSON, body='{"goal_name": ' + "9" * 5000 + "}"),
    Invalid("POST", GOALS, 400, headers=JSON, body="\ufeff" + NAME),
    Invalid("POST", GOALS, 422, ("goal_name",), JSON, '{"goal_name": "a", "goal_name": "b"}'),
    Invalid("POST", GOALS, 422, ("body",), JSON, "[]"),
    Invalid("POST", GOALS, 422, ("body",), JSON, "null"),
    Invalid("POST", GOALS, 422, ("goal_name",), JSON, "{}"),
    Invalid("POST", GOALS, 422, ("goal_name",), JSON, '{"goal_name": 1}'),
    Invalid("POST", GOALS, 422, ("goal_name", "id", "\u2028"), JSON, '{"goal_name": "", "id": 1, "\u2028": {}}'),
    Invalid("POST", GOALS, 422, ("Idempotency-Key",), JSON | {"idempotency-key": "x"}, NAME),
    Invalid("GET", f"{GOALS}/x", 422, ("goal_id",)),
    Invalid("GET", ONE, 404),
    Invalid("GET", f"{GOALS}/%C3%A9", 422, ("goal_id",)),
    Invalid("POST", ONE, 405),
    Invalid("PATCH", f"{GOALS}/01", 422, ("goal_id",), JSON, NAME),
    Invalid("PATCH", ONE, 404, headers=JSON, body=NAME),
    Invalid("PATCH", ONE, 404, headers=JSON | ETAG, body=NAME),
    Invalid("PATCH", ONE, 415, body=NAME),
    Invalid("PATCH", ONE, 422, ("goal_name",), JSON, '{"goal_name": "\\u0000"}'),
    Invalid("DELETE", f"{GOALS}/-1", 422, ("goal_id",)),
    Invalid("DELETE", ONE, 404),
    Invalid("DELETE", ONE, 403, headers={"sec-fetch-site": "cross-site"}),
    Invalid("GET", "/api/v1/nowhere", 404),
    Invalid("GET", "/api/%00", 404),
]


def check(response: httpx2.Response, path: str, status: int, fields: tuple[str, ...] = ()) -> None:
    """RFC 9457's members, in one shape."""
    problem: dict[str, Any] = response.json()
    errors = problem.pop("errors", None)
    detail = problem.pop("detail")
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert problem == {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "instance": path,
    }
    assert detail[0].isalnum()
    assert detail.endswith(".")
    assert sorted(error["field"] for error in errors or ()) == sorted(fields)
    assert all(error["message"].endswith(".") for error in errors or ())
    assert (errors is None) == (not fields)
    assert set(problem) <= set(Problem.model_fields)


def describe(wrong: Invalid) -> str:
    return " ".join(
        [wrong.method, wrong.target[:40], str(wrong.status), str(dict(wrong.headers))[:60], wrong.body[:30]]
    )


@pytest.mark.parametrize("wrong", WRONG, ids=describe)
async def test_every_error_of_the_api_has_one_shape(client: httpx2.AsyncClient, wrong: Invalid) -> None:
    response = await client.request(wrong.method, wrong.target, headers=wrong.headers, content=wrong.body.encode())
    check(response, wrong.target.partition("?")[0], wrong.status, wrong.fields)


async def test_a_goal_that_has_changed_and_a_key_that_is_taken_have_the_same_shape(client: httpx2.AsyncClient) -> None:
    key = {"idempotency-key": "01890a5d-ac96-774b-bcce-b302099a8057"}
    await client.post(GOALS, json={"goal_name": "a"}, headers=key)
    check(await client.post(GOALS, json={"goal_name": "b"}, headers=key), GOALS, 422)
    check(await client.patch(ONE, json={"goal_name": "b"}, headers=ETAG), ONE, 412)


async def test_a_database_that_does_not_answer_is_503_on_every_route_that_needs_it(
    settings: Settings, database: Database
) -> None:
    async with (
        serving(settings, replace(WIDE, statement_timeout=0.2)) as service,
        speaking_to(service.port) as client,
        database.engine.execution_options(isolation_level="READ COMMITTED").begin() as locking,
    ):
        await locking.execute(text("LOCK TABLE goals"))
        problems = await asyncio.gather(
            client.get(GOALS),
            client.post(GOALS, json={"goal_name": "a"}),
            client.get(ONE),
            client.patch(ONE, json={"goal_name": "a"}),
            client.patch(ONE, json={"goal_name": "a"}, headers=ETAG),
            client.delete(ONE),
        )
        pages = await asyncio.gather(
            client.get("/"),
            client.post("/add_goal", data={"goal_name": "a"}),
            client.post("/remove_goal", data={"goal_id": 1}),
            client.post("/add_goal", data={"goal_name": ""}),
            client.get("/goals/1"),
            client.post("/goals/1", data={"goal_name": "a", "row_version": "1"}),
        )
    for response, path in zip(problems, [GOALS, GOALS, ONE, ONE, ONE, ONE], strict=True):
        check(response, path, 503)
    for response in pages:
        assert (response.status_code, response.headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert {response.headers["retry-after"] for response in (*problems, *pages)} == {"1"}


@pytest.mark.parametrize(
    ("method", "target", "status", "words"),
    [
        ("GET", "/nowhere", 404, "There is nothing at this address."),
        ("GET", "/goals/7", 404, "There is no goal 7."),
        ("DELETE", "/", 405, "This address does not support that method."),
        ("GET", "/?before=x", 422, "Go back and correct it."),
        ("POST", "/add_goal", 415, "Nothing was changed."),
    ],
)
async def test_an_error_elsewhere_is_a_page_that_leads_back(
    client: httpx2.AsyncClient, method: str, target: str, status: int, words: str
) -> None:
    response = await client.request(method, target)
    assert (response.status_code, response.headers["cache-control"]) == (status, "no-store")
    assert HTTPStatus(status).phrase not in response.text
    assert words in response.text
    assert '<a href="/">Back to the goals</a>' in response.text


def test_a_page_has_words_for_every_status_that_the_service_answers() -> None:
    source = "".join(path.read_text() for path in (ROOT / "services/goals").glob("*.py"))
    given = {HTTPStatus(int(status)) for status in re.findall(r"HTTPException\((\d+)", source)}
    assert given > {HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE}
    # These two errors come back with the form.
    domain = {status for error, status in _STATUSES.items() if error not in {GoalRemovedError, GoalChangedError}}
    others = {HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.INTERNAL_SERVER_ERROR}
    assert given | domain | others == set(_WORDS)
    assert all(advice.endswith(".") for _, advice in _WORDS.values())


@pytest.mark.parametrize("path", ["/", GOALS])
def test_of_a_failure_of_ours_nothing_is_told(path: str) -> None:
    response = answer({"path": path, "raw_path": path.encode()}, RuntimeError("secret"))
    assert response.status_code == 500
    assert b"secret" not in response.body
    assert b"Runtime" not in response.body


def test_every_error_of_the_domain_has_its_status() -> None:
    # The settings are refused before there is anyone to answer.
    assert set(GoalsError.__subclasses__()) - set(_STATUSES) == {ConfigurationError, TemporaryError}
    assert set(TemporaryError.__subclasses__()) <= set(_STATUSES)


async def test_what_a_client_makes_up_is_not_sent_back_at_length(client: httpx2.AsyncClient) -> None:
    members = {f"member {number}": 1 for number in range(800)}
    fields = "&".join(f"field{number}=" for number in range(900))
    answers = [
        await client.post(GOALS, json=members),
        await client.post(GOALS, json={"\x01" * 200 + str(number): 1 for number in range(9)}),
        await client.post(GOALS, content=json.dumps(members).replace("member 1", "member 2"), headers=JSON),
        await client.post("/remove_goal", content=fields, headers=FORM),
        await client.get(f"{GOALS}?{fields[:1900]}"),
        await client.get(f"{GOALS}?{'&'.join(f'{number}' for number in range(90))}"),
        await client.post("/remove_goal", content=f"{'&' * 5000}x={'<' * 9000}", headers=FORM),
    ]
    assert [response.status_code for response in answers] == [422] * len(answers)
    assert max(len(response.content) for response in answers) < 4096
    assert answers[0].json()["detail"].endswith("and 796 more.")
    assert len(answers[0].json()["errors"]) == 5
