"""A newcomer's clone, in which the service is started as README says."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.documents import tracked

PATIENCE = 240
"""Seconds until `make up` serves, wheels from the registry included."""


@dataclass
class Clone:
    """A copy of the repository as git would give it, and the service that `make up` runs in it."""

    folder: Path
    before: set[Path]
    process: subprocess.Popen[bytes]
    page: str
    operators: str

    def files(self) -> set[Path]:
        return {path.relative_to(self.folder) for path in self.folder.rglob("*")}


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """The first of README's two commands in a fresh copy, on ports that the kernel chooses; stopped by Ctrl-C."""
    folder = tmp_path_factory.mktemp("newcomer") / "goals"
    for path in tracked():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    before = {path.relative_to(folder) for path in folder.rglob("*")}
    log = folder.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "up"],  # noqa: S607 - the one on the PATH
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith(("DB_", "MAKE"))}
            | {"GOALS_PORT": "0", "GOALS_OPS_PORT": "0"},
        )
    until = time.monotonic() + PATIENCE
    try:
        while not (found := re.findall(r"^  (?:the page|for operators) +(http\S+)", log.read_text(), re.MULTILINE)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, f"not served after {PATIENCE} seconds:\n{log.read_text()}"
            time.sleep(0.1)
        yield Clone(folder, before, process, page=found[0], operators=found[1])
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=30)
