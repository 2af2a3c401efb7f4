"""Charts as plain SVG in the page's colours, so that a report is one file without scripts."""

import re
from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 860, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 44, 40
_MOST_STEPS = 5
_DECADES_WITH_ROOM = 2
"""A logarithmic axis of fewer decades has room for more ticks than the powers of ten."""
_COLOURS = ("var(--first)", "var(--second)", "var(--third)", "var(--fourth)")
_DASHES = ("none", "7 3", "2 3", "9 3 2 3")
"""Line patterns in addition to the colours, for people who cannot distinguish the colours."""
_LABEL_WIDTH = 86
_STEPS = (1, 2, 5, 10)
_FAR = 3
"""A limit more than this many times the highest value would flatten the lines: it is written as text, not drawn."""

STYLE = """
:root {
  --paper: #ffffff; --text: #4a4f57; --title: #1d2026; --grid: #d9dce1;
  --good: #1e6b3c; --bad: #b42336; --warn: #8a5200;
  --first: #2f6fde; --second: #b8621b; --third: #c23b4b; --fourth: #2f7d4d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171b; --text: #aab1bc; --title: #e9ebee; --grid: #343a43;
    --good: #6cc48e; --bad: #ff8b98; --warn: #e8a94e;
    --first: #6ea0ff; --second: #e8a05a; --third: #f0808d; --fourth: #6cc48e;
  }
}
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif }
svg text { fill: var(--text) } svg .title { font-weight: 600; font-size: 14px; fill: var(--title) }
svg .grid { stroke: var(--grid) } svg .paper { fill: var(--paper) }
svg .band { fill: var(--third); opacity: .2 }
svg line.mark { stroke: var(--title); stroke-dasharray: 4 3 } svg line.limit { stroke: var(--bad); stroke-width: 1.5 }
svg text.mark { fill: var(--title) } svg text.limit { fill: var(--bad); font-weight: 600 }
svg text.mark, svg text.limit { paint-order: stroke; stroke: var(--paper); stroke-width: 4px }
"""
"""Colour variables by purpose, so that dark mode changes them in one place; the shapes use the variables."""

Points = Sequence[tuple[float, float]]


def draw_lines(
    title: str,
    lines: Sequence[tuple[str, Points]],
    *,
    across: str,
    right: float = 0,
    bands: Sequence[tuple[float, float, str]] = (),
    limits: Sequence[tuple[str, float]] = (),
) -> str:
    """Draw named lines over a linear x axis that starts at 0; `across` is the label of the axis.

    The axis ends at `right`, or at the end of the lines if that is farther, so that the charts of a run share an axis.
    `bands` are ranges of x, each with a label, which is written above the band if there is room. `limits` are named
    limits for y.
    """
    right = max([right, *(x for _, points in lines for x, _ in points)]) or 1
    highest = max((y for _, points in lines for _, y in points), default=0)
    near = [value for _, value in limits if value <= _FAR * highest or not highest]
    step = _step(max([highest, *near]), _MOST_STEPS)
    top = step * max(ceil(round(max([highest, *near]) / step, 9)), 1)
    shapes = []
    free = 0.0
    for start, end, name in bands:
        x = _x(start / right)
        shapes.append(
            f'<rect class="band" x="{x:.1f}" y="{_TOP}" width="{max(_x(end / right) - x, 1.5):.1f}" '
            f'height="{_y(0) - _TOP:.1f}"><title>{escape(name)}, {start:.2f} to {end:.2f}</title></rect>'
        )
        if x >= free:
            anchor = "end" if x > WIDTH - _LABEL_WIDTH else "start"
            shapes.append(f'<text x="{x:.1f}" y="{_TOP - 6}" text-anchor="{anchor}">{escape(name)}</text>')
            free = x + _LABEL_WIDTH
    for colour, dashes, (name, points) in zip(_COLOURS, _DASHES, lines, strict=False):
        path = " ".join(f"{_x(x / right):.1f},{_y(y / top):.1f}" for x, y in points)
        shapes.append(
            f'<polyline points="{path}" fill="none" style="stroke: {colour}" stroke-width="1.8" '
            f'stroke-dasharray="{dashes}"><title>{escape(name)}</title></polyline>'
        )
    far = ", ".join(f"{name}: above this chart" for name, value in limits if value > top)
    for name, value in limits:
        if value <= top:
            y = _y(value / top)
            shapes.append(
                f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="limit" x="{WIDTH - _RIGHT - 4}" y="{y - 5:.1f}" text-anchor="end">{escape(name)}</text>'
            )
    if far:
        shapes.append(
            f'<text class="limit" x="{WIDTH - _RIGHT - 4}" y="{_TOP + 12}" text-anchor="end">{escape(far)}</text>'
        )
    ticks = [(x / right, f"{x:g}") for x in _ticks(right)]
    return _frame(title, [name for name, _ in lines], (top, step), ticks, across, shapes)


