"""The stage for each test, and a watch on the browser: no test may pass while the browser complains."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Request, Response, expect

from tests.e2e.stage import BrowserMissingError, Service, open_browser, run_service

Options = dict[str, Any]
"""How somebody's browser is set, in the words of Playwright's `new_context`."""
Visit = Callable[..., Page]

expect.set_options(timeout=5_000)


class Watch:
    """Collects what the browser complains of: console, Content-Security-Policy, crashes, strange hosts, refusals."""

    def __init__(self, url: str) -> None:
        self.complaints: list[str] = []
        self.expected: set[int] = set()
        """The statuses a test means to provoke."""
        self.urls = [url]

    def follow(self, context: BrowserContext) -> None:
        context.on("console", self._hear)
        context.on("weberror", lambda error: self.complaints.append(f"uncaught: {error.error}"))
        context.on("request", self._see_request)
        context.on("response", self._see_response)
        context.on("dialog", self._see_dialog)

    def _hear(self, message: ConsoleMessage) -> None:
        # The console repeats a refusal, which `_see_response` has judged.
        if not message.text.startswith("Failed to load resource: the server responded with a status of"):
            self.complaints.append(f"console {message.type}: {message.text}")

    def _see_dialog(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _see_request(self, request: Request) -> None:
        if not request.url.startswith(tuple(f"{url}/" for url in self.urls)):
            self.complaints.append(f"request to another host: {request.url}")

    def _see_response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self.complaints.append(f"{response.status} for {response.request.method} {response.url}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        with open_browser() as browser:
            yield browser
    except BrowserMissingError as error:
        pytest.exit(f"error: {error}", returncode=1)


@pytest.fixture(scope="session")
def running(browser: Browser) -> Iterator[Service]:
    assert browser.is_connected()  # without a browser no service need start
    with run_service() as service:
        yield service


@pytest.fixture
def service(running: Service) -> Service:
    running.execute("TRUNCATE goals RESTART IDENTITY")
    return running


@pytest.fixture
def watch(service: Service) -> Iterator[Watch]:
    watch = Watch(service.url)
    yield watch
    assert watch.complaints == []


@pytest.fixture
def visit(browser: Browser, service: Service, watch: Watch) -> Iterator[Visit]:
    """Open the page as another person: `visit("/?before=3", color_scheme="dark")`, by Playwright's options."""
    with contextlib.ExitStack() as contexts:

        def visit(path: str = "/", **options: Any) -> Page:
            options = {"base_url": service.url, "viewport": {"width": 1000, "height": 800}} | options
            context = contexts.enter_context(contextlib.closing(browser.new_context(**options)))
            watch.follow(context)
            page = context.new_page()
            page.goto(path)
            return page

        yield visit


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def scripting(request: pytest.FixtureRequest) -> Options:
    return {"java_script_enabled": request.param}
