"""A scripted server and a command that plays a scenario against it."""

import json
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from tests.loadtest.live.scripted import Server
from tools.polling import wait_until
from tools.ports import reserved

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


@pytest.fixture
def port() -> Iterator[str]:
    with reserved(1) as (number,):
        yield str(number)


@pytest.fixture
def processes(port: str) -> tuple[str, ...]:
    """What splits a run over two processes."""
    return ("--processes", "2", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)


@contextmanager
def web_ui(*options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    with reserved(1) as (port,):
        command = [*LOCUST, "--web-port", str(port), *options]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: answers(url))
            yield url, process
        finally:
            process.kill()
            process.communicate()


def answers(url: str) -> bool:
    try:
        read(url)
    except urllib.error.HTTPError:
        return True  # with a base path nothing is at the root
    except OSError:
        return False
    return True


def read(url: str, form: dict[str, str] | None = None) -> str:
    data = urllib.parse.urlencode(form).encode() if form else None
    with urllib.request.urlopen(url, data, timeout=10) as answer:  # noqa: S310  a server of this test
        return str(answer.read().decode())
