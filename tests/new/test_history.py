"""What `make new` writes, which needs ruff beside it: other names, one commit, and nothing left of the old name."""

import re
import subprocess
from pathlib import Path

import pytest

from tools import new
from tools.naming import Names

IDENTITY = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.mark.parametrize(
    ("names", "options", "left_out"),
    [
        (Names("jobs", "job", "jobs"), ["--with", "adoption"], "nothing"),
        (
            Names("appointments", "appointment", "appointments"),
            ["--without", "k8s loadtest"],
            "k8s, azure, argocd, loadtest, drills, adoption",
        ),
        (
            Names("visits", "visit", "visits"),
            ["--without", "azure loadtest"],
            "azure, argocd, loadtest, drills, adoption",
        ),
    ],
)
def test_a_copy_has_other_names_and_a_history_of_its_own(
    names: Names,
    options: list[str],
    left_out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable, value in IDENTITY.items():
        monkeypatch.setenv(variable, value)
    folder = tmp_path / "copy"
    arguments = ["--name", names.name, "--noun", names.noun, "--dir", str(folder), *options]
    assert new.main(arguments) == 0
    assert f"left out: {left_out}\n" in capsys.readouterr().out
    tracked = git(folder, "ls-files").splitlines()
    assert f"services/{names.name}/app.py" in tracked
    assert git(folder, "rev-list", "--count", "HEAD") == "1\n"
    assert git(folder, "status", "--porcelain") == ""
    assert [path for path in tracked if re.search("goal|tools/new|[.]png$", path)] == []
    assert git(folder, "grep", "--ignore-case", "goal").splitlines() == ["Makefile:.DEFAULT_GOAL := help"]
    assert [part for part in ("k8s", "loadtest", "drills") if (folder / part).exists() == (part in left_out)] == []
    git(folder, "apply", "--check", "docs/done.patch")
    assert new.main(arguments) == 1
    assert capsys.readouterr().err == f"error: DIR={folder}: the folder already exists and is not empty\n"


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout  # noqa: S607  the one on the PATH
