"""A real Prometheus that scrapes the real service under load, with faults in it; started once for the run."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import yaml

from goals.settings import Settings
from tests.conftest import ROOT, migrate

FOLDER = ROOT / "observability"
SCRAPE_SECONDS = 5

# One round of the load: of a hundred requests two fail, as many as the page alert is to see.
ROUND = (
    [("GET", "/")] * 60
    + [("GET", "/api/v1/goals")] * 10
    + [("POST", "/add_goal")] * 8
    + [("POST", "/remove_goal")] * 8
    + [("GET", "/health")] * 4
    + [("GET", "/nothing/here")] * 2
    + [("BREW", "/")] * 2
    + [("GET", "/api/v1/goals/1")] * 2
    + [("GET", "/fault/sleep"), ("GET", "/fault/block"), ("GET", "/fault/crash"), ("GET", "/fault/fail")]
)


class Live(NamedTuple):
    """Where the running service and its Prometheus are."""

    prometheus: str
    service: str
    operators: str
    log: Path
    """What the service has written."""

    def ask(self, path: str, **parameters: str | float | list[str]) -> Any:
        """Ask Prometheus's API and give the `data` of its answer."""
        answer = httpx2.get(f"{self.prometheus}/api/v1/{path}", params=parameters, timeout=20, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def metrics(self, accept: str = "") -> str:
        return httpx2.get(f"{self.operators}/metrics", headers={"accept": accept}, trust_env=False).text


@contextlib.contextmanager
def running(*command: str | Path, log: Path, event: str, **environment: str) -> Iterator[dict[str, Any]]:
    """Run a program that logs JSON lines; gives the first one that has `event`, and stops the program at the end."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command)], cwd=ROOT, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while (found := _find_event(log, event)) is None:
            assert process.poll() is None, log.read_text()
            threading.Event().wait(0.05)
        yield found
    finally:
        process.terminate()
        process.wait(timeout=20)


def _find_event(log: Path, event: str) -> dict[str, Any] | None:
    for line in log.read_text().splitlines():
        fields: dict[str, Any] = json.loads(line) if line.endswith("}") else {}
        if event in {fields.get("event"), fields.get("msg")}:
            return fields
    return None


@contextlib.contextmanager
def serving_faults(settings: Settings, folder: Path) -> Iterator[tuple[str, str]]:
    """The service with its fault routes: the URLs of its two ports."""
    environment = {
        "DB_HOST": str(settings.db_host),
        "DB_NAME": settings.db_name,
        "DB_USERNAME": settings.db_username,
        "SSL": settings.ssl,
        "GOALS_PORT": "0",
        "GOALS_OPS_PORT": "0",
        "GOALS_DRAIN_SECONDS": "0",
        "GOALS_LOG_FORMAT": "json",
    }
    command = (sys.executable, "-m", "tests.observability.faulty")
    with running(*command, log=folder / "service.log", event="serving", **environment) as service:
        yield f"http://127.0.0.1:{service['port']}", f"http://127.0.0.1:{service['ops_port']}"


@contextlib.contextmanager
def scraping(operators: str, folder: Path) -> Iterator[str]:
    """Prometheus with the committed configuration and rules, led to `operators`; gives its URL."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    goals, itself = config["scrape_configs"]
    del goals["dns_sd_configs"]
    goals["static_configs"] = [{"targets": [operators.removeprefix("http://")]}]
    goals["scrape_interval"] = f"{SCRAPE_SECONDS}s"
    config["scrape_configs"].remove(itself)
    del config["alerting"]
    shutil.copy(FOLDER / "goals.rules.yaml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--log.format=json",
    ]
    log = folder / "prometheus.log"
    with running("prometheus", *options, log=log, event="Listening on") as prometheus:
        yield f"http://{prometheus['address']}"


@pytest.fixture(scope="session")
def record_figures() -> Iterator[Callable[..., None]]:
    """Keeps what a test measures; `make observability` prints it at the end."""
    figures: dict[str, float] = {}
    yield figures.update
    folder = ROOT / "out"
    folder.mkdir(exist_ok=True)
    (folder / "observability.json").write_text(json.dumps(figures, indent=2) + "\n")


@pytest.fixture(scope="session")
def live(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    migrate(settings)
    with serving_faults(settings, folder) as (service, operators), scraping(operators, folder) as prometheus:
        enough = threading.Event()
        load = threading.Thread(target=lambda: asyncio.run(_load(service, enough)))
        load.start()
        yield Live(prometheus, service, operators, folder / "service.log")
        enough.set()
        load.join()


async def _load(service: str, enough: threading.Event) -> None:
    """Ask in rounds, some forty requests a second, for as long as the tests run."""
    async with httpx2.AsyncClient(base_url=service, trust_env=False) as client:
        for start in itertools.cycle(range(5)):
            if enough.is_set():
                break
            await asyncio.gather(*(_send(client, method, path) for method, path in ROUND[start::5]))
            await asyncio.sleep(0.5)


async def _send(client: httpx2.AsyncClient, method: str, path: str) -> None:
    form = {"/add_goal": {"goal_name": "seen by Prometheus"}, "/remove_goal": {"goal_id": "1"}}.get(path)
    await client.request(method, path, data=form)
