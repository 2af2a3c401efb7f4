"""One run of the whole stack for all tests, taken away with its data at the end, and a report of what was measured."""

from collections.abc import Iterator

import pytest

from tests.compose.stack import PORTS, Stack
from tools.ports import reserved

_stacks: list[Stack] = []


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, not yet up: the first test starts it."""
    with reserved(len(PORTS)) as ports:
        stack = Stack(tmp_path_factory.mktemp("compose"), dict(zip(PORTS, ports, strict=True)))
        _stacks.append(stack)
        stack.remove()  # what a run that was killed has left
        yield stack
        stack.remove()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for stack in _stacks:
        terminalreporter.section("compose")
        for name, figure in stack.figures.items():
            terminalreporter.line(f"{name}: {figure}")
        for name, reason in stack.without.items():
            terminalreporter.line(f"LEFT OUT: {name}: {reason}", yellow=True)
