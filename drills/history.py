"""Finds the version of the service that ran with each schema revision, in the project's git history."""

import shutil
import subprocess
import zipfile
from pathlib import Path

from tools.checkout import SOURCES

VERSIONS = "alembic/versions"
_MAIN = "services/goals/__main__.py"


class HistoryError(Exception):
    """The git history is missing or incomplete; the message says what to do."""


class History:
    """The git history of the project at `root`, as of HEAD."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self, *, whole: bool) -> None:
        """Raise a `HistoryError` unless there is a history, and with `whole`, a complete one."""
        if shutil.which("git") is None:
            raise HistoryError(
                "there is no git on the PATH: install it, because the former version comes from the git history"
            )
        top = self._ask("rev-parse", "--show-toplevel")
        # An unpacked archive may be inside another repository.
        if top is None or Path(top).resolve() != self._root.resolve():
            raise HistoryError("there is no git history here to get the former version from: use a clone")
        if whole and self._ask("rev-parse", "--is-shallow-repository") != "false":
            raise HistoryError("this clone is shallow and lacks the former version: git fetch --unshallow")

    def find_last(self, revision: str, successor: str | None) -> str | None:
        """Return the last commit in which `revision` was the newest one, or None if no service ever ran with it.

        `successor` is the next revision: the result is the commit before the one that added its file. If it is not
        committed yet, or there is none, the result is HEAD.
        """
        commit: str | None = "HEAD"
        if successor is not None:
            added = self._ask("log", "--diff-filter=A", "--format=%H", "--", f":(glob){VERSIONS}/{successor}_*.py")
            if added:
                commit = f"{added.split()[-1]}^"
        files = self._ask("ls-tree", "-r", "--name-only", f"{commit}", "--", VERSIONS, _MAIN) or ""
        found = [Path(line) for line in files.splitlines()]
        is_served = Path(_MAIN) in found and any(file.name.startswith(f"{revision}_") for file in found)
        return self._ask("rev-parse", "--short", f"{commit}^{{commit}}") if is_served else None

    def unpack(self, commit: str, folder: Path) -> None:
        """Extract the service and its migrations as of that commit into the folder."""
        archive = folder.with_suffix(".zip")
        if self._ask("archive", "--format=zip", f"--output={archive}", commit, "--", *SOURCES) is None:
            raise HistoryError(f"git cannot extract commit {commit}")
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
        archive.unlink()

    def _ask(self, *arguments: str) -> str | None:
        """Return git's output, or None if it fails."""
        git = shutil.which("git") or "git"
        done = subprocess.run([git, *arguments], check=False, cwd=self._root, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None


def list_revisions(root: Path) -> list[str]:
    """Return all revisions of the schema in order; they are numbered."""
    return sorted(file.name.partition("_")[0] for file in (root / VERSIONS).glob("[0-9]*_*.py"))
