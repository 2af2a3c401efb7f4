"""A release's notes and images."""

# part azure
import shutil

# end azure
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

# part azure
import yaml

# end azure
from goals import __version__
from tests.conftest import ROOT
from tools import release

CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2030-01-02

### Added

- More.

## [0.1.0] - 2030-01-01

- It.
"""
# part azure
GOALS = f"ghcr.io/owner/goals:0.2.0@sha256:{'a' * 64}"
# part loadtest
LOADTEST = f"registry.example.com:5000/goals-loadtest:0.2.0@sha256:{'b' * 64}"
# end loadtest
# end azure


def test_the_notes_are_the_version_s_section_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    assert release.main(["notes", "0.2.0", "--changelog", str(tmp_path / "CHANGELOG.md")]) == 0
    assert capsys.readouterr().out == "### Added\n\n- More.\n"
    assert release.notes(CHANGELOG, "0.1.0") == "- It."
    assert release.notes(CHANGELOG) == "### Added\n\n- More."


@pytest.mark.parametrize("version", ["Unreleased", "0.3.0", "0.1"])
def test_a_version_without_a_word_in_the_changelog_is_refused(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    assert release.main(["notes", version, "--changelog", str(tmp_path / "CHANGELOG.md")]) == 1
    assert f"error: CHANGELOG.md has no entry for {version}" in capsys.readouterr().err


def test_a_changelog_without_a_version_is_refused() -> None:
    with pytest.raises(ValueError, match="has no entry for any version"):
        release.notes("# Changelog\n\n## [Unreleased]\n")


def test_make_prints_the_newest_version_s_notes_and_the_workflow_runs_the_same() -> None:
    made = subprocess.run(
        ["make", "release-notes"],  # noqa: S607  whichever the user has
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.strip() == release.notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), __version__)
    workflow = (ROOT / ".github/workflows/release.yaml").read_text(encoding="utf-8")
    assert workflow.count("make release-notes VERSION=") == 2


# part azure
def test_the_images_arrive_in_the_site_and_nothing_else_changes(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    shutil.copy(release.SITE, site)
    before = yaml.safe_load(site.read_text())["data"]
    assert release.main(["images", GOALS, LOADTEST, "--site", str(site)]) == 0
    assert yaml.safe_load(site.read_text())["data"] == before | {"image": GOALS, "loadtestImage": LOADTEST}


@pytest.mark.parametrize("image", ["", "ghcr.io/owner/goals:0.2.0", f"goals:1@sha256:{'a' * 64}", GOALS[:-1]])
def test_an_image_without_a_digest_is_refused(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site.yaml"
    shutil.copy(release.SITE, site)
    assert release.main(["images", image, LOADTEST, "--site", str(site)]) == 1
    assert "is not REGISTRY/NAME:VERSION@sha256:DIGEST" in capsys.readouterr().err
    assert site.read_text() == release.SITE.read_text()


def test_a_site_without_the_line_is_refused() -> None:
    with pytest.raises(ValueError, match="0 lines `image:`"):
        release.with_images("data: {}\n", [GOALS, LOADTEST])


# end azure
def test_the_command_exits_with_what_main_returns() -> None:
    done = subprocess.run([sys.executable, "-m", "tools.release", "notes", "0.0.0"], capture_output=True, check=False)
    assert done.returncode == 1


def test_the_version_is_the_same_wherever_it_stands() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__
