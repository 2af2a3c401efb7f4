"""A JSON line for every attempted request and its outcome, to compare with what the service has stored."""

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """A file of JSON lines; each line is one appending `write`, so several processes may share the file.

    A line has `time` (Unix seconds, when the attempt ended), `user`, `iteration`, `step`, `attempt` (from 1), `uuid`,
    `method`, `path`, `sent` (the body as text), `status` (0: no response), `error` (null if there was a response) and
    `seconds`. An attempt that the end of the run cut off has the error `interrupted`: its outcome is unknown.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, **entry: Any) -> None:
        os.write(self._file, json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)
