"""The statements, each on its own against PostgreSQL."""

import asyncio
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from goals import store
from goals.database import Database
from goals.errors import GoalChangedError, GoalNotFoundError, IdempotencyKeyReusedError
from goals.models import SCHEMA_REVISION, Goal, Total
from tests.conftest import alter, fill
from tools.polling import until


async def add(database: Database, name: str, key: UUID) -> Goal:
    return await store.insert_goal(database, {"goal_name": name}, key, name.encode())


BEYOND = [store.BIGGEST_ID + 1, 10**38]


async def test_pages_of_goals_are_newest_first_and_say_whether_there_are_more(database: Database) -> None:
    await fill(database, 5, gaps=[3])

    async def ids(*, before: int | None, limit: int) -> tuple[list[int], bool]:
        page = await store.select_page(database, before=before, limit=limit)
        return [goal.id for goal in page.goals], page.more

    assert await ids(before=None, limit=4) == ([5, 4, 2, 1], False)
    assert await ids(before=None, limit=3) == ([5, 4, 2], True)
    assert await ids(before=4, limit=1) == ([2], True)
    assert await ids(before=1, limit=1) == ([], False)
    for goal_id in (store.BIGGEST_ID, *BEYOND):
        assert await ids(before=goal_id, limit=1) == ([5], True)


async def test_a_page_comes_with_the_total_in_both_directions(database: Database) -> None:
    await fill(database, 5, gaps=[3])

    async def ids(*, before: int | None = None, after: int | None = None) -> tuple[list[int], bool, Total]:
        page, total = await store.select_page_and_total(database, before=before, after=after, limit=2)
        return [goal.id for goal in page.goals], page.more, total

    four = Total(4, exact=True)
    assert await ids() == ([5, 4], True, four)
    assert await ids(before=4) == ([2, 1], False, four)
    assert await ids(before=1) == ([], False, four)
    assert await ids(after=1) == ([4, 2], True, four)
    assert await ids(after=2) == ([5, 4], False, four)
    for goal_id in (store.BIGGEST_ID, *BEYOND):
        assert await ids(after=goal_id) == ([], False, four)


async def test_a_total_is_exact_as_long_as_counting_is_cheap_and_then_the_planners(database: Database) -> None:
    async def total() -> Total:
        return (await store.select_page_and_total(database, before=None, after=None, limit=1))[1]

    await alter(database, "ALTER TABLE goals SET (autovacuum_enabled = off)")
    assert await total() == Total(0, exact=True)
    await fill(database, store.EXACT_COUNT)
    assert await total() == Total(store.EXACT_COUNT, exact=True)
    await fill(database, 1)
    assert await total() == Total(None, exact=False)
    await alter(database, "ANALYZE goals")
    assert await total() == Total(store.EXACT_COUNT + 1, exact=False)
    # The estimate grows with the table, without another ANALYZE.
    await fill(database, 3 * store.EXACT_COUNT)
    number, exact = await total()
    assert number is not None
    assert (abs(number / (4 * store.EXACT_COUNT + 1) - 1) < 0.05, exact) == (True, False)
    await alter(database, "ALTER TABLE goals RESET (autovacuum_enabled)")


async def test_an_id_that_no_goal_has_is_not_found_and_beyond_bigint_not_even_asked_for(database: Database) -> None:
    for goal_id in (1, store.BIGGEST_ID, *BEYOND):
        with pytest.raises(GoalNotFoundError):
            await store.select_goal(database, goal_id)
        with pytest.raises(GoalNotFoundError):
            await store.update_goal(database, goal_id, {"goal_name": "a"})
        with pytest.raises(GoalNotFoundError):
            await store.delete_goal(database, goal_id)


async def test_a_rename_of_what_was_seen_fails_once_that_has_changed(database: Database) -> None:
    seen = await add(database, "one", uuid4())
    renamed = await store.update_goal(database, seen.id, {"goal_name": "two"}, seen=seen.row_version)
    assert renamed == await store.select_goal(database, seen.id)
    with pytest.raises(GoalChangedError):
        await store.update_goal(database, seen.id, {"goal_name": "three"}, seen=seen.row_version)
    await store.delete_goal(database, seen.id)
    with pytest.raises(GoalChangedError):
        await store.update_goal(database, seen.id, {"goal_name": "three"}, seen=renamed.row_version)


async def test_a_key_finds_the_goal_it_made_even_renamed(database: Database) -> None:
    key = uuid4()
    made = await add(database, "one", key)
    assert await add(database, "one", key) == made
    with pytest.raises(IdempotencyKeyReusedError):
        await add(database, "two", key)
    renamed = await store.update_goal(database, made.id, {"goal_name": "two"})
    assert await add(database, "one", key) == renamed
    with pytest.raises(IdempotencyKeyReusedError):
        await add(database, "two", key)


async def test_a_race_for_a_key_has_one_winner_and_no_loser(database: Database) -> None:
    key = uuid4()
    goals = await asyncio.gather(*(add(database, "one", key) for _ in range(8)))
    assert len(set(goals)) == 1


async def remove_while_another(statement: str, database: Database, goal: Goal, *, seen: int | None) -> None:
    """Remove a goal whose row another transaction holds; it commits once the first attempt has lost its connection."""
    async with database.engine.execution_options(isolation_level="READ COMMITTED").begin() as other:
        await other.execute(text(statement))
        removal = asyncio.create_task(store.delete_goal(database, goal.id, seen=seen))
        # It waits for the other one, and loses its connection meanwhile.
        waiting = text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )

        async def is_ended() -> bool:
            return bool(await database.fetch(waiting))

        await until(is_ended)
    await removal


@pytest.mark.parametrize("careful", [False, True])
async def test_a_removal_whose_first_attempt_was_lost_is_done_and_not_missing(
    database: Database, *, careful: bool
) -> None:
    goal = await add(database, "one", uuid4())
    await remove_while_another("DELETE FROM goals", database, goal, seen=goal.row_version if careful else None)
    with pytest.raises(GoalNotFoundError):
        await store.delete_goal(database, goal.id)


async def test_a_removal_whose_first_attempt_was_lost_spares_what_was_changed(database: Database) -> None:
    goal = await add(database, "one", uuid4())
    with pytest.raises(GoalChangedError):
        await remove_while_another("UPDATE goals SET goal_name = 'two'", database, goal, seen=goal.row_version)
    assert (await store.select_goal(database, goal.id)).goal_name == "two"


async def test_the_schemas_revision_is_read(database: Database) -> None:
    assert await store.select_revision(database) == SCHEMA_REVISION
    rows = await database.fetch(text("SELECT version_num FROM alembic_version"))
    assert [row.version_num for row in rows] == [SCHEMA_REVISION]


async def test_a_removal_of_what_has_changed_meanwhile_is_refused(database: Database) -> None:
    await fill(database, 1)
    seen = await store.select_goal(database, 1)
    await store.update_goal(database, 1, {"goal_name": "changed"})
    with pytest.raises(GoalChangedError):
        await store.delete_goal(database, 1, seen=seen.row_version)
    await store.delete_goal(database, 1, seen=(await store.select_goal(database, 1)).row_version)
    with pytest.raises(GoalNotFoundError):
        await store.select_goal(database, 1)
