"""Request bodies, read only in the one form that an endpoint understands."""

from email.message import Message

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
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    charset = header.get_content_charset("utf-8")
    encoding = request.headers.get("content-encoding", "identity")
    if header.get_content_type() != media_type or charset != "utf-8" or encoding.lower() != "identity":
        raise UnsupportedMediaTypeError(f"Send {media_type} in UTF-8, without a content encoding.")
