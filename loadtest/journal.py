"""A line of JSON for every request that was tried and what came of it, to compare with what the service has stored."""

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """A file of JSON lines; each is one `write` to a file opened for appending, so processes may share it.

    A line has `time` (Unix seconds, when the attempt ended), `user`, `iteration`, `step`, `attempt` (from 1), `uuid`,
    `method`, `path`, `sent` (the body as text), `status` (0: no answer), `error` (null where an answer came) and
    `seconds`. An attempt that was cut off by the end of the run has the error `interrupted`: its outcome is unknown.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, **entry: Any) -> None:
        os.write(self._file, json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)
