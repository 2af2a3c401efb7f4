"""The JSON API."""

from hashlib import blake2b
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from goals import store
from goals.database import Database
from goals.errors import GoalChangedError
from goals.models import Document, Found, Goal
from goals.openapi import DOCUMENT
from goals.requests import read_json
from goals.responses import JSON, STANDBY
from goals.schemas import (
    GoalBody,
    GoalChange,
    GoalListOut,
    GoalOut,
    GoalPath,
    KeyHeader,
    ListQuery,
    new_key,
    parse_fields,
    validate,
)
from goals.state import State

ROOT = "/api/v1/goals"


async def get_goals(request: Request[State]) -> Response:
    query = validate(ListQuery, parse_fields(request.scope["query_string"]))
    document = await request.state["lists"].get((query.before, query.limit))
    response = Response(document.body, headers=document.headers, media_type="application/json")
    return response if document.standby else _unless_known(request, response)


async def load_list(database: Database, key: tuple[int | None, int]) -> Document:
    """Read and serialize a list, `(before, limit)`, once for all concurrent requests for it."""
    before, limit = key
    page = await store.select_page(database, before=before, limit=limit)
    body = GoalListOut(goals=[_out(goal) for goal in page.goals]).model_dump_json().encode()
    # No ETag for a standby's answer: it may contain a change that is not acknowledged and will be undone.
    headers = dict(STANDBY) if page.standby else {"etag": _etag(body)}
    if page.more:
        headers["link"] = f'<{ROOT}?limit={limit}&before={page.goals[-1].id}>; rel="next"'
    return Document(body, headers, page.standby)


async def post_goal(request: Request[State]) -> Response:
    """Add a goal; a repeat with the same `Idempotency-Key` returns the goal that the first request added."""
    key = _read_key(request)
    body = validate(GoalBody, await read_json(request))
    goal = await request.state["writes"].add(body.model_dump(), key, body.fingerprint())
    return _represent(goal, 201, {"location": f"{ROOT}/{goal.id}"})


async def get_goal(request: Request[State]) -> Response:
    goal, standby = await request.state["goals"].get(_read_id(request))
    return JSON(_out(goal), headers=dict(STANDBY)) if standby else _unless_known(request, _represent(goal))


async def load_goal(database: Database, goal_id: int) -> Found:
    return await store.find_goal(database, goal_id)


async def patch_goal(request: Request[State]) -> Response:
    """Change a goal; with `If-Match` only if it has not changed since the client read it (RFC 9110, 13.1.1)."""
    goal_id = _read_id(request)
    change = validate(GoalChange, await read_json(request)).model_dump(exclude_unset=True)
    seen = await _expect(request, goal_id)
    return _represent(await store.update_goal(request.state["database"], goal_id, change, seen=seen))


async def delete_goal(request: Request[State]) -> Response:
    """Remove a goal; with `If-Match` only if it has not changed since the client read it."""
    goal_id = _read_id(request)
    await store.delete_goal(request.state["database"], goal_id, seen=await _expect(request, goal_id))
    return Response(status_code=204)


async def get_openapi(request: Request[State]) -> Response:
    response = JSON(DOCUMENT)
    response.headers["etag"] = _etag(response.body)
    return _unless_known(request, response)


async def _expect(request: Request[State], goal_id: int) -> int | None:
    """Return the version that `If-Match` names, or None if any matches; raise a `GoalChangedError` on a mismatch."""
    expected = _field_of(request, "if-match")
    if expected is None or expected.strip() == "*":
        return None
    seen = await store.select_goal(request.state["database"], goal_id)
    if not _matches(_represent(seen).headers["etag"], expected):
        raise GoalChangedError("The goal does not match your If-Match: read it again.")
    return seen.row_version


def _read_id(request: Request[State]) -> int:
    return validate(GoalPath, request.path_params).goal_id


def _read_key(request: Request[State]) -> UUID:
    """The `Idempotency-Key`, bare or as a quoted string (draft-ietf-httpapi-idempotency-key-header)."""
    given = _field_of(request, "idempotency-key")
    if given is None:
        return new_key()
    bare = given[1:-1] if given[:1] == given[-1:] == '"' else given
    return validate(KeyHeader, {"Idempotency-Key": bare}).key or new_key()


def _field_of(request: Request[State], name: str) -> str | None:
    """Return a header field as one value, even if it came in several lines (RFC 9110, 5.3)."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


def _out(goal: Goal) -> GoalOut:
    return GoalOut.model_construct(**goal._asdict())


def _represent(goal: Goal, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    response = JSON(_out(goal), status, headers)
    response.headers["etag"] = _etag(response.body, goal.row_version)
    return response


def _etag(body: bytes | memoryview, version: int = 0) -> str:
    """Return an entity tag for these bytes and the row's version, which also counts changes that the body lacks."""
    return f'"{blake2b(body, digest_size=12, salt=version.to_bytes(8)).hexdigest()}"'


def _unless_known(request: Request[State], response: Response) -> Response:
    """Answer 304 if the client already has this representation (RFC 9110, 13.1.2)."""
    etag = response.headers["etag"]
    response.headers["cache-control"] = "no-cache"
    known = _field_of(request, "if-none-match")
    if known is not None and _matches(etag, known.replace("W/", "")):
        kept = {name: response.headers[name] for name in ("etag", "cache-control", "link") if name in response.headers}
        return Response(status_code=304, headers=kept)
    return response


def _matches(etag: str, header: str) -> bool:
    return header.strip() == "*" or etag in (candidate.strip() for candidate in header.split(","))
