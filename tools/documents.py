"""Parse the documents: headings, links, pieces of code, and the commands in them."""

import functools
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tools import ROOT

SHELL = {"sh", "bash", "console", "shell"}
PROGRAMS = {
    "alembic",
    # part argocd
    "argocd",
    # end argocd
    # part azure
    "az",
    # end azure
    "cosign",
    "curl",
    "docker",
    "gh",
    "git",
    # part k8s
    "helm",
    "kind",
    "kubectl",
    # end k8s
    # part azure
    "kubelogin",
    # end azure
    # part loadtest
    "locust",
    # end loadtest
    "make",
    "python",
}
"""An inline piece of code is a command if it begins with one of these."""


KEY_WORDS = {"!", "do", "done", "else", "fi", "if", "then", "until", "while", "{", "}"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its position, the words after the fence, and its text."""

    document: Path
    line: int
    info: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One simple command, without its redirections and variable assignments."""

    place: str
    words: tuple[str, ...]


def documents() -> list[Path]:
    """Return every Markdown file of the repository."""
    return [path for path in tracked() if path.suffix == ".md"]


@functools.cache
def tracked() -> list[Path]:
    """Return every file that git tracks or would add, except deleted ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S603  a constant
    return [path for name in sorted(set(listed.splitlines())) if (path := ROOT / name).exists()]


@functools.cache
def parse(document: Path) -> tuple[list[Block], list[tuple[int, str]], list[str], set[str]]:
    """Return a document's fenced blocks, inline pieces of code with their lines, link targets, and anchors."""
    blocks: list[Block] = []
    pieces: list[tuple[int, str]] = []
    links: list[str] = []
    text = document.read_text(encoding="utf-8")
    anchors: list[str] = re.findall(r'<a (?:id|name)="([^"]+)"', text)
    heading = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        line = (token.map or [0])[0] + 1
        if token.type == "fence":
            blocks.append(Block(document, line, tuple(token.info.split()), token.content))
        heading = token.type == "heading_open" or (heading and token.type != "heading_close")
        for child in token.children or []:
            if child.type == "code_inline":
                pieces.append((line, child.content))
            links += [str(child.attrs[name]) for name in ("href", "src") if name in child.attrs]
        if heading and token.children:
            slug = slugify("".join(child.content for child in token.children))
            taken = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", anchor) is not None for anchor in anchors)
            anchors.append(f"{slug}-{taken}" if taken else slug)
    return blocks, pieces, links, set(anchors)


def slugify(heading: str) -> str:
    """Return GitHub's anchor for a heading's text."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def commands(document: Path) -> Iterator[Command]:
    """Yield each command of a document: in shell blocks, and in inline code that begins with a program's name."""
    blocks, pieces, _, _ = parse(document)
    for block in blocks:
        if block.info and block.info[0] in SHELL:
            for words in simple_commands(block.text):
                yield Command(block.place, words)
    for line, piece in pieces:
        first, _, rest = piece.partition(" ")
        if rest and (first in PROGRAMS or (ROOT / first).is_file()):
            for words in simple_commands(piece):
                yield Command(f"{document.relative_to(ROOT)}:{line}", words)


def simple_commands(text: str) -> Iterator[tuple[str, ...]]:
    """Split a shell text at newlines and operators; a command within `$(…)` becomes a separate command.

    Key words of the shell, and functions that the text itself defines, are no commands.
    """
    functions = set(re.findall(r"^\s*(\w+)\(\)", text, re.MULTILINE))
    for line in text.replace("\\\n", " ").splitlines():
        outer = re.sub(r"\$\(\(.*?\)\)", "0", line)
        while inner := re.search(r"\$\(([^()]*)\)", outer):
            yield from simple_commands(inner[1])
            outer = outer[: inner.start()] + "SUBSTITUTED" + outer[inner.end() :]
        lexer = shlex.shlex(outer, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        redirected = False
        for word in [*lexer, ";"]:
            if set(word) <= set("<>"):
                redirected = True
            elif redirected:
                redirected = False
            elif set(word) <= set("|&;()"):
                if words and words[0] not in functions:
                    yield tuple(words)
                words = []
            elif words or not (word in KEY_WORDS or re.match(r"\w+=", word)):
                words.append(word)
