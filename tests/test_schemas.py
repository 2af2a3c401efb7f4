"""What may come in: the rules hold for any input, and the OpenAPI document states the same ones."""

import json
import re
import time
import timeit
import unicodedata
from urllib.parse import parse_qsl, urlencode

import jsonschema_rs
import pytest
from hypothesis import example, given, settings, strategies as st

from goals.errors import GoalsError, InvalidInputError, MalformedRequestError
from goals.models import Goal, goals
from goals.schemas import (
    MOST_ERRORS,
    MOST_FIELDS,
    NAME_LENGTH,
    NAME_PATTERN,
    GoalBody,
    GoalForm,
    GoalOut,
    ListQuery,
    PageQuery,
    RemovalForm,
    new_key,
    parse_fields,
    parse_json,
    validate,
)

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=200)

# The characters at the borders of the rules, and any other.
ODD = (
    " \u00a0\u200b\u3000\ufeff\u2800\ufe0f\u0600\U000e0041\t\n\r\0\x1b\x7f\x85\u2028\u202e\u2066\ufdd0\ufffe"
    "\U0001fffe\U0010ffff"
)
texts = st.text(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"]), max_size=20)
names = texts | st.builds(
    lambda start, middle, times, end: start + middle * times + end,
    texts,
    st.sampled_from("x \u200b\N{ROCKET}"),
    st.integers(NAME_LENGTH - 20, NAME_LENGTH + 2),
    texts,
)
documented = jsonschema_rs.validator_for({"type": "string", "pattern": NAME_PATTERN})


@repeatable
@given(names)
@example("x" * NAME_LENGTH)
@example("x" * (NAME_LENGTH + 1))
@example(" " * 300 + "x" + "\u200b" * 300)
@example("x\n")
@example("")
def test_the_documented_pattern_takes_the_names_that_are_taken(name: str) -> None:
    if documented.is_valid(name):
        validate(GoalBody, {"goal_name": name})
    else:
        with pytest.raises(InvalidInputError, match=r"^goal_name: "):
            validate(GoalBody, {"goal_name": name})


def test_a_name_of_characters_that_show_nothing_is_no_name() -> None:
    """Each alone: the format characters of this Python's Unicode, the ignorable code points and the other blanks."""
    ignorable = [
        (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
        (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
        (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
    ]  # fmt: skip
    invisible = {chr(code) for first, last in ignorable for code in range(first, last + 1)} | set("\u2800\U0001d159")
    invisible |= {name for name in map(chr, range(0x110000)) if unicodedata.category(name) in {"Cf", "Zs", "Zl", "Zp"}}
    taken = [name for name in sorted(invisible) if documented.is_valid(name) or is_taken(name)]
    assert taken == []
    assert not is_taken("".join(sorted(invisible))[:NAME_LENGTH])
    # With a letter they are part of a name, unless they turn the direction of others or end a line.
    refused = [name for name in sorted(invisible) if not is_taken(f"a{name}b")]
    assert "".join(refused) == "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def is_taken(name: str) -> bool:
    try:
        validate(GoalBody, {"goal_name": name})
    except InvalidInputError:
        return False
    return True


@repeatable
@given(names)
def test_a_name_that_was_taken_is_taken_again_as_it_is(name: str) -> None:
    try:
        clean = validate(GoalBody, {"goal_name": name}).goal_name
    except InvalidInputError:
        return
    assert clean in name
    assert 0 < len(clean) <= NAME_LENGTH
    assert validate(GoalBody, {"goal_name": clean}).goal_name == clean


def test_the_time_to_clean_a_name_grows_with_its_length_only() -> None:
    """Blanks inside a name are not looked at once for each of them: 32 times the text, not 1,024 times the time."""

    def seconds(length: int) -> float:
        values = {"goal_name": "x" + "\u200b " * length + "x"}

        def refuse() -> None:
            with pytest.raises(InvalidInputError):
                validate(GoalBody, values)

        return min(timeit.repeat(refuse, number=1, repeat=5, timer=time.process_time))

    assert seconds(16_000) < 200 * seconds(500)


@repeatable
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))
    )
)
def test_what_a_browser_encodes_is_decoded(fields: dict[str, str]) -> None:
    assert parse_fields(urlencode(fields).encode()) == fields


@repeatable
@given(st.binary(max_size=40) | st.text(st.sampled_from("ab&=+%0123456789fF;"), max_size=40).map(str.encode))
@example(b"a=%F0%9F%9A%80&&b=+%2B")
@example(b"a=1&a=2")
@example(b"%61=1&a=2")
def test_any_bytes_are_decoded_like_the_library_does_or_refused(encoded: bytes) -> None:
    fields: dict[str, str] | None
    try:
        fields = parse_fields(encoded)
    except MalformedRequestError:
        return
    except InvalidInputError:
        fields = None
    pairs = parse_qsl(encoded.decode(), keep_blank_values=True, encoding="utf-8", errors="strict")
    assert fields == (dict(pairs) if len(dict(pairs)) == len(pairs) else None)


@pytest.mark.parametrize(
    ("encoded", "fields"),
    [
        (b"", {}),
        (b"&&", {}),
        (b"a", {"a": ""}),
        (b"a=", {"a": ""}),
        (b"=a", {"": "a"}),
        (b"a=b=c", {"a": "b=c"}),
        (b"a+b=c+d", {"a b": "c d"}),
        (b"%61=%2b", {"a": "+"}),
        ("é=ü".encode(), {"é": "ü"}),
    ],
)
def test_fields_are_parsed_by_the_standard(encoded: bytes, fields: dict[str, str]) -> None:
    assert parse_fields(encoded) == fields


documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=10,
)


@settings(repeatable, max_examples=50)
@given(documents)
def test_json_is_decoded(document: object) -> None:
    assert parse_json(json.dumps(document).encode()) == document
    assert parse_json(json.dumps(document, ensure_ascii=False).encode()) == document


@repeatable
@given(st.binary(max_size=40) | st.text(st.sampled_from('{}[]",:0e-.\\ud8n'), max_size=40).map(str.encode))
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    try:
        document = parse_json(body)
    except GoalsError:
        return
    assert json.loads(body) == document


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b'{"a": 1, "a": 1}', {"a"}),
        (b'{"a": {"b": 1, "c": 2, "b": 3, "c": 4}}', {"b", "c"}),
        (b'{"a":1,"\\u0061":2}', {"a"}),
    ],
)
def test_a_name_given_twice_in_an_object_is_refused(body: bytes, fields: set[str]) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        parse_json(body)
    assert set(refusal.value.fields) == fields


@repeatable
@given(st.integers(1, 10**39 - 1))
def test_an_id_is_read_as_it_is_written(goal_id: int) -> None:
    assert validate(RemovalForm, {"goal_id": str(goal_id)}).goal_id == goal_id


@repeatable
@given(st.text(st.sampled_from("0123456789+-_ .eEx٣²\n"), max_size=6))
def test_an_id_is_taken_in_one_spelling_only(value: str) -> None:
    try:
        goal_id = validate(RemovalForm, {"goal_id": value}).goal_id
    except InvalidInputError:
        assert not re.fullmatch("[1-9][0-9]*", value)
    else:
        assert str(goal_id) == value


def test_an_id_is_text_until_it_is_read() -> None:
    with pytest.raises(InvalidInputError):
        validate(RemovalForm, {"goal_id": 2**63 - 1})


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(InvalidInputError) as refusal:
        validate(GoalForm, {"idempotency_key": 7, "other": "x"})
    assert refusal.value.fields == {
        "goal_name": "This field is required.",
        "idempotency_key": "An idempotency key is a UUID, such as 01890a5d-ac96-774b-bcce-b302099a8057.",
        "other": "This field is unknown.",
    }
    with pytest.raises(InvalidInputError) as refusal:
        validate(PageQuery, {"before": "x", "after": "2"})
    assert set(refusal.value.fields) == {"before"}


def test_of_many_errors_the_first_few_are_named_and_the_rest_is_counted() -> None:
    body = parse_json(json.dumps({f"member {number}": number for number in range(1500)}).encode())
    with pytest.raises(InvalidInputError) as refusal:
        validate(GoalBody, body)
    assert [*refusal.value.fields] == ["goal_name", *(f"member {number}" for number in range(MOST_ERRORS - 1))]
    assert str(refusal.value).endswith(f"; and {1501 - MOST_ERRORS:,} more.")
    with pytest.raises(InvalidInputError, match=r"^0a{39}…: .*; and 1 more\.$"):
        validate(ListQuery, {f"{number}".ljust(900, "a"): "x" for number in range(MOST_ERRORS + 1)})


def test_of_many_repeated_names_the_first_few_are_named() -> None:
    pairs = [f"n{number}" for number in range(40)]
    for parse, encoded in (
        (parse_json, "{" + ",".join(f'"{name}":1,"{name}":2' for name in pairs) + "}"),
        (parse_fields, "&".join(f"{name}=1&{name}=2" for name in pairs)),
    ):
        with pytest.raises(InvalidInputError, match="; and 35 more") as refusal:
            parse(encoded.encode())
        assert [*refusal.value.fields] == pairs[:MOST_ERRORS]


def test_fields_are_counted_before_they_are_read() -> None:
    assert len(parse_fields(b"&".join(b"%d" % number for number in range(MOST_FIELDS)))) == MOST_FIELDS
    with pytest.raises(InvalidInputError, match=r"^fields: 4,000 fields were sent; at most 100 are allowed\.$"):
        parse_fields(b"%zz&" * 4000)


def test_what_a_client_makes_up_costs_little() -> None:
    """Less than the 2 ms of CPU that a request with 1,500 unknown members may cost in all."""
    body = json.dumps({f"m{number:04}": 1 for number in range(1500)}).encode()

    def refuse() -> None:
        with pytest.raises(InvalidInputError):
            validate(GoalBody, parse_json(body))

    assert min(timeit.repeat(refuse, number=1, repeat=20, timer=time.process_time)) < 0.002


def test_keys_are_fresh_and_in_order() -> None:
    keys = [new_key() for _ in range(1000)]
    assert {key.version for key in keys} == {7}
    assert keys == sorted(set(keys))


def test_a_field_is_in_the_table_the_row_and_what_comes_in_and_goes_out() -> None:
    ours = {"id", "created_at", "updated_at", "row_version"}
    given = set(GoalBody.model_fields)
    assert set(goals.c.keys()) - ours == given
    assert set(Goal._fields) == given | {"id", "created_at", "row_version"}
    assert set(GoalOut.model_fields) == given | {"id", "created_at"}
