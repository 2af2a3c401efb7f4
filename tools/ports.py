"""Ports for servers that must be given one: kept from everybody else from the moment they are chosen."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved(number: int) -> Iterator[list[int]]:
    """So many ports of 127.0.0.1 that the kernel gives to nobody else meanwhile, also while no server listens on them.

    Each is bound and not listened on: a server that sets SO_REUSEADDR, as servers do, may listen on it all the same.
    """
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(number):
            one = held.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
            ports.append(int(one.getsockname()[1]))
        yield ports
