"""A field more than there is today: what the service promises of a goal holds for it, without a line for it alone."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx2
import pytest

from goals.models import SCHEMA_REVISION
from goals.schemas import GoalBody
from goals.settings import Settings
from tests.conftest import ROOT, speaking_to, upgrade
from tools.checkout import copy_tree
from tools.polling import until

GOALS = "/api/v1/goals"
NEXT = f"{int(SCHEMA_REVISION) + 1:04}"
REVISION = f"""
from alembic import op

revision = "{NEXT}"
down_revision = "{SCHEMA_REVISION}"


def upgrade() -> None:
    op.execute("ALTER TABLE goals ADD COLUMN note TEXT NOT NULL DEFAULT ''")
"""
FIELD = {
    "models.py": [
        (f'SCHEMA_REVISION = "{SCHEMA_REVISION}"', f'SCHEMA_REVISION = "{NEXT}"'),
        (
            '    Column("goal_name", ',
            '    Column("note", Text, nullable=False, server_default=text("\'\'")),\n    Column("goal_name", ',
        ),
        ("    goal_name: str\n", "    goal_name: str\n    note: str\n"),
    ],
    "schemas.py": [
        ("    goal_name: GoalName\n", '    goal_name: GoalName\n    note: str = ""\n'),
        ("    goal_name: str\n", "    goal_name: str\n    note: str\n"),
    ],
}


@pytest.fixture
async def client(empty: Settings, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """Speaks to a copy of the service whose goals have a note."""
    await upgrade(empty)
    copy_tree(ROOT, tmp_path)
    (tmp_path / "alembic" / "versions" / f"{NEXT}_note.py").write_text(REVISION)
    for name, changes in FIELD.items():
        path = tmp_path / "services" / "goals" / name
        source = path.read_text()
        for old, new in changes:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        path.write_text(source)
    # Without coverage's own: what is changed here is a copy.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    variables |= {"DB_HOST": str(empty.db_host), "DB_NAME": empty.db_name, "SSL": "disable"}
    variables |= {"GOALS_PORT": "0", "GOALS_OPS_PORT": "0", "GOALS_DRAIN_SECONDS": "0", "GOALS_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "tools.checkout", str(tmp_path), "goals"]
    migration = await asyncio.create_subprocess_exec(*command, "migrate", cwd=ROOT, env=variables)
    assert await migration.wait() == 0
    process = await asyncio.create_subprocess_exec(
        *command, "serve", cwd=ROOT, env=variables, stdout=subprocess.PIPE, limit=2**20
    )
    try:
        assert process.stdout is not None
        found = re.search(rb'"port":(\d+)', await process.stdout.readline())
        assert found is not None
        async with speaking_to(int(found[1])) as client:
            yield client
    finally:
        process.terminate()
        await process.communicate()


async def test_the_same_key_with_another_field_is_refused(client: httpx2.AsyncClient) -> None:
    headers = {"idempotency-key": str(uuid4())}
    body = {"goal_name": "Read", "note": "a book a month"}
    first = await client.post(GOALS, json=body, headers=headers)
    assert first.status_code == 201, first.text
    assert first.json()["note"] == "a book a month"
    assert (await client.post(GOALS, json=body, headers=headers)).json() == first.json()
    assert (await client.post(GOALS, json={**body, "note": "two"}, headers=headers)).status_code == 422
    form = {"goal_name": "Swim", "note": "daily", "idempotency_key": str(uuid4())}
    assert (await client.post("/add_goal", data=form)).status_code == 303
    refused = await client.post("/add_goal", data={**form, "note": "weekly"})
    assert (refused.status_code, 'value="Swim"' in refused.text) == (422, True)
    assert [goal["note"] for goal in (await client.get(GOALS)).json()["goals"]] == ["daily", "a book a month"]


async def test_if_match_guards_it_and_a_change_of_one_field_leaves_the_other(
    client: httpx2.AsyncClient, empty: Settings
) -> None:
    made = await client.post(GOALS, json={"goal_name": "Read", "note": "a book"})
    seen = {"if-match": made.headers["etag"]}
    target = made.headers["location"]
    changed = await client.patch(target, json={"note": "two books"}, headers=seen)
    assert (changed.status_code, changed.json()["goal_name"], changed.json()["note"]) == (200, "Read", "two books")
    assert (await client.patch(target, json={"goal_name": "Write"}, headers=seen)).status_code == 412
    renamed = await client.patch(target, json={"goal_name": "Write"})
    assert (renamed.json()["goal_name"], renamed.json()["note"]) == ("Write", "two books")
    version = re.findall(r'name="row_version" value="(\d+)"', (await client.get("/goals/1")).text)
    # The page's form does not know of the note.
    edited = await client.post("/goals/1", data={"goal_name": "Draw", "row_version": version})
    assert edited.status_code == 303
    renamed = await client.get(target)
    assert (renamed.json()["goal_name"], renamed.json()["note"]) == ("Draw", "two books")
    connection = await asyncpg.connect(host=empty.db_host, user="goals_user", database=empty.db_name)
    await connection.execute("UPDATE goals SET note = 'by hand'")
    await connection.close()
    assert (await client.delete(target, headers={"if-match": renamed.headers["etag"]})).status_code == 412


async def test_a_key_of_the_version_without_it_is_still_recognised(client: httpx2.AsyncClient, empty: Settings) -> None:
    key = uuid4()
    connection = await asyncpg.connect(host=empty.db_host, user="goals_user", database=empty.db_name)
    await connection.execute("INSERT INTO goals (goal_name) VALUES ('Read')")
    await connection.execute(
        "INSERT INTO goal_keys (key, fingerprint, goal_id) VALUES ($1, $2, 1)",
        key,
        GoalBody(goal_name="Read").fingerprint(),
    )
    await connection.close()
    repeat = await client.post(GOALS, json={"goal_name": "Read"}, headers={"idempotency-key": str(key)})
    assert (repeat.status_code, repeat.json()["id"]) == (201, 1)


async def test_what_could_not_be_stored_is_kept_whole(client: httpx2.AsyncClient, empty: Settings) -> None:
    administrator = await asyncpg.connect(host=empty.db_host, user="postgres", database="postgres")
    await administrator.execute(f'ALTER DATABASE "{empty.db_name}" ALLOW_CONNECTIONS false')
    ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1"

    async def is_alone() -> bool:
        return not await administrator.fetchval(ended, empty.db_name)

    await until(is_alone)
    await administrator.close()
    page = await client.post("/add_goal", data={"goal_name": "Swim", "note": "daily"})
    assert page.status_code == 503
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', page.text))
    assert (fields["goal_name"], fields["note"]) == ("Swim", "daily")
    assert fields.keys() == {"goal_name", "note", "idempotency_key"}
