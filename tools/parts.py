"""The parts of the project that a copy can leave out, and the tree without some of them."""

import json
import os
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

from tools import ROOT
from tools.pruning import cut, prune

_DATA = tomllib.loads((ROOT / "tools/new.toml").read_text(encoding="utf-8"))
PARTS: dict[str, dict[str, Any]] = _DATA["parts"]
OPTIONAL = {name for name, part in PARTS.items() if part.get("optional")}
"""Parts that a copy contains only on request."""
PATCH = "docs/done.patch"
"""The worked example of docs/make-it-yours.md, which is renamed for a copy."""
_REVISIONS = "alembic/versions/"
_PATH = re.compile(r"[\w./-]+/[\w./-]*|\w[\w-]*\.\w+")


def complete(left_out: set[str]) -> set[str]:
    """Add the parts that depend on one that is left out."""
    while more := {name for name, part in PARTS.items() if left_out & set(part.get("needs", []))} - left_out:
        left_out = left_out | more
    return left_out


@dataclass(frozen=True)
class Tree:
    """The texts of this project by path, without the parts that are left out."""

    sources: Mapping[str, str]
    modes: Mapping[str, int]
    gone: frozenset[str]
    left_out: frozenset[str]

    @classmethod
    def read(cls, left_out: set[str]) -> Self:
        """Read the files that git tracks or would add."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S603  a constant
        paths = sorted({path for path in listed.split("\0") if path and (ROOT / path).is_file()})
        patterns = [
            *_DATA["always"]["paths"],
            *(path for name in left_out for path in PARTS.get(name, {}).get("paths", [])),
        ]
        return cls(
            {path: (ROOT / path).read_text(encoding="utf-8") for path in paths if not _is_picture(path)},
            {path: (ROOT / path).stat().st_mode & 0o777 for path in paths},
            frozenset(path for path in paths if _is_picture(path) or any(belongs(path, each) for each in patterns)),
            frozenset(left_out),
        )

    @cached_property
    def texts(self) -> dict[str, str]:
        """The texts of the copy."""
        parts = [part for name, part in PARTS.items() if name in self.left_out]
        texts = {path: text for path, text in self.sources.items() if path not in self.gone and path != PATCH}
        (version,) = re.findall(r'^version = "(.*)"$', texts["pyproject.toml"], re.MULTILINE)
        texts |= {path: text.replace("VERSION", version) for path, text in _DATA["always"]["texts"].items()}
        texts = {path: cut(text, {*self.left_out, "new"}, path) for path, text in texts.items()}
        for path, old, new in (change for part in (_DATA["always"], *parts) for change in part.get("instead", [])):
            if path in texts:
                texts[path] = texts[path].replace(old, new)
        for path, word in (each for part in parts for each in part.get("lines", []) if each[0] in texts):
            texts[path] = "".join(line for line in texts[path].splitlines(keepends=True) if word not in line)
        texts["tools/versions.toml"] = prune_pins(texts["tools/versions.toml"], texts)
        roots = set(re.findall(r'"([\w.-]+)[^"]*"', texts["pyproject.toml"].partition("[build-system]")[0]))
        texts |= {path: prune_lock(text, roots) for path, text in texts.items() if fnmatch(path, "requirements/*.txt")}
        texts = self._prune_documents(texts, [re.compile(word) for part in parts for word in part["words"]])
        return renumber(texts, sum(path.startswith(_REVISIONS) for path in self.gone))

    def with_patch(self, patch: str) -> Self:
        """Return this tree after `git apply`."""
        with tempfile.TemporaryDirectory() as folder:

            def git(*arguments: str) -> str:
                command = ["git", *arguments]
                return subprocess.run(  # noqa: S603  constants
                    command, cwd=folder, input=patch, capture_output=True, text=True, check=True
                ).stdout

            git("init", "--quiet")
            paths = [line.split("\t")[2] for line in git("apply", "--numstat", "-").splitlines()]
            for path in self.sources.keys() & set(paths):
                file = Path(folder, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(self.sources[path], encoding="utf-8")
            git("apply", "-")
            return replace(
                self,
                sources={**self.sources, **{path: Path(folder, path).read_text(encoding="utf-8") for path in paths}},
            )

    def _prune_documents(self, texts: dict[str, str], words: list[re.Pattern[str]]) -> dict[str, str]:
        """Prune each document until none links to a heading that another document has lost."""
        lost = _targets(self.sources["Makefile"]) - _targets(texts["Makefile"])
        before = {path: _anchors(text) for path, text in self.sources.items() if path.endswith(".md")}
        while True:
            now = {path: _anchors(text) for path, text in texts.items() if path.endswith(".md")}

            def is_gone(path: str, text: str, now: dict[str, set[str]] = now) -> bool:
                text = re.sub(r"\s+", " ", text)
                named = {word for each in re.findall(r"\bmake((?: +[\w=.-]+)+)", text) for word in each.split()}
                if named & lost or any(word.search(text) for word in words):
                    return True
                for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
                    file = os.path.normpath(Path(path).parent / target) if target else path
                    if self._has_lost(file) or anchor in before.get(file, set()) - now.get(file, set()):
                        return True
                return any(self._has_lost(word) for word in _PATH.findall(text))

            pruned = texts | {path: prune(texts[path], partial(is_gone, path)) for path in now}
            if pruned == texts:
                return texts
            texts = pruned

    def _has_lost(self, path: str) -> bool:
        """Return whether the copy lacks a path, or a file of this name, that this tree has."""
        return path.strip("/") in self._lost

    @cached_property
    def _lost(self) -> set[str]:
        return _entries(self.gone) - _entries(self.sources.keys() - self.gone)


def _is_picture(path: str) -> bool:
    """Return whether a file is a bitmap, which may show the old name."""
    return path.endswith(".png")


def belongs(path: str, pattern: str) -> bool:
    """Return whether a path matches a pattern, which names files or, with a final slash, a folder and its contents."""
    return path.startswith(pattern) if pattern.endswith("/") else fnmatch(path, pattern)


def _entries(paths: Iterable[str]) -> set[str]:
    """Return the paths, their folders, and the names of the files without a folder."""
    paths = set(paths)
    folders = {str(folder) for path in paths for folder in Path(path).parents}
    return paths | folders | {Path(path).name for path in paths if "." in Path(path).name[1:]}


def _targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))


def _anchors(text: str) -> set[str]:
    """Return GitHub's anchors for the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def renumber(texts: Mapping[str, str], fewer: int) -> dict[str, str]:
    """Number the schema's revisions from one again if the first ones are left out."""

    def count(found: re.Match[str]) -> str:
        number = int(found[2]) - fewer
        return f'{found[1]} = "{number:04}"' if number else f"{found[1]} = None"

    numbered = dict(texts)
    for path, text in texts.items() if fewer else ():
        if path.startswith(_REVISIONS):
            del numbered[path]
            file = path.removeprefix(_REVISIONS)
            number, _, rest = file.partition("_")
            path = f"{_REVISIONS}{int(number) - fewer:04}_{rest}"  # noqa: PLW2901  its new path
        if path.endswith(".py"):
            numbered[path] = re.sub(r'\b(SCHEMA_REVISION|revision|down_revision) = "(\d{4})"', count, text)
    return numbered


