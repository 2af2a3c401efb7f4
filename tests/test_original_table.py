"""The table of the original Go app: adopted with its rows, while the app goes on, and given back."""

import re
from uuid import uuid4

import asyncpg
import pytest

from goals import store
from goals.settings import Settings
from tests.conftest import ROOT, database_of, downgrade, serving, speaking_to, until_ready, upgrade

SEED_FORMS = {
    "text": "CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name TEXT NOT NULL)",
    "varchar": "CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name VARCHAR(255) NOT NULL)",
}
LONGEST = {"text": "long " * 100, "varchar": "x" * 255}


@pytest.mark.parametrize("form", SEED_FORMS)
async def test_the_table_of_the_original_go_app_is_adopted_and_the_app_goes_on(
    empty: Settings, connection: asyncpg.Connection, form: str
) -> None:
    await connection.execute(SEED_FORMS[form])
    for name in ("first", LONGEST[form]):
        await connection.execute("INSERT INTO goals (goal_name) VALUES ($1)", name)
    await upgrade(empty)
    # The app's own statements, on a connection that was open before: it reads each row by position.
    await connection.execute("INSERT INTO goals (goal_name) VALUES ('third')")
    await connection.execute("DELETE FROM goals WHERE id = 1")
    rows = await connection.fetch("SELECT * FROM goals")
    assert [tuple(row) for row in rows] == [(2, LONGEST[form]), (3, "third")]
    async with database_of(empty) as database:
        page = await store.select_page(database, before=None, limit=50)
    assert [(goal.id, goal.goal_name, goal.row_version) for goal in page.goals] == [
        (3, "third", 1),
        (2, LONGEST[form], 1),
    ]
    assert page.goals[0].created_at is not None
    assert page.goals[1].created_at is None


async def test_the_table_goes_back_to_its_place_under_a_running_service(
    empty: Settings, connection: asyncpg.Connection
) -> None:
    page = (ROOT / "docs" / "from-the-go-app.md").read_text(encoding="utf-8")
    (statements,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    await connection.execute(SEED_FORMS["text"])
    await upgrade(empty)
    async with serving(empty) as service, speaking_to(service.port) as client:
        await until_ready(service)
        for name in ("before", "after"):
            assert (await client.post("/add_goal", data={"goal_name": name})).status_code == 303
            assert name in (await client.get("/")).text
            if name == "before":
                await connection.execute(statements)
    assert await connection.fetchval("SELECT count(*) FROM public.goal_keys") == 2
    await upgrade(empty)


async def test_who_may_use_the_table_may_use_it_after_the_adoption(
    empty: Settings, connection: asyncpg.Connection
) -> None:
    administrator = await asyncpg.connect(host=empty.db_host, user="postgres", database=empty.db_name)
    await administrator.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN")
    await connection.execute(SEED_FORMS["text"])
    await connection.execute("INSERT INTO goals (goal_name) VALUES ('a'); GRANT SELECT ON goals TO reader")
    await upgrade(empty)
    reader = await asyncpg.connect(host=empty.db_host, user="reader", database=empty.db_name)
    assert [tuple(row) for row in await reader.fetch("SELECT * FROM goals")] == [(1, "a")]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await reader.execute("DELETE FROM goals")
    await reader.close()
    await administrator.execute("DROP OWNED BY reader; DROP ROLE reader")
    await administrator.close()


async def test_a_downgrade_leads_back_to_the_table_that_was_adopted(
    empty: Settings, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name TEXT NOT NULL, created_at TIMESTAMPTZ)"
    )
    await connection.execute("INSERT INTO goals (goal_name, created_at) VALUES ('kept', '2020-02-02Z')")
    before = await connection.fetch("SELECT * FROM goals")
    for _ in range(2):
        await upgrade(empty)
        async with database_of(empty) as database:
            await store.insert_goal(database, {"goal_name": "ours"}, uuid4(), b"")
        await connection.execute("DELETE FROM goals WHERE goal_name = 'ours'")
        await downgrade(empty, "base")
        assert await connection.fetch("SELECT * FROM goals") == before
        assert await connection.fetchval("SELECT relkind FROM pg_class WHERE oid = 'goals'::regclass") == b"r"
