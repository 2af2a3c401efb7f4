"""The tables as of Alembic's newest revision, and the types in which their rows are passed around."""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects import postgresql

SCHEMA_REVISION = "0002"
"""The Alembic revision this code needs; revisions are numbered in order, so a newer one compares greater."""
# part adoption
ADOPTED = "goals_adopted"
"""The PostgreSQL schema of an adopted table; without one, the search path determines the tables' schema."""
# end adoption

metadata = MetaData()

goals = Table(
    "goals",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    # No length here: the API defines what the service accepts.
    Column("goal_name", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # A trigger maintains these two, so that a change made with psql counts as well.
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("row_version", BigInteger, nullable=False, server_default=text("1")),
)

goal_keys = Table(
    "goal_keys",
    metadata,
    Column("key", Uuid, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    # No foreign key: a key outlives its goal, so that a late repeat does not add it again.
    Column("goal_id", BigInteger, nullable=False),
    Column("repeats", Integer, nullable=False, server_default=text("0")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
Index("goal_keys_created_at_idx", goal_keys.c.created_at)

COLUMN_TYPES = {
    table.name: {c.name: c.type.compile(dialect=postgresql.dialect()).lower() for c in table.columns}  # type: ignore[no-untyped-call]  # SQLAlchemy types it so
    for table in metadata.tables.values()
}
"""PostgreSQL's name for the type of each column, by table and column."""


class Goal(NamedTuple):
    """A row of the table, as `store` reads it: each field is the column of that name."""

    id: int
    goal_name: str
    created_at: datetime | None  # unknown for goals that are older than the column
    row_version: int


class Found(NamedTuple):
    """A goal, and whether it comes from a standby because the primary is unavailable."""

    goal: Goal
    standby: bool


class NewGoal(NamedTuple):
    """A goal to add: its column values, its idempotency key, and the fingerprint that identifies a repeat."""

    values: Mapping[str, object]
    key: UUID
    fingerprint: bytes


class Page(NamedTuple):
    """Goals, newest first; `more`: there are more in the requested direction; `standby`: a standby answered."""

    goals: list[Goal]
    more: bool
    standby: bool = False


class Total(NamedTuple):
    """The number of goals; None if there are more than are counted and PostgreSQL has no estimate yet."""

    number: int | None
    exact: bool


class Listing(NamedTuple):
    """The result of one read and its page: HTML in two parts, with each reader's form key between them."""

    page: Page
    total: Total
    head: bytes
    tail: bytes


class Document(NamedTuple):
    """A response of the API, shared by all requests that share the read: its JSON and its headers."""

    body: bytes
    headers: dict[str, str]
    standby: bool
