"""What an endpoint finds in `request.state`: made by the application's lifespan, typed, and nothing else shared."""

from typing import NamedTuple, TypedDict

from goals.database import Database
from goals.readiness import Readiness
from goals.reads import SharedReads
from goals.schemas import Goal
from goals.store import Page, Total
from goals.telemetry import Telemetry


class Listing(NamedTuple):
    """What one read found, and the page of it: HTML in two parts, between which each reader's form key goes."""

    page: Page
    total: Total
    head: bytes
    tail: bytes


class Document(NamedTuple):
    """One answer of the API, the same for all who share the read: JSON, and the headers that belong to it."""

    body: bytes
    headers: dict[str, str]


class State(TypedDict):
    """Shared by all requests; the keys of the reads are `(before, after)`, `(before, limit)` and the goal's id."""

    database: Database
    pages: SharedReads[tuple[int | None, int | None], Listing]
    lists: SharedReads[tuple[int | None, int], Document]
    goals: SharedReads[int, Goal]
    readiness: Readiness
    telemetry: Telemetry
    revision: str