def prune_pins(text: str, texts: Mapping[str, str]) -> str:
    """Drop the places that the copy does not have from the list of pins, and the pins that then have no place."""
    head, *entries = re.split(r"^(?=\[\[pin\]\]$)", text, flags=re.MULTILINE)
    kept = [head]
    for entry in entries:
        (pin,) = tomllib.loads(entry)["pin"]
        places = [found for place in pin["places"] for found in _find_place(place, pin["version"], texts)]
        places = [*dict.fromkeys(places)]
        if places == pin["places"]:
            kept.append(entry)
        elif places:
            before, _, after = entry.partition("\nplaces = [")
            rest = re.split(r"\]$", after, maxsplit=1, flags=re.MULTILINE)[1]
            kept.append(f"{before}\nplaces = {json.dumps(places, ensure_ascii=False)}{rest}")
    return "".join(kept)


def _find_place(place: str, version: str, texts: Mapping[str, str]) -> Iterator[str]:
    """Yield the place if the copy has it, else the first workflow with the same text."""
    file, _, said = place.partition(": ")
    workflows = (
        sorted(path for path in texts if path.startswith(".github/workflows/")) if said.startswith("uses:") else []
    )
    for path in [file, *workflows]:
        if said.format(version=version) in texts.get(path, ""):
            yield f"{path}: {said}"
            return


def prune_lock(text: str, roots: set[str]) -> str:
    """Drop the packages of a lock that neither the project (`roots`) nor a remaining package requires."""
    head, *blocks = re.split(r"^(?=[a-zA-Z0-9])", text, flags=re.MULTILINE)
    packages = {re.split(r"[=\[ ]", block)[0]: block for block in blocks}
    asked = {
        name: set(re.findall(r"^    #(?:   | via )(-r|[\w.-]+)(?: .*)?$", block, re.MULTILINE)) - {"-c"}
        for name, block in packages.items()
    }
    kept = {name for name, by in asked.items() if not by or "-r" in by or ("goals" in by and name in roots)}
    while more := {name for name, by in asked.items() if by & kept} - kept:
        kept |= more
    lost = packages.keys() - kept

    def without_lost(found: re.Match[str]) -> str:
        return "" if found[1] in lost else found[0]

    return head + "".join(
        re.sub(r"^    #   ([\w.-]+)\n", without_lost, block, flags=re.MULTILINE)
        for name, block in packages.items()
        if name in kept
    )
