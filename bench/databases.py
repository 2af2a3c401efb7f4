"""Databases of four sizes, and an empty one to write to, in one embedded server with its usual settings."""

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config

from goals import embedded
from goals.settings import Settings

SIZES = (10, 1_000, 100_000, 1_000_000)
WRITES = "goals_writes"
LONG = "goals_long"
"""Its page is as large as possible."""

# Ten goals a day, the last one today, as if people had written them; more than a million are spread over the same time.
_FILL = """
INSERT INTO goals (goal_name, created_at)
SELECT 'Read book number ' || number || ' of my list', now() - ($1 - number) * least(1, 1e6 / $1) * interval '2.4 hours'
FROM generate_series(1, $1) AS number
"""


def name(size: int) -> str:
    """Return the name of the database with `size` goals."""
    return f"goals_{size}"


@contextlib.contextmanager
def run(sizes: Sequence[int] = SIZES) -> Iterator[Path]:
    """Run the server and yield the folder of its socket."""
    with tempfile.TemporaryDirectory(prefix="goals-bench-") as folder, embedded.run(Path(folder)) as socket:
        settings = Settings().model_copy(update=embedded.SETTINGS | {"db_host": str(socket)})
        command.upgrade(Config("alembic.ini", attributes={"settings": settings}), "head")
        asyncio.run(_fill(str(socket), sizes))
        yield socket


async def _fill(socket: str, sizes: Sequence[int]) -> None:
    superuser = await asyncpg.connect(host=socket, user="postgres", database="postgres")
    for database in (WRITES, LONG, *map(name, sizes)):
        await superuser.execute(f"CREATE DATABASE {database} OWNER goals_user TEMPLATE goals_database")
    await superuser.close()
    owner = await asyncpg.connect(host=socket, user="goals_user", database=LONG)
    await owner.execute("INSERT INTO goals (goal_name) SELECT repeat(chr(128640), 255) FROM generate_series(1, 60)")
    await owner.close()
    for size in sizes:
        owner = await asyncpg.connect(host=socket, user="goals_user", database=name(size))
        await owner.execute(_FILL, size)
        # As autovacuum does within a minute.
        await owner.execute("VACUUM (ANALYZE) goals")
        await owner.close()
