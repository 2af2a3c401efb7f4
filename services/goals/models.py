"""What a goal is: the tables, as Alembic's newest revision leaves them, and the shapes in which their rows travel."""

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
"""The PostgreSQL schema of an adopted table: where there is none, the tables are where the search path says."""
# end adoption

metadata = MetaData()

goals = Table(
    "goals",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    # No length here: what the service accepts is a rule of the API.
    Column("goal_name", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # A trigger keeps these two, so that a change made with psql counts as well.
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
"""PostgreSQL's name of each column's type, by table and column."""


class Goal(NamedTuple):
    """A row of the table, as `store` reads it: each field is the column of that name."""

    id: int
    goal_name: str
    created_at: datetime | None  # of a goal that is older than the column, it is not known
    row_version: int


class Found(NamedTuple):
    """A goal, and whether it comes from a standby, while the primary is unavailable."""

    goal: Goal
    standby: bool


class NewGoal(NamedTuple):
    """A goal to be added: the values of its columns, its idempotency key, and what tells a repeat from another goal."""

    values: Mapping[str, object]
    key: UUID
    fingerprint: bytes


class Page(NamedTuple):
    """Goals, newest first; `more`: there are others in the direction of the walk; `standby`: a standby says so."""

    goals: list[Goal]
    more: bool
    standby: bool = False


class Total(NamedTuple):
    """How many goals there are; `number` is None for "more than are counted" where PostgreSQL has no estimate yet."""

    number: int | None
    exact: bool


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
    standby: bool
