"""Tables in pages."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.page import main

PLACE = "<!-- speed: made by `make speed-readme` -->\nold\n<!-- end of speed -->"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{PLACE}\nafter\n")
    return page


def test_a_text_takes_the_place_of_the_former_one(page: Path, tmp_path: Path) -> None:
    (tmp_path / "speed.md").write_text("new\n\n")
    command = [sys.executable, "-m", "tools.page", str(page), "speed", str(tmp_path / "speed.md")]
    subprocess.run(command, cwd=ROOT, check=True)
    assert page.read_text() == f"before\n{PLACE.replace('old', 'new')}\nafter\n"


def test_what_was_not_measured_yet_is_told_with_the_command(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(page), "speed", str(tmp_path / "speed.md")]) == 1
    assert "run `make speed` first" in capsys.readouterr().err


@pytest.mark.parametrize("missing", PLACE.splitlines()[::2])
def test_a_page_without_the_place_is_left_alone(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    (tmp_path / "speed.md").write_text("new")
    page.write_text(text := page.read_text().replace(missing, ""))
    assert main([str(page), "speed", str(tmp_path / "speed.md")]) == 1
    assert "has no place for it" in capsys.readouterr().err
    assert page.read_text() == text
