"""Request bodies, read only in the one form that an endpoint understands."""

from email.message import Message
from functools import lru_cache

from starlette.requests import Request

from goals.errors import UnsupportedMediaTypeError
from goals.schemas import parse_fields, parse_json
from goals.state import State


async def read_form(request: Request[State]) -> dict[str, str]:
    """The fields of an HTML form; uploads and other encodings are refused."""
    _require(request, "application/x-www-form-urlencoded")
    return parse_fields(await request.body())


async def read_json(request: Request[State]) -> object:
    _require(request, "application/json")
    return parse_json(await request.body())


def _require(request: Request[State], media_type: str) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if _parse(request.headers.get("content-type", "")) != (media_type, "utf-8") or encoding.lower() != "identity":
        raise UnsupportedMediaTypeError(f"Send {media_type} in UTF-8, without a content encoding.")


@lru_cache(maxsize=64)  # clients send a handful of values, and the parser is slow
def _parse(content_type: str) -> tuple[str, str]:
    """The media type and the charset, UTF-8 where none is named."""
    header = Message()
    header["content-type"] = content_type
    return header.get_content_type(), header.get_content_charset("utf-8")
