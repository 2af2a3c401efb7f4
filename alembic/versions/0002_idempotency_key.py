"""When a goal was made, and the key that makes its creation repeatable."""

from alembic import op

from goals.adoption import ADD_COLUMNS

revision = "0002"
down_revision = "0001"

INDEX = "goals_idempotency_key_idx"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '200ms'")
    op.execute(ADD_COLUMNS)
    with op.get_context().autocommit_block():
        # It waits for older transactions to end, and no one waits behind it: that may take its time.
        op.execute("SET lock_timeout = 0")
        # One that an interrupted run has left is not valid.
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}")
        op.execute(
            f"CREATE UNIQUE INDEX CONCURRENTLY {INDEX} ON goals (idempotency_key) WHERE idempotency_key IS NOT NULL"
        )
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}")
        op.execute("RESET lock_timeout")
    op.execute("SET LOCAL lock_timeout = '200ms'")
    op.execute(
        "ALTER TABLE goals"
        " DROP COLUMN IF EXISTS original_name,"
        " DROP COLUMN IF EXISTS idempotency_key,"
        " DROP COLUMN IF EXISTS created_at"
    )
