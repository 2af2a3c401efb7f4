"""README's first command as a newcomer types it, the blocks that are marked to run, and what is left afterwards."""

import os
import re
import signal
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.conftest import ROOT
from tests.docs.conftest import Clone
from tests.prose import prose
from tools.documents import SHELL, Block, documents, parse, tracked

MARKED = [
    block
    for document in documents()
    for block in parse(document)[0]
    if block.info[:1] and block.info[0] in SHELL and "run" in block.info
]


@prose
def test_readme_s_first_block_begins_with_the_two_commands() -> None:
    first = next(block for block in parse(ROOT / "README.md")[0] if block.info[0] in SHELL)
    assert [line.split()[:2] for line in first.text.splitlines()] == [["make", "up"], ["make", "test"]]


def test_a_fresh_clone_serves_the_page_and_the_ops_port(clone: Clone) -> None:
    assert "<h1" in httpx2.get(clone.page).raise_for_status().text
    assert httpx2.get(f"{clone.operators}/readyz").status_code == 200


@prose
def test_something_is_marked_to_run() -> None:
    assert MARKED


@pytest.mark.parametrize("block", MARKED, ids=lambda block: block.place)
def test_the_block_runs(block: Block, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    text = block.text
    if "service" in block.info:  # it speaks to the service, which listens elsewhere here
        clone = request.getfixturevalue("clone")
        text = text.replace("http://127.0.0.1:8080", clone.page).replace("http://127.0.0.1:9464", clone.operators)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],  # noqa: S607 - the one on the PATH
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, f"{block.place}\n{text}\n{done.stdout}{done.stderr}"


def test_ctrl_c_stops_everything_and_make_clean_leaves_the_clone_as_it_was(clone: Clone) -> None:
    refused = make(clone, "clean-data")
    assert refused.returncode
    assert "error: the embedded server's data is in use" in refused.stderr
    os.killpg(clone.process.pid, signal.SIGINT)
    clone.process.wait(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.killpg(clone.process.pid, 0)
    for url in (clone.page, clone.operators):
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(url)
    assert make(clone, "clean").returncode == 0
    left = clone.files() - clone.before
    assert {path.parts[0] for path in left} == {".data"}  # the newcomer's goals
    assert clone.before <= clone.files()
    assert make(clone, "clean-data").returncode == 0
    assert clone.files() == clone.before


def make(clone: Clone, target: str) -> subprocess.CompletedProcess[str]:
    command = ["make", target]
    return subprocess.run(command, cwd=clone.folder, capture_output=True, text=True, check=False)


def test_no_command_stops_or_removes_what_it_did_not_start() -> None:
    """No script or target of ours ends processes by name, or all containers of the machine."""
    forbidden = re.compile(r"\b(pkill|killall)\b|docker \w+ prune|docker (stop|rm|rmi) \$")
    for path in [ROOT / "Makefile", *(path for path in tracked() if path.suffix == ".sh" or path.parent.name == ".ci")]:
        assert not forbidden.search(path.read_text(encoding="utf-8")), path
