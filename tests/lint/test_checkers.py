"""The checkers that `make check` calls find what they are there for: it does not pass because they say nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

WORKFLOW = """
name: broken
on: {{pull_request: }}
permissions: {{}}
jobs:
  build:
    runs-on: ubuntu-24.04
    steps:
      - run: {run}
"""


@pytest.mark.parametrize(
    ("checker", "run", "finding"),
    [
        ("actionlint", "echo ${{ github.repositry }}", "repositry"),
        ("actionlint", "rm $1/*", "shellcheck"),
        ("zizmor", "echo ${{ github.event.pull_request.title }}", "template-injection"),
    ],
)
def test_a_broken_workflow_is_refused(checker: str, run: str, finding: str, tmp_path: Path) -> None:
    workflow = tmp_path / ".github/workflows/broken.yaml"
    workflow.parent.mkdir(parents=True)
    workflow.write_text(WORKFLOW.format(run=run))
    options = ["--offline"] if checker == "zizmor" else ["-shellcheck", str(BIN / "shellcheck")]
    done = subprocess.run([BIN / checker, *options, workflow], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert finding in done.stdout


@pytest.mark.parametrize(
    ("checker", "text", "finding"),
    [("shellcheck", "#!/bin/sh\nrm $1\n", "SC2086"), ("hadolint", "FROM debian\n", "DL3006")],
)
def test_a_careless_script_or_image_is_refused(checker: str, text: str, finding: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    done = subprocess.run([BIN / checker, path], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert finding in done.stdout


def test_a_misspelt_word_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.md"
    path.write_text("Recieve it.\n")  # codespell:ignore
    done = subprocess.run([BIN / "codespell", path], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Receive" in done.stdout
