"""What commands measure, in the pages that show it: each table stands between two comments that name its command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def fill(page: Path, name: str, text: str) -> None:
    """Put `text` in the place of `name`; a `ValueError` says that `page` has none."""
    begin, end = f"<!-- {name}: made by `make {name}-readme` -->", f"<!-- end of {name} -->"
    before, begun, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"{page} has no place for it: write {begin} and {end} where it belongs")
    page.write_text(f"{before}{begin}\n{text.rstrip()}\n{end}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.page", description="Put a file's text into a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("name", help="what the page calls it")
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    try:
        fill(options.page, options.name, options.file.read_text(encoding="utf-8"))
    except OSError as error:
        sys.stderr.write(f"error: cannot use {error.filename} ({error.strerror}): run `make {options.name}` first\n")
        return 1
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
