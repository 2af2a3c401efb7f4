"""Checks of a response, written like `status == 200` and parsed once into a function."""

import operator
import re
from collections.abc import Callable
from typing import Protocol

_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_STATUS = re.compile(r"status (==|!=|<=|>=|<|>) (\d{1,3})", re.ASCII)
_STATUSES = re.compile(r"status in \[(\d{1,3}(?:, ?\d{1,3})*)\]", re.ASCII)
_BODY = re.compile(r"""body (==|contains) (?:"([^"]*)"|'([^']*)')""")
_HEADER = re.compile(r"""header ([A-Za-z0-9-]+) (==|contains) (?:"([^"]*)"|'([^']*)')""")


class Answer(Protocol):
    """What a check can inspect; status 0 means that there was no response."""

    @property
    def status(self) -> int: ...
    @property
    def content(self) -> bytes: ...
    def header(self, name: str) -> str | None: ...


Check = Callable[[Answer], bool]


def parse_check(text: str) -> Check:
    """Parse a check's text into a function; a `ValueError` lists the possible forms.

    The forms: `status == 200` (also `!= < <= > >=`), `status in [200, 304]`, `body contains "text"`, `body == "text"`,
    `header NAME contains "text"`, `header NAME == "text"`.
    """
    if match := _STATUS.fullmatch(text):
        compare, expected = _COMPARISONS[match[1]], int(match[2])
        return lambda answer: compare(answer.status, expected)
    if match := _STATUSES.fullmatch(text):
        statuses = frozenset(map(int, match[1].split(",")))
        return lambda answer: answer.status in statuses
    if match := _BODY.fullmatch(text):
        wanted = (match[2] or match[3] or "").encode()
        if match[1] == "==":
            return lambda answer: answer.content == wanted
        return lambda answer: wanted in answer.content
    if match := _HEADER.fullmatch(text):
        name, value = match[1], match[3] or match[4] or ""
        if match[2] == "==":
            return lambda answer: answer.header(name) == value
        return lambda answer: value in (answer.header(name) or "")
    raise ValueError(
        f"`{text}` is not a check; write one of `status == 200`, `status in [200, 304]`, "
        '`body contains "text"`, `header NAME == "text"`'
    )
