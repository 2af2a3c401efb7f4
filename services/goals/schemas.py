"""Models of requests and responses: one set of rules for the page, the API and its OpenAPI document."""

import json
import re
from collections import Counter
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import unquote_to_bytes
from uuid import UUID

import orjson
import uuid_utils
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)

from goals.errors import InvalidInputError, MalformedRequestError

NAME_LENGTH = 255
PAGE_SIZE = 50
MOST_FIELDS = 100
"""Maximum fields of a form or a query."""
MOST_ERRORS = 5
"""Invalid fields that a response names."""
LONGEST_FIELD_NAME = 40
"""Characters of an invalid field's name that a response repeats."""

# Characters that are invisible at the ends of a name: Unicode white space, zero-width characters, blank fillers.
_BLANK = (
    r" \u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180e\u2000-\u200f\u202f\u205f-\u2064\u206a-\u206f"
    r"\u2800\u3000\u3164\ufeff\uffa0"
)
# C0, DEL and C1 controls, line and paragraph separators, bidirectional embeddings, overrides and isolates, and the
# noncharacters. Lone surrogates cannot arrive: the decoders refuse them.
_FORBIDDEN = r"\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff" + "".join(
    chr(plane * 0x10000 + 0xFFFE) + chr(plane * 0x10000 + 0xFFFF) for plane in range(1, 17)
)
# Characters that are invisible within a name too: every format character (Cf), Unicode's ignorable code points
# (variation selectors, tags and the code points reserved beside them), and the blank signs and joiners of some scripts.
# Unlike blanks, these are kept, since they shape the characters beside them: emoji, flags, names in Arabic.
_INVISIBLE = (
    _BLANK
    + (r"\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u180b-\u180f\u2065\u2d7f\ufe00-\ufe0f\ufff0-\ufffb")
    + "".join(
        f"{chr(first)}-{chr(last)}"
        for first, last in (
            (0x1107F, 0x1107F),
            (0x110BD, 0x110BD),
            (0x110CD, 0x110CD),
            (0x13430, 0x13446),
            (0x16FE4, 0x16FE4),
            (0x1BCA0, 0x1BCA3),
            (0x1D159, 0x1D159),
            (0x1D173, 0x1D17A),
            (0xE0000, 0xE0FFF),
        )
    )
)
_EDGE = f"[^{_BLANK}{_FORBIDDEN}]"
NAME_PATTERN = (
    f"^(?=[{_INVISIBLE}]*[^{_INVISIBLE}{_FORBIDDEN}])"
    f"[{_BLANK}]*{_EDGE}([^{_FORBIDDEN}]{{0,{NAME_LENGTH - 2}}}{_EDGE})?[{_BLANK}]*$"
)
"""The rule for a goal's name as a regular expression (OpenAPI); `_clean_name` applies the same rule with messages."""

# For str.strip: a regular expression for trailing blanks would be quadratic in the number of other blanks.
_BLANKS = "".join(re.findall(f"[{_BLANK}]", "".join(map(chr, range(0x10000)))))
_VISIBLE = re.compile(f"[^{_INVISIBLE}]")
_FORBIDDEN_CHARACTER = re.compile(f"[{_FORBIDDEN}]")
# Thirty-nine digits exceed every integer type of PostgreSQL; longer input is not an id.
_CANONICAL_ID = re.compile(r"[1-9][0-9]{0,38}", re.ASCII)
_CANONICAL_UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_REPEATED = "This field is given more than once."


def _clean_name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("A name must be text.")  # noqa: TRY004  pydantic turns a ValueError, not a TypeError, into a field's message
    if _FORBIDDEN_CHARACTER.search(value):
        raise ValueError("A name must be one line of text without control characters.")
    name = value.strip(_BLANKS)
    if not _VISIBLE.search(name):
        raise ValueError("Enter a goal.")
    if len(name) > NAME_LENGTH:
        raise ValueError(f"A name has at most {NAME_LENGTH} characters; this one has {len(name)}.")
    return name


