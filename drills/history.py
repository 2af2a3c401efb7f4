"""Which version of the service each schema revision has been served by, from the project's own git history."""

import shutil
import subprocess
import zipfile
from pathlib import Path

from tools.checkout import SOURCES

VERSIONS = "alembic/versions"
_MAIN = "services/goals/__main__.py"


class HistoryError(Exception):
    """The history cannot tell: it is not there, or not all of it. The message says what to do."""


class History:
    """The git history of the project at `root`, as it is at its HEAD."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self, *, whole: bool) -> None:
        """Raise a `HistoryError` unless there is a history; `whole`: one from its beginning."""
        if shutil.which("git") is None:
            raise HistoryError("there is no git on the PATH: install it, as the former version comes from the history")
        top = self._ask("rev-parse", "--show-toplevel")
        # An unpacked archive may lie in somebody else's repository.
        if top is None or Path(top).resolve() != self._root.resolve():
            raise HistoryError("there is no git history here, which has the former version: use a clone")
        if whole and self._ask("rev-parse", "--is-shallow-repository") != "false":
            raise HistoryError("this clone is shallow and lacks the former version: git fetch --unshallow")

    def find_last(self, revision: str, successor: str | None) -> str | None:
        """Give the last commit in which `revision` was the newest one, or None where no service ever ran with that.

        `successor` is the revision that came next: the commit before the one that has added its file is the one. Where
        it is not committed yet, or there is none, that is HEAD.
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
        """Write what the service and its migrations were in that commit into the folder."""
        archive = folder.with_suffix(".zip")
        if self._ask("archive", "--format=zip", f"--output={archive}", commit, "--", *SOURCES) is None:
            raise HistoryError(f"git cannot give what commit {commit} held")
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
        archive.unlink()

    def _ask(self, *arguments: str) -> str | None:
        """What git answers, or None where it refuses."""
        git = shutil.which("git") or "git"
        done = subprocess.run([git, *arguments], check=False, cwd=self._root, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None


def list_revisions(root: Path) -> list[str]:
    """All revisions of the schema, in their order: they are numbered."""
    return sorted(file.name.partition("_")[0] for file in (root / VERSIONS).glob("[0-9]*_*.py"))
