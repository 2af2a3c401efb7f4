"""Reserve ports for servers that cannot choose one themselves."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved(number: int) -> Iterator[list[int]]:
    """Yield `number` ports of 127.0.0.1 that the kernel assigns to no one else, even while no server listens on them.

    Each is bound but does not listen, so a server that sets SO_REUSEADDR, as servers usually do, can listen on it.
    """
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(number):
            one = held.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
            ports.append(int(one.getsockname()[1]))
        yield ports
