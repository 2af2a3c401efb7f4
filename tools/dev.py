"""`make dev`: run the service, and restart it whenever its code, a template or a style sheet changes."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

from goals import embedded, signals
from goals.errors import ConfigurationError
from goals.settings import read_settings

WATCHED = (Path("services/goals"), Path("alembic"))
KINDS = {".py", ".html", ".css", ".js", ".svg"}
PERIOD = 0.3


def look() -> dict[Path, int]:
    """Return the modification time of each watched file."""
    found = {}
    for folder in WATCHED:
        for path in folder.rglob("*"):
            if path.suffix in KINDS:
                with contextlib.suppress(FileNotFoundError):  # an editor is replacing the file
                    found[path] = path.stat().st_mtime_ns
    return found


def main() -> int:
    signals.leave_in_order()
    with contextlib.suppress(SystemExit), contextlib.ExitStack() as running:  # a signal raises SystemExit
        try:
            if read_settings().db_host is None:
                print(f"starting PostgreSQL {embedded.VERSION} in {embedded.DATA}/", flush=True)
                # Shared with `up`, so that PostgreSQL keeps running while the service restarts.
                running.enter_context(embedded.run(embedded.DATA))
        except ConfigurationError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        # From here on, a flag: an exception may be lost in code that Python itself calls, such as a generator's end.
        stops: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: stops.append(number))
        while not stops:
            serve_until_changed(stops)
    return 0


def serve_until_changed(stops: list[int]) -> None:
    seen = look()
    with subprocess.Popen([sys.executable, "-m", "goals", "up"]) as service:
        try:
            ended = False
            while (now := look()) == seen and not stops:
                time.sleep(PERIOD)
                if not ended and service.poll() is not None:
                    ended = True
                    print("goals exited: waiting for a change", flush=True)
            changed = sorted(str(path) for path in now.keys() | seen.keys() if now.get(path) != seen.get(path))
            if not stops:
                print(f"\n{', '.join(changed)} changed: restarting", flush=True)
        finally:
            service.terminate()  # Ctrl-C also reached the service; a second signal makes it stop faster


if __name__ == "__main__":
    sys.exit(main())
