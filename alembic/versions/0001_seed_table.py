"""The seed's table: made where it is missing, adopted with its rows where it is there."""

from alembic import op

from goals.adoption import MAKE_TEXT

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '200ms'")
    op.execute("CREATE TABLE IF NOT EXISTS goals (id SERIAL PRIMARY KEY, goal_name TEXT NOT NULL)")
    op.execute(MAKE_TEXT)


def downgrade() -> None:
    """Nothing: this is the table that the seed's own application works with, and its rows are not ours to drop."""
