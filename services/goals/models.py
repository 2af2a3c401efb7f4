"""The one table, as Alembic's head revision leaves it."""

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, Table, Text, Uuid, func

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
