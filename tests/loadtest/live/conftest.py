"""A scripted server and a command that plays a scenario against it."""

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from tests.loadtest.live.scripted import Server

ROOT = Path(__file__).parents[3]
LOCUST = [sys.executable, "-m", "locust"]


class Played(NamedTuple):
    """A run that has ended: its exit code, what it printed, its summary and its journal."""

    code: int
    out: str
    err: str
    summary: dict[str, Any]
    journal: list[dict[str, Any]]

    def values(self, metric: str) -> dict[str, float]:
        return dict(self.summary["metrics"][metric]["values"])

    @property
    def requests(self) -> int:
        return int(self.values("http_reqs")["count"])


Play = Callable[..., Played]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_server(authority: trustme.CA) -> Iterator[Server]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    with Server(context) as running:
        yield running


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Play a scenario given as TOML text against a base URL; more options may follow."""

    def run(scenario: str, url: str, *options: str, environment: dict[str, str] | None = None) -> Played:
        file, out, journal = tmp_path / "played.toml", tmp_path / "out", tmp_path / "journal.jsonl"
        file.write_text(scenario)
        arguments = ["--headless", "--scenario", str(file), "--host", url, "--out", str(out), "--journal", str(journal)]
        done = subprocess.run(
            [*LOCUST, *arguments, *options],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        summary = out / "summary.json"
        lines = journal.read_text().splitlines() if journal.exists() else []
        return Played(
            done.returncode,
            done.stdout,
            done.stderr,
            json.loads(summary.read_text()) if summary.exists() else {},
            [json.loads(line) for line in lines],
        )

    return run
