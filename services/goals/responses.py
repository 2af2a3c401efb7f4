"""Builds responses: rendered pages, JSON, and the response to each error."""

from collections.abc import Mapping
from hashlib import blake2b
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.types import Message, Receive, Scope, Send

from goals.errors import (
    DatabaseUnavailableError,
    GoalChangedError,
    GoalNotFoundError,
    GoalRemovedError,
    GoalsError,
    IdempotencyKeyReusedError,
    InvalidInputError,
    LockedError,
    MalformedRequestError,
    OverloadedError,
    TemporaryError,
    UnsupportedMediaTypeError,
)
from goals.schemas import InvalidField, Problem

_here = Path(__file__).parent
STATIC = {file.name: file.read_bytes() for file in sorted((_here / "static").iterdir())}
"""The static files by name: few and small, so they are served from memory."""
_versions = {name: blake2b(content, digest_size=6).hexdigest() for name, content in STATIC.items()}


def static_url(name: str) -> str:
    """Return the address of a static file; it changes with the content, so browsers may cache the file forever."""
    return f"/static/{name}?v={_versions[name]}"


_environment = Environment(
    loader=FileSystemLoader(_here / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_environment.globals["static"] = static_url
# Loaded at import, not on first use: the error page is also needed when no file can be opened any more.
_templates = {name: _environment.get_template(name) for name in _environment.list_templates()}

_STATUSES: dict[type[GoalsError], HTTPStatus] = {
    MalformedRequestError: HTTPStatus.BAD_REQUEST,
    GoalNotFoundError: HTTPStatus.NOT_FOUND,
    GoalRemovedError: HTTPStatus.GONE,
    GoalChangedError: HTTPStatus.PRECONDITION_FAILED,
    UnsupportedMediaTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    InvalidInputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    IdempotencyKeyReusedError: HTTPStatus.UNPROCESSABLE_ENTITY,
    OverloadedError: HTTPStatus.SERVICE_UNAVAILABLE,
    LockedError: HTTPStatus.SERVICE_UNAVAILABLE,
    DatabaseUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
STANDBY = {"cache-status": "goals-standby; hit; detail=primary-away", "cache-control": "no-store"}
"""Headers of a standby's response (RFC 9211), which has every acknowledged change and may have others."""
_REASONS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not support that method.",
}
"""Reasons for the router's errors, because the router gives none."""
_WORDS = {
    HTTPStatus.BAD_REQUEST: ("We could not read that", "Nothing was changed. Go back and try again."),
    HTTPStatus.FORBIDDEN: (
        "We did not accept that",
        "Nothing was changed. Open the list of goals and send it from there.",
    ),
    HTTPStatus.NOT_FOUND: ("We could not find that", "It may have been removed, or the address may be wrong."),
    HTTPStatus.METHOD_NOT_ALLOWED: ("That does not work here", "Nothing was changed."),
    HTTPStatus.REQUEST_TIMEOUT: (
        "That took too long to arrive",
        "Nothing was changed. Your text is still on the previous page: go back and send it again.",
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (
        "That is too long",
        "Nothing was changed. Your text is still on the previous page: go back, shorten it and send it again.",
    ),
    HTTPStatus.REQUEST_URI_TOO_LONG: (
        "That address is too long",
        "Nothing was changed. Start again from the list of goals.",
    ),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: (
        "We could not read that",
        "Nothing was changed. Open the list of goals and send it from there.",
    ),
    HTTPStatus.UNPROCESSABLE_ENTITY: ("Something in that is not right", "Nothing was changed. Go back and correct it."),
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: (
        "Your browser sent too much",
        "Nothing was changed. Delete the cookies of this site and try again.",
    ),
    HTTPStatus.INTERNAL_SERVER_ERROR: ("Something went wrong", "Check the list of goals before you send it again."),
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "The goals are not available right now",
        "Try again in a moment. If you sent a change, check the list of goals first: it may already have been made.",
    ),
}
"""By status: the heading of the page, and the text below the reason, which says what happened and what to do now."""


def render(template: str, **context: object) -> str:
    return _templates[template].render(context)


def show(page: str | bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> HTMLResponse:
    """Return a page as a response; pages must not be cached, because each contains its own form key."""
    return HTMLResponse(page, status, {"cache-control": "no-store", **(headers or {})})


class SharedPage(HTMLResponse):
    """A page in two parts: the reader's own, and one that concurrent responses share without a copy."""

    def __init__(self, own: bytes, shared: bytes, headers: Mapping[str, str]) -> None:
        length = str(len(own) + len(shared))
        super().__init__(own, headers={"cache-control": "no-store", "content-length": length, **headers})
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_both(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                message = {"type": "http.response.body", "body": self._shared}
            await send(message)

        await super().__call__(scope, receive, send_both)


class JSON(Response):
    """A pydantic model, or plain data, as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content.model_dump_json().encode() if isinstance(content, BaseModel) else orjson.dumps(content)


def _headers_of(error: GoalsError) -> dict[str, str]:
    if isinstance(error, TemporaryError):
        return {"retry-after": str(error.retry_after)}
    return dict(STANDBY) if isinstance(error, GoalNotFoundError) and error.standby else {}


def answer(scope: Scope, error: Exception, *, retry_form: Mapping[str, str] | None = None) -> Response:
    """Return an error as a response: RFC 9457 under `/api`, a page elsewhere.

    The text of an exception that is not ours is never shown. `retry_form` contains the fields of a form that is worth
    sending again to the same address: the page keeps them and offers a button for it.
    """
    detail, fields, headers = str(error), {}, {}
    match error:
        case HTTPException():
            status = HTTPStatus(error.status_code)
            detail = error.detail if error.detail != status.phrase else _REASONS[status]
            headers = dict(error.headers or {})
        case GoalsError():
            status = _STATUSES[type(error)]
            fields = error.fields if isinstance(error, InvalidInputError) else {}
            headers = _headers_of(error)
        case _:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            detail = "The service failed; its log has the details. Your request may or may not have been carried out."
    if not scope["path"].startswith("/api/"):
        title, advice = _WORDS[status]
        page = render(
            "error.html", title=title, status=status.value, detail=detail, advice=advice, retry_form=retry_form
        )
        return show(page, status, headers)
    problem = Problem(
        type="about:blank",
        title=status.phrase,
        status=status,
        detail=detail,
        instance=scope["raw_path"].decode("ascii"),
        errors=[InvalidField(field=field, message=message) for field, message in fields.items()] or None,
    )
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, status, {"cache-control": "no-store", **headers}, media_type="application/problem+json")
