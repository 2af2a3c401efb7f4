"""The picture of a stretch of time: what was answered and refused, how long it took, and what was done meanwhile."""

from collections.abc import Sequence
from html import escape
from math import ceil
from typing import Any, NamedTuple, Self

from drills.journal import Attempt

_WIDTH, _LEFT, _RIGHT = 860, 52, 12
_BARS_TOP, _BARS_BOTTOM = 56, 146
_LINE_TOP, _LINE_BOTTOM = 166, 236
_HEIGHT = 270
_BINS = 400
_SHORTEST_BIN = 0.1
_LABEL_PIXELS = 86

STYLE = """
.paper { fill: #fff } text { font: 12px system-ui, sans-serif; fill: #4a4f57 }
.title { font-weight: 600; font-size: 14px; fill: #1d2026 } .axis { stroke: #c9ced6 }
.fault { fill: #c23b4b; opacity: .16 } .answered { fill: #2f6fde } .refused { fill: #c23b4b }
.longest { fill: none; stroke: #d9822b; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  .paper { fill: #15171b } text { fill: #aab1bc } .title { fill: #e9ebee } .axis { stroke: #444b56 }
  .fault { opacity: .3 } .answered { fill: #6d9df0 }
}
"""


class Mark(NamedTuple):
    """Something that was done at a time, and until when it lasted (Unix seconds; in a timeline, since its begin)."""

    at: float
    what: str
    until: float


class Timeline(NamedTuple):
    """Attempts counted by the time at which they ended, in bins of `width` seconds; plain data, for the report."""

    title: str
    seconds: float
    width: float
    answered: list[int]
    refused: list[int]
    longest: list[float]
    marks: list[Mark]

    @classmethod
    def make(cls, title: str, attempts: Sequence[Attempt], marks: Sequence[Mark], began: float, ended: float) -> Self:
        """Count the attempts that ended between two times; those that were refused or not answered apart."""
        seconds = ended - began
        width = max(seconds / _BINS, _SHORTEST_BIN)
        number = ceil(seconds / width)
        answered, refused, longest = [0] * number, [0] * number, [0.0] * number
        for attempt in attempts:
            if began <= attempt.ended < ended and not attempt.is_cut_off:
                place = min(int((attempt.ended - began) / width), number - 1)
                (refused if attempt.shows_error else answered)[place] += 1
                longest[place] = max(longest[place], round(attempt.seconds, 3))
        moved = [Mark(round(mark.at - began, 3), mark.what, round(mark.until - began, 3)) for mark in marks]
        return cls(title, round(seconds, 3), round(width, 4), answered, refused, longest, moved)

    @classmethod
    def load(cls, data: dict[str, Any]) -> Self:
        return cls(**{**data, "marks": [Mark(**mark) for mark in data["marks"]]})

    def dump(self) -> dict[str, Any]:
        return {**self._asdict(), "marks": [mark._asdict() for mark in self.marks]}


def draw(timeline: Timeline) -> str:
    """An SVG that needs nothing else; it follows the reader's colours."""
    most = max((a + r for a, r in zip(timeline.answered, timeline.refused, strict=True)), default=0) or 1
    slowest = max([*timeline.longest, 1.0])
    parts = [f'<text class="title" x="8" y="18">{escape(timeline.title)}</text>', _legend(timeline)]
    labelled = -_LABEL_PIXELS
    for mark in timeline.marks:
        x = _x(timeline, mark.at)
        width = max(_x(timeline, mark.until) - x, 1.5)
        parts.append(
            f'<rect class="fault" x="{x:.1f}" y="{_BARS_TOP}" width="{width:.1f}" height="{_LINE_BOTTOM - _BARS_TOP}">'
            f"<title>{escape(mark.what)} at {mark.at:.2f} s, {mark.until - mark.at:.2f} s long</title></rect>"
        )
        if x - labelled >= _LABEL_PIXELS:
            anchor = "end" if x > _WIDTH - _LABEL_PIXELS else "start"
            parts.append(f'<text x="{x:.1f}" y="{_BARS_TOP - 6}" text-anchor="{anchor}">{escape(mark.what)}</text>')
            labelled = int(x)
    parts += _draw_bars(timeline, most)
    scale = (_LINE_BOTTOM - _LINE_TOP) / slowest
    points = " ".join(
        f"{_x(timeline, (place + 0.5) * timeline.width):.1f},{_LINE_BOTTOM - scale * value:.1f}"
        for place, value in enumerate(timeline.longest)
    )
    parts.append(f'<polyline class="longest" points="{points}"/>')
    for y, top, text in (
        (_BARS_BOTTOM, _BARS_TOP, f"{most / timeline.width:.0f}/s"),
        (_LINE_BOTTOM, _LINE_TOP, f"{slowest:.1f} s"),
    ):
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{top + 10}" text-anchor="end">{text}</text>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 2}" text-anchor="end">0</text>')
    parts += [
        f'<text x="{_x(timeline, second):.1f}" y="{_LINE_BOTTOM + 18}" text-anchor="middle">{second:g} s</text>'
        for second in _seconds(timeline.seconds)
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" aria-label="{escape(timeline.title)}">\n<style>{STYLE}</style>\n'
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>\n{body}\n</svg>'
    )


def _draw_bars(timeline: Timeline, most: int) -> list[str]:
    height = _BARS_BOTTOM - _BARS_TOP
    parts = []
    for place, (answered, refused) in enumerate(zip(timeline.answered, timeline.refused, strict=True)):
        x, y = _x(timeline, place * timeline.width), float(_BARS_BOTTOM)
        width = _x(timeline, (place + 1) * timeline.width) - x
        for kind, count in (("answered", answered), ("refused", refused)):
            if count:
                y -= height * count / most
                parts.append(
                    f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.2f}" '
                    f'height="{height * count / most:.1f}"/>'
                )
    return parts


def _legend(timeline: Timeline) -> str:
    entries = [("answered", "done"), ("refused", "error shown"), ("longest", "longest answer"), ("fault", "fault")]
    parts = []
    for place, (kind, text) in enumerate(entries):
        x = _WIDTH - _RIGHT - 116 * (len(entries) - place)
        shape = (
            f'<path class="longest" d="M{x} 14h12"/>'
            if kind == "longest"
            else (f'<rect class="{kind}" x="{x}" y="9" width="12" height="9"/>')
        )
        parts.append(f'{shape}<text x="{x + 17}" y="18">{text}</text>')
    return "".join(parts)


def _x(timeline: Timeline, seconds: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(seconds / timeline.seconds, 0), 1)


def _seconds(total: float) -> list[float]:
    step = next((step for step in (0.5, 1, 2, 5, 10, 20, 60, 120) if total / step <= 10), 300)
    return [step * number for number in range(int(total / step) + 1)]