def _clean_key(value: object) -> UUID:
    if isinstance(value, str) and _CANONICAL_UUID.fullmatch(value):
        return UUID(value)
    raise ValueError("An idempotency key is a UUID, such as 01890a5d-ac96-774b-bcce-b302099a8057.")


def _clean_id(value: object) -> int:
    if isinstance(value, str) and _CANONICAL_ID.fullmatch(value):
        return int(value)
    raise ValueError("An id is a whole number, such as 42.")


def _clean_version(value: object) -> int:
    # 0 is the version on a page that a standby answered.
    if isinstance(value, str) and (value == "0" or _CANONICAL_ID.fullmatch(value)):
        return int(value)
    raise ValueError("A version is a whole number, such as 1.")


def _clean_limit(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]?|100", value, re.ASCII):
        return int(value)
    raise ValueError("A limit is a whole number from 1 to 100.")


GoalName = Annotated[
    str,
    BeforeValidator(_clean_name),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": NAME_PATTERN,
            "description": f"One line of 1 to {NAME_LENGTH} characters; blanks at the ends are removed.",
            "examples": ["Read a book a month"],
        }
    ),
]
GoalId = Annotated[
    int,
    BeforeValidator(_clean_id),
    # No maximum: an id beyond the range is simply not found.
    WithJsonSchema({"type": "integer", "minimum": 1}),
]
IdempotencyKey = Annotated[UUID, BeforeValidator(_clean_key), WithJsonSchema({"type": "string", "format": "uuid"})]
Limit = Annotated[
    int,
    BeforeValidator(_clean_limit),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 100, "default": PAGE_SIZE}),
]


class Input(BaseModel):
    """A client's input: unknown fields are refused, so that a misspelled name is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GoalBody(Input):
    """What a client sends to add a goal."""

    goal_name: GoalName

    def fingerprint(self) -> bytes:
        """Return a hash that identifies this body.

        Fields at their default are excluded, so that a version with an additional field computes the same hash for
        a body that an older version received.
        """
        written = self.model_dump(mode="json", include=set(GoalBody.model_fields), exclude_defaults=True)
        return blake2b(orjson.dumps(written, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


class _Change(Input):
    """What a client sends to change a goal: the fields to change."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("Send at least one field to change.")
        return self


# A default factory, because the JSON schema would show a plain default.
_changes: dict[str, Any] = {
    name: (field.rebuild_annotation(), Field(default_factory=lambda: None))
    for name, field in GoalBody.model_fields.items()
}
GoalChange = create_model("GoalChange", __base__=_Change, __doc__=_Change.__doc__, **_changes)
"""All fields of `GoalBody`, none of them required."""


class GoalForm(GoalBody):
    idempotency_key: IdempotencyKey


class ChangeForm(GoalBody):
    """The fields of an edited goal, and the version that was shown; a field that is not sent stays unchanged."""

    row_version: Annotated[int, BeforeValidator(_clean_version)]


class RemovalForm(Input):
    goal_id: GoalId


class PageQuery(Input):
    """`before` selects older goals and `after` newer ones; at most one of them may be given."""

    before: GoalId | None = None
    after: GoalId | None = None

    @field_validator("after")
    @classmethod
    def _is_alone(cls, after: int | None, info: ValidationInfo) -> int | None:
        if after is not None and info.data.get("before") is not None:
            raise ValueError("Use either before or after, not both.")
        return after


class ListQuery(Input):
    limit: Limit = PAGE_SIZE
    before: GoalId | None = None


class GoalPath(Input):
    goal_id: GoalId


class KeyHeader(Input):
    key: IdempotencyKey | None = Field(None, alias="Idempotency-Key")


class GoalOut(BaseModel):
    """A goal."""

    id: int = Field(ge=1)
    goal_name: str
    created_at: datetime | None = Field(description="When the goal was added; null for goals older than this field.")


class GoalListOut(BaseModel):
    """A page of goals, newest first; the `Link` header has the next page."""

    goals: list[GoalOut]


