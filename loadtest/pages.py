"""Reports as one HTML page without scripts or other files, and its tables: those of the load test and of the drills."""

from collections.abc import Sequence
from html import escape

from loadtest import charts

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem }
body { color: var(--title); background: var(--paper) } svg { width: 100% }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .5rem 1rem }
dt { color: var(--text); font-size: 13px } dd { margin: 0; font-weight: 600 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums }
td, th { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--grid) }
td:first-child, th:first-child { text-align: left }
.wide { overflow-x: auto } p { overflow-wrap: anywhere }
.bad { color: var(--bad); font-weight: 600 } .warn { color: var(--warn) }
"""


def write_page(title: str, body: str) -> str:
    """A whole page; `title` is plain text, `body` HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>
<style>{_STYLE}{charts.STYLE}</style></head><body>
{body}
</body></html>
"""


def write_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts under its title, or nothing where it has no rows; the cell `FAIL` stands out."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td{' class=bad' if cell == 'FAIL' else ''}>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<h2>{escape(title)}</h2><div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def write_markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; columns of figures, which is what stands behind the first, are set right."""
    figures = [any(cell[:1].isdigit() for cell in column) for column in zip(*rows, strict=True)]
    aligned = ["---:" if is_figure else "---" for is_figure in figures]
    return [f"| {' | '.join(cells)} |" for cells in (heads, aligned or ["---"] * len(heads), *rows)]
