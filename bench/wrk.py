"""Runs wrk, the client with the smallest cost per request."""

import json
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import NamedTuple

CONNECTIONS = 64
_SCRIPT = Path(__file__).with_name("wrk.lua")


class MeasurementError(Exception):
    """A figure could not be measured; the text gives the reason and the remedy in one line."""


class Run(NamedTuple):
    """The client's measurements; latencies in seconds."""

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
    """Request `url` repeatedly; a status of 400 or more, or a broken connection, raises a `MeasurementError`."""
    # The start of a random UUID, to which the script adds a number, so that no key is sent twice.
    arguments = ["--", "post", str(uuid.uuid4())[:24]] if post else []
    command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(_SCRIPT), url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 30)
    if done.returncode:
        raise MeasurementError(f"wrk failed on {url}: {(done.stderr or done.stdout).strip()}")
    seen = json.loads(done.stdout.splitlines()[-1])
    if seen["refused"] or seen["broken"] or not seen["requests"]:
        raise MeasurementError(
            f"{url}: of {seen['requests']} requests, {seen['refused']} were refused and {seen['broken']} broke off"
        )
    return Run(seen["requests"], seen["microseconds"] / 1e6, seen["p50"] / 1e6, seen["p99"] / 1e6)
