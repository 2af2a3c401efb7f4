"""Services made by `make new`: of other names and sizes, each green by its own checks and tests."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

CRDS = Path(os.environ.get("CRDS", ROOT / ".cache/crds"))


class Copy(NamedTuple):
    """What is asked of `make new`, what is run in the copy, and the minutes that it may take."""

    options: tuple[str, ...]
    targets: tuple[str, ...]
    minutes: int


COPIES = {
    "small": Copy(("NAME=orders", "NOUN=order", "WITHOUT=k8s loadtest"), ("check", "test", "docs-test"), 4),
    "colliding": Copy(("NAME=planner", "NOUN=task", "WITHOUT=k8s"), ("check", "test"), 5),
    "full": Copy(("NAME=habits", "NOUN=habit", "WITH=adoption"), ("check", "test"), 5),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_passes_its_own_checks_and_tests(copy: Copy, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    begun = time.monotonic()
    run(ROOT, "make", "new", f"DIR={folder}", *copy.options)
    took = {"new": time.monotonic() - begun}
    assert run(folder, "git", "grep", "--ignore-case", "goal").splitlines() == ["Makefile:.DEFAULT_GOAL := help"]
    for target in copy.targets:
        begun = time.monotonic()
        run(folder, "make", target)
        took[target] = time.monotonic() - begun
    assert run(folder, "git", "status", "--porcelain") == ""
    if (folder / "k8s").exists():
        if shutil.which("kubectl") is None or not CRDS.is_dir():
            pytest.skip("the manifests are not rendered: that needs kubectl and the CRDs (make crds)")
        run(folder, ".venv/bin/python", "-m", "tools.lint", CRDS=str(CRDS))
    print(" ".join(f"{target} {seconds:.0f} s" for target, seconds in took.items()), f"(at most {copy.minutes} min)")  # noqa: T201  figures for the one who runs it


def run(folder: Path, *command: str, **variables: str) -> str:
    """Run a command as somebody would who has just opened a terminal there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "MAKE", "PYTEST_"))}
    identity = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        command, cwd=folder, env=kept | identity | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-10_000:]}{done.stderr[-5_000:]}"
    return done.stdout
