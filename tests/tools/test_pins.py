"""Pinning, against repositories that the tests make."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import pins

WORKFLOW = """
jobs:
  build:
    steps:
      - uses: actions/checkout@v7
      - uses: github/codeql-action/init@v4
      - uses: local/pinned@0123456789012345678901234567890123456789 # v1.0.0
      - uses: ./.github/actions/ours
"""


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=Test", "-c", "user.email=test@example.com", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def host(tmp_path: Path) -> str:
    """Two actions' repositories: one with an annotated and a plain tag for a release, one with one tag."""
    for name, tags in (("actions/checkout", ("v7.0.1", "v7")), ("github/codeql-action", ("v4",))):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet")
        git(folder, "commit", "--quiet", "--allow-empty", "--message", "Release")
        for tag in tags:
            git(folder, "tag", *(["--annotate", "--message", tag] if "." in tag else []), tag)
    return tmp_path.as_uri()


@pytest.fixture
def workflows(tmp_path: Path) -> Path:
    folder = tmp_path / "workflows"
    folder.mkdir()
    (folder / "ci.yaml").write_text(WORKFLOW)
    return folder


def test_each_version_becomes_the_commit_that_it_names(
    host: str, workflows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pins.main(["--host", host, "--workflows", str(workflows)]) == 0
    checkout, codeql = (
        git(tmp_path / name, "rev-parse", "HEAD") for name in ("actions/checkout", "github/codeql-action")
    )
    pinned = WORKFLOW.replace("checkout@v7", f"checkout@{checkout} # v7.0.1").replace("init@v4", f"init@{codeql} # v4")
    assert (workflows / "ci.yaml").read_text() == pinned
    assert f"actions/checkout@v7 is {checkout} # v7.0.1" in capsys.readouterr().out
    assert pins.main(["--host", host, "--workflows", str(workflows)]) == 0
    assert (workflows / "ci.yaml").read_text() == pinned


@pytest.mark.parametrize(("missing", "message"), [("checkout@v8", "no such tag"), ("nothing@v7", "actions/nothing")])
def test_what_cannot_be_looked_up_changes_nothing(
    missing: str, message: str, host: str, workflows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workflows / "other.yaml").write_text(f"      - uses: actions/{missing}\n")
    assert pins.main(["--host", host, "--workflows", str(workflows)]) == 1
    assert (workflows / "ci.yaml").read_text() == WORKFLOW
    assert message in capsys.readouterr().err


def test_the_command_says_what_it_cannot_do(workflows: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.pins", "--host", tmp_path.as_uri(), "--workflows", str(workflows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: actions/checkout@v7: ")
