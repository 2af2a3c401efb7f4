"""A port that is chosen for a server stays that server's."""

import asyncio
import socket

import pytest

from tools.polling import until, wait_until
from tools.ports import reserved


def test_a_reserved_port_is_for_the_server_that_it_was_chosen_for() -> None:
    with reserved(2) as (port, idle):
        assert port != idle
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", idle))
        with (
            socket.create_server(("127.0.0.1", port)),
            socket.create_connection(("127.0.0.1", port)) as client,
        ):
            assert client.getpeername()[1] == port
        chosen = set()
        for _ in range(1000):
            with socket.create_server(("127.0.0.1", 0)) as other:
                chosen.add(other.getsockname()[1])
        assert chosen.isdisjoint({port, idle})


async def test_a_wait_says_what_has_not_come_about() -> None:
    answers = iter([False, True])
    wait_until(lambda: next(answers))
    with pytest.raises(TimeoutError, match=r"the end: not within 0\.01 s"):
        wait_until(lambda: False, "the end", 0.01)
    with pytest.raises(TimeoutError, match=r"the end: not within 0\.01 s"):
        await until(lambda: asyncio.sleep(0), "the end", 0.01)
