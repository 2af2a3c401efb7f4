"""What a person has before them: the service that `make up` starts, on a database of its own, and a browser."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, sync_playwright

from goals import embedded

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class BrowserMissingError(Exception):
    """There is no Chromium, and nothing here downloads one."""


class Service(NamedTuple):
    """A running service; its `database` outlives a test, so each begins with `execute("TRUNCATE goals")`."""

    url: str
    folder: Path
    socket: Path
    database: contextlib.ExitStack
    """Closing it is an outage, and `embedded.run(folder)` its end."""

    def execute(self, statement: str) -> list[str]:
        """Run SQL beside the service and return the rows, columns separated by `|`."""
        done = subprocess.run([*self._psql, "-c", statement], check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    @contextlib.contextmanager
    def writes_held_up(self) -> Iterator[None]:
        """Let nothing be written for a while, as if the database were slow."""
        with subprocess.Popen(self._psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
            assert session.stdin is not None
            assert session.stdout is not None
            session.stdin.write("BEGIN; LOCK TABLE goals IN SHARE MODE; SELECT 'locked';\n")
            session.stdin.flush()
            assert session.stdout.readline() == "locked\n"
            yield

    @property
    def _psql(self) -> list[str]:
        program = str(embedded.find_programs() / "psql")
        where = ["-h", str(self.socket), "-U", "goals_user", "-d", "goals_database"]
        return [program, "-XqAt", "-v", "ON_ERROR_STOP=1", *where]

    def goals(self) -> list[str]:
        """The names of all goals, newest first."""
        return self.execute("SELECT goal_name FROM goals ORDER BY id DESC")


@contextlib.contextmanager
def run_service() -> Iterator[Service]:
    """Run the service on ports that the kernel chooses and data that are gone afterwards."""
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="goals-e2e-")))
        database = running.enter_context(contextlib.ExitStack())
        socket = database.enter_context(embedded.run(folder, {"fsync": "off"}))
        settings = {"DB_HOST": str(socket), "DB_USERNAME": "goals_user", "DB_NAME": "goals_database", "SSL": "disable"}
        ports = {"GOALS_PORT": "0", "GOALS_OPS_PORT": "0", "GOALS_LOG_FORMAT": "json"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DB_", "GOALS_"))}
        process = running.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "goals", "up"],
                cwd=ROOT,
                env=inherited | settings | ports,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        running.callback(process.terminate)  # should it not come so far as to be read on, below
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if address := re.search(r"the page +(http://\S+)", line):
                break
        else:
            raise RuntimeError("the service did not start:\n" + "".join(said))
        # Somebody has to read on, or the service would wait for its log to be read.
        reader = threading.Thread(target=said.extend, args=(process.stdout,))
        reader.start()
        running.callback(reader.join)
        running.callback(process.terminate)
        yield Service(address[1], folder, socket, database)


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Open the Chromium of this machine, cut off from every host but this one.

    Raises `BrowserMissingError` with the remedy where there is none. `CHROMIUM` names one that is not on the PATH.
    """
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise BrowserMissingError(
            "no Chromium on the PATH: install it (Debian: apt-get install chromium), or set CHROMIUM to the program"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
            # As people have it: Back shows the page as it was left, where the browser may keep it.
            ignore_default_args=["--disable-back-forward-cache"],
        )
        with contextlib.closing(browser):
            yield browser
