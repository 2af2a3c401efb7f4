"""The processes under load, started as a user starts them, and their CPU time and memory."""

import contextlib
import http.client
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Self

import psutil

from bench.wrk import MeasurementError
from tools.ports import reserved

START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0


class Server:
    """A process that answers on a port of 127.0.0.1."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, output: IO[bytes], seconds: float) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.seconds_to_first_answer = seconds
        self._output = output
        self._kernel = psutil.Process(process.pid)

    @classmethod
    def start(cls, command: list[str], port: int, variables: Mapping[str, str], output: IO[bytes]) -> Self:
        """Start `command` and return once `GET /` returns 200."""
        started = time.monotonic()
        environment = {**os.environ, **variables}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        while _status(port) != http.client.OK:
            if process.poll() is not None or time.monotonic() - started > START_TIMEOUT:
                process.kill()
                process.wait()
                output.seek(0)
                lines = output.read().decode(errors="replace").strip().splitlines() or ["no output"]
                raise MeasurementError(f"{' '.join(command[1:])} did not start: {lines[-1]}")
            time.sleep(0.002)
        return cls(process, port, output, time.monotonic() - started)

    def cpu(self) -> float:
        """Return the seconds of CPU time used so far, in user and kernel mode."""
        times = self._kernel.cpu_times()
        return float(times.user + times.system)

    def rss(self) -> int:
        """Return the current resident memory in bytes."""
        return int(self._kernel.memory_info().rss)

    def forget_output(self) -> None:
        """Empty the log file, so that a long run does not fill the disk."""
        self._output.truncate(0)

    def read_output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Servers(NamedTuple):
    """Starts servers with the interpreter `python`, whose environment has no development packages."""

    python: Path

    @contextlib.contextmanager
    def bare(self, name: str) -> Iterator[Server]:
        """Run an application that does nothing, served by `hypercorn` as released or by our `server`."""
        with (
            reserved(1) as (port,),
            _running([str(self.python), "-m", "bench.bare", name, str(port)], port, {}) as server,
        ):
            yield server

    @contextlib.contextmanager
    def service(
        self,
        socket_folder: Path,
        database: str,
        *,
        module: Sequence[str] = ("goals", "serve"),
        descriptors: int | None = None,
    ) -> Iterator[Server]:
        """Run the service on `database`, with a hard limit of `descriptors`; yield once it serves its page."""
        with reserved(1) as (port,):
            variables = {
                "DB_HOST": str(socket_folder),
                "DB_PORT": "5432",
                "DB_NAME": database,
                "DB_USERNAME": "goals_user",
                "SSL": "disable",
                "GOALS_BIND": "127.0.0.1",
                "GOALS_PORT": str(port),
                "GOALS_OPS_PORT": "0",
                "GOALS_DRAIN_SECONDS": "0",
                "GOALS_LOG_FORMAT": "json",
                "GOALS_HOSTS": "",
            }
            command = [str(self.python), "-m", *module]
            if descriptors is not None:
                command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
            with _running(command, port, variables) as server:
                yield server


@contextlib.contextmanager
def _running(command: list[str], port: int, variables: Mapping[str, str]) -> Iterator[Server]:
    # A file, like a container's log; opened for appending, so that it can be emptied at any time.
    with tempfile.NamedTemporaryFile("a+b", prefix="goals-bench-") as output:
        server = Server.start(command, port, variables, output)
        try:
            yield server
        finally:
            server.stop()


def _status(port: int) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_TIMEOUT)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
