"""Timelines: the rates of responses and errors, the longest responses, and the faults injected at the same time."""

from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import Any, NamedTuple, Self

from drills.journal import Attempt
from loadtest.charts import draw_lines

_BINS = 400
_SHORTEST_BIN = 0.1


class Mark(NamedTuple):
    """An event and its start and end (in Unix seconds; within a timeline, in seconds since its start)."""

    at: float
    what: str
    until: float


class Timeline(NamedTuple):
    """Attempts counted by their end, in bins of `width` seconds; plain data for the report."""

    title: str
    seconds: float
    width: float
    answered: list[int]
    refused: list[int]
    longest: list[float]
    marks: list[Mark]
    from_standby: list[int]
    longest_read: list[float]

    @classmethod
    def make(cls, title: str, attempts: Sequence[Attempt], marks: Sequence[Mark], began: float, ended: float) -> Self:
        """Count the attempts that ended between two times; failed ones are counted separately.

        If the journal contains what reads showed, their longest responses are separate too.
        """
        seconds = ended - began
        width = max(seconds / _BINS, _SHORTEST_BIN)
        number = ceil(seconds / width)
        answered, refused, longest = [0] * number, [0] * number, [0.0] * number
        from_standby, longest_read = [0] * number, [0.0] * number
        for attempt in attempts:
            if began <= attempt.ended < ended and not attempt.is_cut_off:
                place = min(int((attempt.ended - began) / width), number - 1)
                (refused if attempt.shows_error else answered)[place] += 1
                from_standby[place] += attempt.is_from_standby
                longer = longest_read if attempt.is_read else longest
                longer[place] = max(longer[place], round(attempt.seconds, 3))
        moved = [Mark(round(mark.at - began, 3), mark.what, round(mark.until - began, 3)) for mark in marks]
        times = round(seconds, 3), round(width, 4)
        return cls(title, *times, answered, refused, longest, moved, from_standby, longest_read)

    def dump(self) -> dict[str, Any]:
        return {**self._asdict(), "marks": [mark._asdict() for mark in self.marks]}


def draw(timeline: Timeline, longest_answer: float | None = None) -> list[str]:
    """Draw two charts: the rates of responses, and the longest response with its limit, both with the events."""
    middles = [(place + 0.5) * timeline.width for place in range(len(timeline.answered))]
    kinds = [("answered", timeline.answered), ("rejected", timeline.refused), ("by a standby", timeline.from_standby)]
    rates = [
        (name, [(at, count / timeline.width) for at, count in zip(middles, counts, strict=True)])
        for name, counts in kinds[: 2 + any(timeline.from_standby)]
    ]
    longest = [("longest", list(zip(middles, timeline.longest, strict=True)))]
    limited = "limit"
    if any(timeline.longest_read):
        longest = [("write", longest[0][1]), ("read", list(zip(middles, timeline.longest_read, strict=True)))]
        limited = "limit for reads"
    bands = [(mark.at, mark.until, mark.what) for mark in timeline.marks]
    limits = [(f"{limited} {longest_answer:g} s", longest_answer)] if longest_answer else []
    draw_time = partial(draw_lines, across="seconds", right=timeline.seconds, bands=bands)
    return [
        draw_time(f"{timeline.title}: requests/s", rates),
        draw_time(f"{timeline.title}: longest response, s", longest, limits=limits),
    ]
