"""List every pin that is not a Python package, with its release date and its end of support (`make versions`)."""

import argparse
import datetime as dt
import json
import re
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_suffix(".toml")
HOST = "https://api.github.com"
Pin = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a pin must be moved or is missing from its file, and 2 if the look-up failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.versions", description="List and check the pins.")
    parser.add_argument("--refresh", action="store_true", help="look up the newest versions first, and record them")
    parser.add_argument("--host", default=HOST, metavar="URL", help=f"API for look-ups (default: {HOST})")
    parser.add_argument("--list", type=Path, default=LIST, metavar="FILE")
    parser.add_argument("--root", type=Path, default=LIST.parents[1], metavar="FOLDER", help="root of the files")
    options = parser.parse_args(arguments)
    today = dt.datetime.now(dt.UTC).date()
    if options.refresh:
        try:
            options.list.write_text(refresh(options.list.read_text(encoding="utf-8"), options.host, today), "utf-8")
        except (urllib.error.URLError, OSError, ValueError) as error:
            print(f"error: {error}; nothing was written", file=sys.stderr)
            return 2
    read = tomllib.loads(options.list.read_text(encoding="utf-8"))
    print(table(read["pin"], today), f"\nlooked up on {read['looked_up']}", sep="\n")
    problems = [problem for pin in read["pin"] for problem in judge(pin, options.root, today)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def judge(pin: Pin, root: Path, today: dt.date) -> Iterator[str]:
    """Yield each reason why a pin must be moved or its entry corrected."""
    named = f"{pin['name']} {pin['version']}"
    ends = pin["support_ends"]
    if isinstance(ends, dt.date) and ends < today:
        held = f" (it stays because {pin['held']})" if "held" in pin else ""
        yield f"support of {named} ended on {ends}: move the pin{held}"
    if pin.get("vulnerable"):
        yield f"{named} has known vulnerabilities ({', '.join(pin['vulnerable'])}): move the pin"
    for place in pin["places"]:
        file, _, text = place.partition(": ")
        text = text.format(version=pin["version"])
        if text not in (root / file).read_text(encoding="utf-8"):
            yield f"{file} does not contain {text!r}: correct the file, or the entry of {pin['name']}"


def table(pins: list[Pin], today: dt.date) -> str:
    """Return one line for each pin, in columns."""
    rows = [("", "pinned", "released", "support ends", "newest", "why it stays")]
    for pin in pins:
        ends = pin["support_ends"]
        left = ends
        if isinstance(ends, dt.date):
            left = f"{ends} ({(ends - today).days} days)" if ends >= today else f"{ends} (ended)"
        newest = "" if pin["newest"] == pin["version"] else pin["newest"]
        rows.append(
            (pin["name"], pin["version"], str(pin.get("released", "unknown")), left, newest, pin.get("held", ""))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def refresh(text: str, host: str, today: dt.date) -> str:
    """Return the list with each repository's newest release and today's date.

    A pin that names a major or a minor version keeps that precision: 7 for v7.1.0 of an action.
    """
    for pin in tomllib.loads(text)["pin"]:
        if "repository" not in pin:
            continue
        tag = look_up(host, pin["repository"], pin.get("tags", ""))
        newest = ".".join(tag.split(".")[: pin["version"].count(".") + 1]) if "." not in pin["newest"] else tag
        entry = rf'(name = "{re.escape(pin["name"])}"\n(?:(?!\[\[).*\n)*?newest = )".*"'
        text = re.sub(entry, rf'\g<1>"{newest}"', text)
    return re.sub(r"(?m)^looked_up = .*$", f"looked_up = {today}", text)


def look_up(host: str, repository: str, prefix: str) -> str:
    """Return the highest released version; its tag is `prefix`, an optional `v`, and numbers.

    Raises `ValueError` if there is none, `OSError` if the host cannot be queried.
    """
    with urllib.request.urlopen(f"{host}/repos/{repository}/tags?per_page=100", timeout=30) as response:  # noqa: S310  the host is a constant, a test's server apart
        tags = [one["name"] for one in json.load(response)]
    numbers = [found[1] for tag in tags if (found := re.fullmatch(rf"{re.escape(prefix)}v?(\d+(?:\.\d+)*)", tag))]
    if not numbers:
        raise ValueError(f"{repository} has no tag that is a version")
    return max(numbers, key=lambda number: [int(part) for part in number.split(".")])


if __name__ == "__main__":
    sys.exit(main())
