"""How many connections this process may hold: what its descriptors and its memory allow."""

import contextlib
import os
import resource
import sys
from pathlib import Path

from goals.errors import ConfigurationError
from goals.limits import Limits


def most_connections(wanted: int | None, limits: Limits) -> int:
    """Take all the descriptors this process may have, and return how many connections the public port may hold.

    By default as many as the descriptors and half of the memory allow; a `ConfigurationError` where the descriptors do
    not allow what is wanted.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS takes less than the hard limit that it names
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    reserved = limits.operators_connections + limits.spare_descriptors
    left = (sys.maxsize if soft == resource.RLIM_INFINITY else soft) - reserved
    if left < max(wanted or 0, 1):
        raise ConfigurationError(
            f"the limit of {soft} file descriptors leaves room for {max(left, 0)} connections:"
            " raise it (ulimit -n), or lower GOALS_MAX_CONNECTIONS"
        )
    return wanted or max(1, min(left, _memory() // 2 // limits.connection_memory))


def _memory() -> int:
    """Bytes this process may use: the container's limit (cgroup 2 or 1), or the machine's memory."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
            sizes.append(int(Path("/sys/fs/cgroup", file).read_text(encoding="ascii")))
    return min(sizes)
