"""What a goal is: the one table, as Alembic's head revision leaves it, and the shapes in which its rows travel."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, Table, Text, Uuid, func
from sqlalchemy.dialects import postgresql

SCHEMA_REVISION = "0002"
"""The Alembic revision this code needs; revisions are numbered in order, so a newer one compares greater."""

metadata = MetaData()

goals = Table(
    "goals",
    metadata,
    # The seed made this column SERIAL; widening it would rewrite the table under a lock.
    Column("id", Integer, primary_key=True, autoincrement=True),
    # No length here: an adopted table may hold longer names than the service accepts today.
    Column("goal_name", Text, nullable=False),
    # NULL for rows older than the column: when they were made is not known.
    Column("created_at", DateTime(timezone=True), nullable=True, server_default=func.now()),
    Column("idempotency_key", Uuid, nullable=True),
    # The name at creation, kept once a goal is renamed, so that a late repeat of its creation is still recognised.
    Column("original_name", Text, nullable=True),
)

Index(
    "goals_idempotency_key_idx",
    goals.c.idempotency_key,
    unique=True,
    postgresql_where=goals.c.idempotency_key.is_not(None),
)

COLUMN_TYPES = {c.name: c.type.compile(dialect=postgresql.dialect()).lower() for c in goals.columns}  # type: ignore[no-untyped-call]  # SQLAlchemy types it so
"""PostgreSQL's name of each column's type."""


class Goal(NamedTuple):
    """A row of the table, as `store` reads it."""

    id: int
    goal_name: str
    created_at: datetime | None


class Page(NamedTuple):
    """Goals, newest first; `more`: there are others in the direction of the walk."""

    goals: list[Goal]
    more: bool


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
