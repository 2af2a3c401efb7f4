"""The seed's table: made where it is missing, adopted with its rows where it is there."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '200ms'")
    op.execute("CREATE TABLE IF NOT EXISTS goals (id SERIAL PRIMARY KEY, goal_name TEXT NOT NULL)")
    # The seed's other form is VARCHAR(255); dropping its limit changes the catalogue only and rewrites no row.
    op.execute("ALTER TABLE goals ALTER COLUMN goal_name TYPE TEXT")


def downgrade() -> None:
    """Nothing: this is the table that the seed's own application works with, and its rows are not ours to drop."""
