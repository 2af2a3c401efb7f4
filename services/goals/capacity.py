"""How many connections this process may have open, from its file descriptors and its memory."""

import contextlib
import os
import resource
import sys
from pathlib import Path

from goals.errors import ConfigurationError
from goals.limits import Limits


def most_connections(wanted: int | None, limits: Limits) -> int:
    """Raise the soft limit of file descriptors to the hard one, and return the public port's maximum of connections.

    Unless `wanted` sets it, the maximum is what the descriptors and half of the memory allow. If the descriptors do not
    allow `wanted`, a `ConfigurationError` is raised.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS rejects the hard limit that it reports
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
    """Return the bytes this process may use: the container's limit (cgroup 2 or 1), or the machine's memory."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or it says "max"
            sizes.append(int(Path("/sys/fs/cgroup", file).read_text(encoding="ascii")))
    return min(sizes)
