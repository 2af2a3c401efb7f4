"""The load test's web UI in a browser: choose, start, watch, read the verdict; by Locust's own page as well."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.stage import ROOT
from tests.loadtest.live.scripted import Server

SCENARIO = """
description = "{description}"
objectives = false
[load]
executor = "constant-vus"
vus = 2
duration = "{duration}"
[[task]]
[[task.step]]
path = "{path}"
checks = {{ "answered" = "status == 200" }}
[thresholds]
checks = ["rate==1"]
http_req_duration = ["p(95)<{limit}"]
"""

PYTHON = """
from locust import constant, task
from loadtest.plugin import GoalsUser

class Visitor(GoalsUser):
    wait_time = constant(0.05)

    @task
    def visit(self):
        self.check("answered", self.client.get("/").ok)
"""


@contextlib.contextmanager
def load_ui(*options: str) -> Iterator[str]:
    """`make load-ui`, on a port that the kernel chooses; yields the address that it prints."""
    with contextlib.ExitStack() as running:
        process = running.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "locust", "--web-port", find_port(), *options],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        running.callback(process.kill)
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.fullmatch(r"load test: (http://127\.0\.0\.1:\d+\S*/)\n", line)
        assert address, line
        yield address[1]


def find_port() -> str:
    """A port that nobody listens on; Locust's web UI cannot have the kernel choose one and say which."""
    with Server() as server:
        return str(server.port)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with contextlib.closing(browser.new_context(viewport={"width": 1000, "height": 900})) as context:
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        assert complaints == []


def open_when_up(page: Page, address: str) -> None:
    for _ in range(100):
        with contextlib.suppress(Exception):  # it prints its address just before it listens
            page.goto(address)
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"nothing answers at {address}")


@pytest.mark.parametrize("base", ["", "/load"])
def test_choose_start_watch_and_read_the_verdict(page: Page, tmp_path: Path, base: str) -> None:
    file = tmp_path / "small.toml"
    file.write_text(SCENARIO.format(description="two of them", duration="3s", path="/", limit=1))
    options = ["--web-base-path", base] if base else []
    with Server() as server, load_ui("--scenario", str(file), "--out", str(tmp_path), *options) as address:
        server.answer_after = 0.02
        assert address.endswith(f"{base}/")
        open_when_up(page, address)
        scenario = page.get_by_label("Scenario")
        expect(scenario).to_have_value(str(file))
        expect(page.locator("#description")).to_have_text("two of them")
        scenario.select_option("smoke")
        expect(page.locator("#description")).to_contain_text("Ten seconds")
        scenario.select_option(str(file))
        page.get_by_label("Host").fill(server.url)
        expect(page.locator("#status")).to_contain_text("No run has ended yet")
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#status")).to_contain_text("Running:")
        expect(page.locator("#status")).to_contain_text("2 users")
        expect(page.get_by_role("button", name="Start")).to_be_disabled()
        verdict = page.locator("section.verdict")
        expect(verdict).to_contain_text("failed", timeout=20_000)
        expect(verdict).to_contain_text(re.compile(r"p95 [\d.]+ ms, limit 1 ms"))
        assert server.count > 0
        page.get_by_role("link", name="Full report").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("small: failed")
        page.goto(address)
        page.get_by_role("link", name="Locust's own page").click()
        page.get_by_role("tab", name="Verdict").click()
        expect(page.get_by_role("cell", name=re.compile(r"p95 [\d.]+ ms, limit 1 ms"))).to_be_visible()


def test_what_cannot_be_played_and_what_is_stopped_is_said(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "long.toml"
    file.write_text(SCENARIO.format(description="long", duration="60s", path="/", limit=1000))
    with Server() as server, load_ui("--scenario", str(file), "--out", str(tmp_path)) as address:
        server.answer_after = 0.02
        open_when_up(page, address)
        page.get_by_label("Host").fill("http://127.0.0.1:0")
        page.get_by_role("button", name="Start").click()
        verdict = page.locator("section.verdict")
        expect(verdict).to_contain_text("there was no run: the target `http://127.0.0.1:0` is not a base URL")
        page.get_by_label("Host").fill(server.url)
        page.get_by_role("button", name="Start").click()
        page.get_by_role("button", name="Stop").click(timeout=20_000)
        expect(verdict).to_contain_text("the run was cut off after", timeout=20_000)


def test_users_in_plain_python_are_started_by_the_same_page(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "visitors.py"
    file.write_text(PYTHON)
    with Server() as server, load_ui("--locustfile", str(file), "--slo", "none", "--out", str(tmp_path)) as address:
        open_when_up(page, address)
        expect(page.locator("main")).to_contain_text("Users in plain Python: Visitor")
        page.get_by_label("Users").fill("3")
        page.get_by_label("Started per second").fill("3")
        page.get_by_label("Run time").fill("2s")
        page.get_by_label("Host").fill(server.url)
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#status")).to_contain_text("Running:")
        expect(page.locator("section.verdict")).to_contain_text("passed", timeout=20_000)
        assert server.count > 0