def draw_histogram(
    title: str,
    buckets: Sequence[tuple[float, float, int]],
    *,
    across: str,
    marks: Sequence[tuple[str, float]] = (),
    limits: Sequence[tuple[str, float]] = (),
) -> str:
    """Draw `(from, to, count)` buckets over a logarithmic x axis, with named lines at `marks` and `limits`."""
    values = [value for _, value in limits]
    low = log10(min([*(start for start, _, _ in buckets), *values], default=1))
    high = log10(max([*(end for _, end, _ in buckets), *values], default=10))
    highest = max((count for _, _, count in buckets), default=0)
    step = _step(highest, _MOST_STEPS)
    top = step * max(ceil(round(highest / step, 9)), 1)
    shapes = []
    for start, end, count in buckets:
        left, right = _x((log10(start) - low) / (high - low)), _x((log10(end) - low) / (high - low))
        shapes.append(
            f'<rect x="{left:.1f}" y="{_y(count / top):.1f}" width="{max(right - left - 0.5, 0.5):.1f}" '
            f'height="{_y(0) - _y(count / top):.1f}" style="fill: {_COLOURS[0]}">'
            f"<title>{start:.3g}-{end:.3g}: {count}</title></rect>"
        )
    kinds = [("mark", mark) for mark in marks] + [("limit", limit) for limit in limits]
    for row, (kind, (name, value)) in enumerate(kinds):
        # Each name has its own row, because percentiles are close together; in the right half it is left of its line.
        share = (log10(value) - low) / (high - low)
        x, y, before = _x(share), _TOP + 10 + 14 * row, share > 1 / 2
        shapes.append(
            f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_y(0):.1f}"/>'
            f'<text class="{kind}" x="{x - 5 if before else x + 5:.1f}" y="{y}" '
            f'text-anchor="{"end" if before else "start"}">'
            f"{escape(name)}</text>"
        )
    factors = (1, 2, 5) if high - low < _DECADES_WITH_ROOM else (1,)
    steps = [factor * 10**power for power in range(floor(low), ceil(high) + 1) for factor in factors]
    ticks = [((log10(x) - low) / (high - low), f"{x:g}") for x in steps if low <= log10(x) <= high]
    return _frame(title, [], (top, step), ticks, across, shapes)


def draw_bars(title: str, bars: Sequence[tuple[str, float, str]], *, across: str) -> str:
    """Draw horizontal bars of `(name, value, text)`; the longest fills the width."""
    longest = max((value for _, value, _ in bars), default=0) or 1
    height = 40 + 30 * len(bars) + 24
    shapes = []
    for row, (name, value, text) in enumerate(bars):
        y, width = 40 + 30 * row, 480 * value / longest
        shapes.append(
            f'<text x="240" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="250" y="{y}" width="{max(width, 1):.1f}" height="20" style="fill: {_COLOURS[0]}"/>'
            f'<text x="{256 + width:.1f}" y="{y + 15}">{escape(text)}</text>'
        )
    return _svg(height, title, [*shapes, f'<text x="250" y="{height - 8}">{escape(across)}</text>'])


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _step(value: float, most: int) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten with which at most `most` steps reach the value."""
    if value <= 0:
        return 1 / most
    power = 10.0 ** floor(log10(value / most))
    return next(factor * power for factor in _STEPS if factor * power * most >= value * (1 - 1e-9))


def _ticks(right: float) -> list[float]:
    step = _step(right, 10)
    return [step * number for number in range(floor(right / step + 1e-9) + 1)]


def _frame(
    title: str,
    names: Sequence[str],
    scale: tuple[float, float],
    ticks: Sequence[tuple[float, str]],
    across: str,
    shapes: Sequence[str],
) -> str:
    top, step = scale
    parts = []
    for number in range(round(top / step) + 1):
        y = _y(number * step / top)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number * step:,.6g}</text>'
        )
    parts += [
        f'<text x="{_x(share):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{label}</text>' for share, label in ticks
    ]
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(across)}</text>')
    for place, (colour, dashes, name) in enumerate(zip(_COLOURS, _DASHES, names, strict=False)):
        x = WIDTH - _RIGHT - 110 * (len(names) - place)
        parts.append(
            f'<line x1="{x}" x2="{x + 24}" y1="16" y2="16" style="stroke: {colour}" stroke-width="2.5" '
            f'stroke-dasharray="{dashes}"/><text x="{x + 30}" y="20">{escape(name)}</text>'
        )
    return _svg(HEIGHT, title, [*parts, *shapes])


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    heading = f'<text class="title" x="8" y="20">{escape(title)}</text>'
    body = "\n".join([f'<rect class="paper" width="{WIDTH}" height="{height}"/>', heading, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n{body}\n</svg>'
    )


def stack(*pictures: str) -> str:
    """Return the charts one below the other as one SVG file, with the page's colours."""
    heights = [int(found[1]) for picture in pictures if (found := re.search(r' height="(\d+)"', picture))]
    placed = [
        picture.replace("<svg ", f'<svg y="{sum(heights[:number])}" ', 1) for number, picture in enumerate(pictures)
    ]
    size = f'viewBox="0 0 {WIDTH} {sum(heights)}" width="{WIDTH}" height="{sum(heights)}"'
    body = "\n".join(placed)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n{body}\n</svg>\n'


def join_buckets(buckets: Sequence[tuple[float, float, int]], wanted: int) -> list[tuple[float, float, int]]:
    """Join neighbouring buckets so that at most `wanted` are left; gaps within a joined bucket disappear."""
    size = max(ceil(len(buckets) / wanted), 1)
    groups = [buckets[place : place + size] for place in range(0, len(buckets), size)]
    return [(group[0][0], group[-1][1], sum(count for _, _, count in group)) for group in groups]
