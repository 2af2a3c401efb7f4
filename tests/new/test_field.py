"""The worked example of docs/make-it-yours.md: the patch applies and works, and no step of it can be forgotten."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.documents import tracked

PATCH = ROOT / "docs/done.patch"
FILES = re.findall(r"^\+\+\+ b/(.+)$", PATCH.read_text(encoding="utf-8"), re.MULTILINE)
STEPS = {
    "alembic/versions/0003_done.py": ["tests/test_migrations.py"],
    "services/goals/models.py": ["tests/test_migrations.py"],
    "services/goals/schemas.py": ["tests/test_schemas.py"],
    "services/goals/templates/goals.html": ["tests/test_done.py"],
    "services/goals/templates/name.html": ["tests/test_pages.py"],
    "services/goals/api.py": ["tests/test_done.py"],
    "services/goals/telemetry.py": ["tests/test_done.py"],
    "docs/metrics.md": ["tests/docs/test_metrics.py"],
}
"""Each file that is no test, and what turns red without it."""
HOLD = ["done", "fields", "api", "pages", "schemas", "openapi", "store", "migrations", "readiness", "telemetry", "docs"]
"""Modules of tests that look at fields."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of this tree."""
    for path in tracked():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return tmp_path


def test_it_takes_eight_files_beside_the_tests_at_most() -> None:
    changed = [file for file in FILES if not file.startswith("tests/")]
    assert changed == sorted(STEPS)
    assert len(changed) <= 8


def test_the_patch_is_green(folder: Path) -> None:
    apply(folder)
    done = pytest_in(folder, *(f"tests/test_{name}.py" for name in HOLD), "tests/docs/test_metrics.py")
    assert done.returncode == 0, done.stdout[-10_000:]


@pytest.mark.parametrize("forgotten", STEPS)
def test_a_step_that_is_left_out_turns_a_test_red(folder: Path, forgotten: str) -> None:
    apply(folder, f"--exclude={forgotten}")
    done = pytest_in(folder, *STEPS[forgotten], "-x")
    assert done.returncode
    assert re.search(r"\d+ (failed|error)", done.stdout), done.stdout[-10_000:]


def apply(folder: Path, *options: str) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)  # noqa: S607  the one on the PATH
    subprocess.run(["git", "apply", *options, str(PATCH)], cwd=folder, check=True)  # noqa: S607  the same


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests of the copy with this tree's environment; its code comes first."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "MAKE", "PYTEST_"))
    }
    command = [sys.executable, "-B", "-m", "tools.checkout", str(folder), "pytest", "-q", "-n", "2", *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
