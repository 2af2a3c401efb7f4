"""Adapts the original Go app's table, if there is one, to the service; the app still sees what it had."""

from alembic import op

from goals import adoption

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '200ms'")
    op.execute(adoption.ADOPT)


def downgrade() -> None:
    """Leave the table with its rows: they are not ours to drop."""
    op.execute("SET LOCAL lock_timeout = '200ms'")
    op.execute(adoption.GIVE_BACK)
