"""The type of `request.state`, which the application's lifespan creates: all state that requests share."""

from typing import TypedDict

from goals.database import Database
from goals.models import Document, Found, Listing
from goals.readiness import Readiness
from goals.reads import SharedReads
from goals.telemetry import Telemetry
from goals.writes import Writes


class State(TypedDict):
    """Shared by all requests; the keys of the reads are `(before, after)`, `(before, limit)` and the goal's id."""

    database: Database
    pages: SharedReads[tuple[int | None, int | None], Listing]
    lists: SharedReads[tuple[int | None, int], Document]
    goals: SharedReads[int, Found]
    writes: Writes
    readiness: Readiness
    telemetry: Telemetry
    revision: str
