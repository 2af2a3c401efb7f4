"""Draws some panels for README from a real Prometheus's answers: a sketch of ours, not Grafana's rendering."""

import math
import re
from collections.abc import Iterator
from html import escape
from textwrap import shorten
from typing import Any, NamedTuple

from tests.observability.queries import panels, substitute

SHOWN = (
    "goals-service / Requests by route",
    "goals-service / Errors by type",
    "goals-service / Duration",
    "goals-slo / Availability burn rate",
    "goals-resources / Statement duration",
    "goals-resources / Shared reads",
)
COLORS = ("#4878cf", "#e07b39", "#3a923a", "#c03d3e", "#9372b2", "#845b53", "#d684bd", "#7f7f7f")
WIDTH, HEIGHT, COLUMNS = 420, 250, 2
LEFT, TOP, RIGHT, BOTTOM = 52, 34, 12, 86
UNITS = {"reqps": "/s", "ops": "/s", "s": " s", "percentunit": "", "short": ""}


class Line(NamedTuple):
    name: str
    points: list[tuple[float, float]]


def draw(ask: Any, start: float, end: float) -> str:
    """The chosen panels side by side, as one SVG; `ask` is the way to Prometheus's API."""
    chosen = dict(panels())
    rows = math.ceil(len(SHOWN) / COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * COLUMNS} {HEIGHT * rows}">',
        '<g font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for number, where in enumerate(SHOWN):
        x, y = number % COLUMNS * WIDTH, number // COLUMNS * HEIGHT
        parts.append(f'<g transform="translate({x} {y})">')
        parts += _draw_panel(chosen[where], [*_lines(ask, chosen[where], start, end)], start, end)
        parts.append("</g>")
    return "\n".join([*parts, "</g></svg>\n"])


def _lines(ask: Any, panel: dict[str, Any], start: float, end: float) -> Iterator[Line]:
    for target in panel["targets"]:
        data = ask("query_range", query=substitute(target["expr"]), start=start, end=end, step=5)
        for series in data["result"]:
            name = _fill(target["legendFormat"], series["metric"])
            points = [(moment, float(value)) for moment, value in series["values"] if value != "NaN"]
            if points:
                yield Line(name, points)


def _fill(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1]) or "none", legend)


def _draw_panel(panel: dict[str, Any], lines: list[Line], start: float, end: float) -> Iterator[str]:
    unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    lines = sorted(lines, key=lambda line: -max(value for _, value in line.points))[: len(COLORS)]
    top = _round_up(max(value for line in lines for _, value in line.points))
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(moment: float, value: float) -> str:
        x = LEFT + (moment - start) / (end - start) * inner_width
        return f"{x:.1f},{TOP + inner_height * (1 - value / top):.1f}"

    yield f'<text x="{LEFT}" y="20" font-size="13" font-weight="bold">{escape(panel["title"])}</text>'
    for fraction in (0, 0.5, 1):
        y = TOP + inner_height * (1 - fraction)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555555">{top * fraction:.3g}{unit}</text>'
    yield (f'<text x="{WIDTH - RIGHT}" y="20" text-anchor="end" fill="#555555">{(end - start) / 60:.0f} minutes</text>')
    for number, line in enumerate(lines):
        color = COLORS[number]
        points = " ".join(place(*point) for point in line.points)
        yield f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        x, y = LEFT + number % 2 * inner_width // 2, HEIGHT - BOTTOM + 20 + number // 2 * 16
        yield f'<rect x="{x}" y="{y - 8}" width="10" height="3" fill="{color}"/>'
        yield f'<text x="{x + 15}" y="{y - 3}">{escape(shorten(line.name, 30, placeholder=" …"))}</text>'


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, … above a value: where an axis ends."""
    if value <= 0:
        return 1
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)
