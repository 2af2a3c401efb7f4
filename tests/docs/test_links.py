"""Links and paths in the documents lead somewhere."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.documents import commands, documents, parse, tracked

MADE = re.compile(
    r"(^|/)(\.data|\.cache|\.venv|out|node_modules)(/|$)"
    r"|^(private-ca\.crt|bench\.json|summary\.json|report\.html|parity\.(json|md|svg)|my\.toml|notes\.md|uv\.lock|load\.js|compose\.override\.yaml)$"
)
"""What commands make, a user does, or the original Go app has; the tree does not."""

SUFFIXES = "css|env|html|js|json|md|py|sh|sha256|svg|toml|ts|txt|yaml|yml"
DOCUMENTS = documents()


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for link in parse(document)[2]:
        if re.match(r"https?:|mailto:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{name(document)}: {link}"
        if anchor and path.suffix == ".md":
            assert anchor in parse(path)[3], f"{name(document)}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_path_exists(document: Path) -> None:
    pieces = [piece for _, piece in parse(document)[1]]
    words = [word for command in commands(document) for word in command.words]
    for word in {word for piece in pieces for word in piece.split()} | set(words):
        path = word.split("=")[-1].rstrip(".,:;").removeprefix("./")
        if is_path(path, document):
            assert exists(path, document), f"{name(document)}: there is no {path}"


def is_path(word: str, document: Path) -> bool:
    """Whether a word means a file or folder of this repository."""
    if MADE.search(word) or re.search(r"[:$…{}\"'@()|]|^[-/~]|\.\.\.", word):
        return False
    first, slash, _ = word.partition("/")
    if slash:
        return any((folder / first).is_dir() for folder in (ROOT, document.parent) if first not in {".", ".."})
    return re.fullmatch(rf"[\w.-]+\.({SUFFIXES})", word) is not None


def exists(path: str, document: Path) -> bool:
    """Whether the tree has it, from the root, from the document's folder, or by its name alone; NAME stands for any."""
    pattern = re.sub(r"<[^>]+>|\b[A-Z]{2,}\b(?!\.md)", "*", path).rstrip("/")
    if "/" not in path:
        return any(fnmatch(file.name, pattern) for file in tracked())
    return any(next(folder.glob(pattern), None) for folder in (ROOT, document.parent))
