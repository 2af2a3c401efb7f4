"""Parses request bodies; each endpoint accepts one media type."""

import re

from starlette.requests import Request

from goals.errors import UnsupportedMediaTypeError
from goals.schemas import parse_fields, parse_json
from goals.state import State

_CHARSET = r'([ \t]*;[ \t]*charset=("?)utf-8\2)?'
_FORM = re.compile("application/x-www-form-urlencoded" + _CHARSET, re.IGNORECASE | re.ASCII)
_JSON = re.compile("application/json" + _CHARSET, re.IGNORECASE | re.ASCII)


async def read_form(request: Request[State]) -> dict[str, str]:
    """Return the fields of an HTML form; refuse uploads and other encodings."""
    _require(request, "application/x-www-form-urlencoded", _FORM)
    return parse_fields(await request.body())


async def read_json(request: Request[State]) -> object:
    _require(request, "application/json", _JSON)
    return parse_json(await request.body())


def _require(request: Request[State], media_type: str, pattern: re.Pattern[str]) -> None:
    types = request.headers.getlist("content-type")
    encodings = request.headers.getlist("content-encoding")
    if len(types) != 1 or not pattern.fullmatch(types[0]) or any(name.lower() != "identity" for name in encodings):
        raise UnsupportedMediaTypeError(f"Send {media_type} in UTF-8, without a content encoding.")
