"""Guards the context, holds each case against what it needs, and tells what comes of them."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.cluster import report
from tests.cluster.kubectl import CONTEXT, Kubectl, refusal
from tests.cluster.needs import NEEDS, missing
from tests.cluster.report import CASES, FAILED, NOT_RUN, PASSED, Check
from tests.cluster.site import Site
from tests.cluster.visit import Visit, identity, renders
from tools.lint.manifests import Manifest

SHORT = bool(os.environ.get("SHORT"))
DEMANDED = {one.strip() for one in os.environ.get("NEED", "").split(",")} - {""}
_KUBECTL = Kubectl()
_STARTED = time.monotonic()
_checks: dict[str, Check] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): what a case needs of the cluster; without it, it is not run")
    config.addinivalue_line("markers", "full: left out where SHORT is set")
    if unknown := DEMANDED - NEEDS.keys() - {"all"}:
        raise pytest.UsageError(f"NEED names {', '.join(sorted(unknown))}; there are all, {', '.join(NEEDS)}")
    if why := refusal(CONTEXT, os.environ.get("CONFIRM_CONTEXT", "")):
        raise pytest.UsageError(why)
    if (done := _KUBECTL.run("version")).returncode:
        raise pytest.UsageError(f"no cluster answers as {CONTEXT}: {done.stderr.strip()}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that an interrupt clears the cluster up


def case_of(test: str) -> str:
    """The case that a test is of, by its name: tests/cluster/test_CASE.py::test_NAME."""
    return CASES[Path(test.partition("::")[0]).stem]


def title(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: list(CASES.values()).index(case_of(item.nodeid)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before anything is brought for a test: go on only where what it needs is there."""
    if SHORT and item.get_closest_marker("full"):
        pytest.skip("only in the full suite (SHORT is set)")
    for need in (name for marker in item.iter_markers("needs") for name in marker.args):
        if why := missing(need, _KUBECTL):
            (pytest.fail if DEMANDED & {need, "all"} else pytest.skip)(f"needs {need}: {why}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what came of a test: of its set-up, of itself, and of what is cleared up after it."""
    found = yield
    check = _checks.setdefault(item.nodeid, Check(case_of(item.nodeid), title(item.name), PASSED))
    check.seconds = round(check.seconds + found.duration, 1)
    check.figures = dict(item.user_properties)
    if found.skipped and isinstance(found.longrepr, tuple):
        check.result, check.reason = NOT_RUN, found.longrepr[2].removeprefix("Skipped: ")
    elif found.failed:
        check.result, check.reason = FAILED, str(found.longrepr).strip().splitlines()[-1]
        sys.stdout.write(f"\n{check.result} {check.case}: {check.name}: {found.longreprtext}\n")  # not only at the end
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    checks = list(_checks.values())
    terminalreporter.section("cluster")
    for line in report.lines(checks):
        terminalreporter.line(line)
    version = json.loads(_KUBECTL("get", "--raw", "/version"))["gitVersion"]
    report.write(checks, CONTEXT, version, time.monotonic() - _STARTED)


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tell how far it is, while it runs."""
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    assert terminal

    def write(text: str) -> None:
        terminal.ensure_newline()
        terminal.write_line(f"{time.monotonic() - _STARTED:6.0f} s  {text}")

    return write


@pytest.fixture(autouse=True)
def reported(request: pytest.FixtureRequest, say: Callable[[str], None]) -> None:
    say(f"{case_of(request.node.nodeid)}: {title(request.node.name)}")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Add figures to the line of the test in the table."""

    def add(**values: object) -> None:
        request.node.user_properties.extend((key.replace("_", " "), value) for key, value in values.items())

    return add


@pytest.fixture(scope="session")
def kubectl() -> Iterator[Kubectl]:
    """The cluster; what is brought to it is taken away at the end."""
    visit = Visit(_KUBECTL)
    visit.begin()
    yield _KUBECTL
    if left := visit.end():
        pytest.fail(f"the cluster is not as it was: {'; '.join(left[:20])}")


@pytest.fixture(scope="session")
def site(kubectl: Kubectl, say: Callable[[str], None]) -> Site:
    """The site, up."""
    site = Site(kubectl, say)
    site.bring()
    return site


@pytest.fixture(scope="module")
def platform(kubectl: Kubectl) -> Iterator[Kubectl]:
    """A cluster with the operators' namespaces, and without them afterwards if it had none."""
    yield from made(kubectl, renders()["platform/namespaces"])


@pytest.fixture
def namespaces(platform: Kubectl) -> Iterator[Kubectl]:
    """The site's own namespaces, too."""
    yield from made(platform, [one for one in renders()["overlays/local"] if one["kind"] == "Namespace"])


def made(kubectl: Kubectl, spaces: list[Manifest]) -> Iterator[Kubectl]:
    before = {identity(one) for one in kubectl.get("namespaces")}
    kubectl.apply(spaces)
    yield kubectl
    kubectl.delete([one for one in spaces if identity(one) not in before])


@pytest.fixture
def full() -> bool:
    """Whether there is time for all of it."""
    return not SHORT
