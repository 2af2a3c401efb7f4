"""Enforce docs/terms.md: no document, message, comment or name may use a word that the page rules out."""

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

from tools import ROOT
from tools.documents import tracked

PAGE = ROOT / "docs/terms.md"
OTHERS = re.compile(r"^requirements/|package-lock\.json$|\.png$|^docs/terms\.md$|^LICENSE$")
"""Third-party files, and the page itself."""


class Term(NamedTuple):
    """A word that is ruled out, as a name in code or in any text, and its replacement."""

    word: str
    is_name: bool
    instead: str


def read_terms(page: str) -> list[Term]:
    """Return the entries in the right column of the page's second table."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", page.partition("| write | not |\n|---|---|\n")[2], re.MULTILINE)
    return [Term(word.strip("`"), word[0] == "`", row[0]) for row in rows for word in row[1].split(", ")]


def find(text: str, terms: list[Term], *, is_python: bool) -> Iterator[str]:
    """Yield each use of a term: its line number, the term, and the replacement."""
    names = list(_names(text)) if is_python else []
    for word, is_name, instead in terms:
        if is_name:
            lines = [line for line, name in names if word in {name, name.strip("_")}]
        else:  # a phrase may continue on the next line, after the mark of a comment or a quotation
            phrase = r"[\s#>/*\"]+".join(map(re.escape, word.split()))
            found = re.finditer(rf"\b{phrase}\b", text, re.IGNORECASE)
            lines = [text.count("\n", 0, match.start()) + 1 for match in found]
        yield from (f"{line}: `{word}`: write {instead}" for line in lines)


def _names(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def main() -> int:
    terms = read_terms(PAGE.read_text(encoding="utf-8"))
    findings = [
        f"{name}:{finding}"
        for path in tracked()
        if not OTHERS.search(name := path.relative_to(ROOT).as_posix())
        for finding in find(path.read_text(encoding="utf-8"), terms, is_python=path.suffix == ".py")
    ]
    sys.stderr.writelines(f"{finding} ({PAGE.relative_to(ROOT)})\n" for finding in findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
