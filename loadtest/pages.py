"""Reports in a common design, each a single HTML page without scripts or other files."""

import re
from collections.abc import Sequence
from html import escape, unescape
from typing import Literal

from loadtest import charts

Kind = Literal["good", "bad", "none"]
_KINDS: dict[str, Kind] = {"pass": "good", "FAIL": "bad", "none": "none", "NOT RUN": "none"}
"""Styles for the last column of a table; a leading sign shows the same without colours."""
_GRID = 4
"""Tables with up to this many columns align them with one another."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 1.5rem auto; padding: 0 1rem }
body { color: var(--title); background: var(--paper) }
h1 { font-size: 26px; line-height: 1.25; margin: 0 } h2 { font-size: 18px; margin: 2rem 0 .25rem }
p, li { overflow-wrap: anywhere } .about, .kind { color: var(--text) } .warn { color: var(--warn) }
.banner { border: 1px solid var(--grid); border-left: 8px solid var(--text); border-radius: 6px; padding: .75rem 1rem }
.banner h2 { margin: 0 } .banner p, .banner ul { margin: .4rem 0 0 } .banner ul { padding-left: 1.25rem }
.banner.good { border-left-color: var(--good) } .banner.bad { border-left-color: var(--bad) }
.good, .bad { font-weight: 600 } .banner { font-weight: normal }
.outcome.good, td.good { color: var(--good) } .outcome.bad, td.bad { color: var(--bad) }
.outcome::before, td:is(.good, .bad, .none)::before { content: "\\2013\\a0"; content: "\\2013\\a0" / "" }
.good:is(.outcome, td)::before { content: "✓\\a0"; content: "✓\\a0" / "" }
.bad:is(.outcome, td)::before { content: "✕\\a0"; content: "✕\\a0" / "" }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .75rem 1rem }
.figures { margin: 1rem 0 }
.figures div:first-child { grid-column: 1 / -1 } .figures div:first-child dd { font-size: 32px; line-height: 1.2 }
dt { color: var(--text); font-size: 13px } dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums }
dd small { font-weight: normal; font-size: 13px; color: var(--text); display: block }
.figures div:first-child small { font-size: 16px; display: inline }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--grid); vertical-align: top }
td, th { white-space: nowrap } td:first-child, th:first-child { text-align: left; padding-left: 0 }
td:last-child, th:last-child { padding-right: 0 }
.grid { table-layout: fixed } .grid :is(td, th) { white-space: normal; overflow-wrap: anywhere }
.grid th:not(:first-child) { width: 8rem }
.wide { overflow-x: auto } .wide svg { display: block; min-width: 620px; width: 100%; margin-top: 1rem }
@media (max-width: 600px) {
  .grid { font-size: 13px } .grid th:not(:first-child) { width: 4.6rem } .grid :is(td, th) { padding: .25rem }
}
"""


def write_page(title: str, body: str) -> str:
    """Return a complete page; `title` is plain text, `body` is HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>
<style>{_STYLE}{charts.STYLE}</style></head><body><main>
{body}
</main></body></html>
"""


def write_banner(
    name: str, outcome: str, kind: Kind, *, reasons: Sequence[str] = (), about: str = "", level: int = 1, more: str = ""
) -> str:
    """Return the banner with the outcome and its reasons. All texts are plain, except `more`, which is HTML."""
    items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    list_ = f"<ul>{items}</ul>" if items else ""
    details = f'<p class="about">{escape(about)}</p>' if about else ""
    return (
        f'<section class="banner verdict {kind}">'
        f'<h{level}>{escape(name)}: <span class="outcome {kind}">{escape(outcome)}</span></h{level}>'
        f"{list_}{details}{more}</section>"
    )


def write_figures(figures: Sequence[tuple[str, str, str]]) -> str:
    """Return names, values and notes as figures; the first is the most important, and is shown largest."""
    items = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)} <small>{escape(note)}</small></dd></div>"
        for name, value, note in figures
    ]
    return f'<dl class="figures">{"".join(items)}</dl>'


def write_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, level: int = 2) -> str:
    """Return a table of plain texts under its title, or "" without rows; a last cell `pass` or `FAIL` is marked.

    The tables of a page align their columns, except tables with more than `_GRID` columns.
    """
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[:-1])
        + f'<td class="{_KINDS.get(row[-1], "")}">{escape(row[-1])}</td></tr>'
        for row in rows
    )
    grid = ' class="grid"' if len(heads) <= _GRID else ""
    table = f"<table{grid}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<h{level}>{escape(title)}</h{level}>{_scroll(title, table)}"


def write_charts(pictures: Sequence[str]) -> str:
    """Return the charts one below the other; on a small screen, each scrolls sideways."""
    titles = [re.findall(r'aria-label="([^"]*)"', picture)[0] for picture in pictures]
    return "\n".join(
        _scroll(f"{unescape(title)}: chart", picture) for title, picture in zip(titles, pictures, strict=True)
    )


def _scroll(name: str, content: str) -> str:
    """Wrap content that may be wider than the screen, so that it scrolls, also with the keyboard."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}">{content}</div>'


def write_markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; columns with figures are right-aligned."""
    figures = [any(cell[:1].isdigit() for cell in column) for column in zip(*rows, strict=True)]
    aligned = ["---:" if is_figure else "---" for is_figure in figures]
    return [f"| {' | '.join(cells)} |" for cells in (heads, aligned or ["---"] * len(heads), *rows)]