class InvalidField(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """An error as RFC 9457 describes it; `errors` names the first invalid fields."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[InvalidField] | None = None


Shape = TypeVar("Shape", bound=Input)


def validate(shape: type[Shape], values: object) -> Shape:
    """Build `shape` from `values`, or raise an `InvalidInputError` that names the first invalid fields."""
    more = 0
    if isinstance(values, dict):
        # An unknown field takes pydantic twenty times as long, so it gets only a few of them.
        known = values.keys() & {field.alias or name for name, field in shape.model_fields.items()}
        kept = [*known, *islice((name for name in values if name not in known), MOST_ERRORS)]
        more = len(values) - len(kept)
        values = {name: values[name] for name in kept}
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    raise _invalid(
        {
            ".".join(map(str, problem["loc"])) or "body": _message(problem["type"], problem["msg"])
            for problem in problems
        },
        more=more,
    )


def _invalid(fields: dict[str, str], *, more: int = 0) -> InvalidInputError:
    """Return an error of limited size, however many fields are invalid and however long their names are."""
    named = {
        name if len(name) <= LONGEST_FIELD_NAME else f"{name[:LONGEST_FIELD_NAME]}…": message
        for name, message in [*fields.items()][:MOST_ERRORS]
    }
    return InvalidInputError(named, more=more + len(fields) - len(named))


def new_key() -> UUID:
    """Return a new idempotency key (UUIDv7, RFC 9562): successive keys are ordered, which suits the index."""
    return UUID(bytes=uuid_utils.uuid7().bytes)


def new_form_key() -> str:
    """Return a new key as text for a form's hidden field; every page needs one, so no UUID object is created."""
    return str(uuid_utils.uuid7())


def _message(kind: str, text: str) -> str:
    match kind:
        case "missing":
            return "This field is required."
        case "extra_forbidden":
            return "This field is unknown."
        case "model_type":
            return "An object with fields is expected."
        case _:
            return text.removeprefix("Value error, ")


def parse_json(body: bytes) -> object:
    """Decode a JSON document (RFC 8259): UTF-8 only, no NaN, no lone surrogates, no duplicate names in an object."""
    try:
        document = orjson.loads(body)
        # orjson silently keeps the last of duplicate names.
        json.loads(body.decode(), object_pairs_hook=_refuse_repeated)
    except (ValueError, RecursionError):
        raise MalformedRequestError("The body is not valid JSON in UTF-8.") from None
    return document


def _refuse_repeated(members: list[tuple[str, object]]) -> None:
    if len(dict(members)) < len(members):
        counts = Counter(name for name, _ in members)
        raise _invalid({name: _REPEATED for name, count in counts.items() if count > 1})


def parse_fields(encoded: bytes) -> dict[str, str]:
    """Decode `application/x-www-form-urlencoded` (WHATWG URL, section 5.1), but repair nothing.

    Broken escapes and bytes that are not UTF-8 raise a `MalformedRequestError`, and a repeated field raises an
    `InvalidInputError`: a guess might store something that nobody wrote.
    """
    fields: dict[str, str] = {}
    repeated: dict[str, str] = {}
    pairs = [*filter(None, encoded.split(b"&"))]
    if len(pairs) > MOST_FIELDS:
        raise InvalidInputError({"fields": f"{len(pairs):,} fields were sent; at most {MOST_FIELDS} are allowed."})
    for pair in pairs:
        name, _, value = (_decode(part) for part in pair.partition(b"="))
        if name in fields:
            repeated[name] = _REPEATED
        fields[name] = value
    if repeated:
        raise _invalid(repeated)
    return fields


def _decode(part: bytes) -> str:
    if _BROKEN_ESCAPE.search(part):
        raise MalformedRequestError("A percent sign is not followed by two hexadecimal digits.")
    try:
        return unquote_to_bytes(part.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise MalformedRequestError("The text is not UTF-8.") from None
