"""One call of wrk, the client whose own cost per request is the smallest."""

import json
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import NamedTuple

CONNECTIONS = 64
_SCRIPT = Path(__file__).with_name("wrk.lua")


class MeasurementError(Exception):
    """There is no figure; the text says on one line why, and what to do."""


class Run(NamedTuple):
    """What the client saw; latencies in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def find() -> str:
    program = shutil.which("wrk")
    if program is None:
        raise MeasurementError(
            "wrk is missing: install it (Debian and Ubuntu: apt-get install wrk; macOS: brew install wrk)"
        )
    return program


def run(program: str, url: str, seconds: int, *, post: bool = False) -> Run:
    """Ask `url` over and over; a status of 400 or more, or a broken connection, is a `MeasurementError`."""
    # The head of a random UUID, to which the script adds a number: no key is sent twice.
    arguments = ["--", "post", str(uuid.uuid4())[:24]] if post else []
    command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(_SCRIPT), url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 30)
    if done.returncode:
        raise MeasurementError(f"wrk failed on {url}: {(done.stderr or done.stdout).strip()}")
    seen = json.loads(done.stdout.splitlines()[-1])
    if seen["refused"] or seen["broken"] or not seen["requests"]:
        raise MeasurementError(
            f"{url}: of {seen['requests']} requests {seen['refused']} were refused and {seen['broken']} broke"
        )
    return Run(seen["requests"], seen["microseconds"] / 1e6, seen["p50"] / 1e6, seen["p99"] / 1e6)
