"""When requests should come: once the schema is there, and from then on whatever becomes of the database."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import asyncpg
import httpx2
import structlog

from goals.models import SCHEMA_REVISION
from goals.settings import Settings
from tests.conftest import LIMITS, WIDE, Service, serving, until_ready, upgrade
from tools.polling import until


async def readiness(service: Service) -> tuple[int, str]:
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:
        response = await client.get(f"http://127.0.0.1:{service.ops_port}/readyz")
        return response.status_code, response.text


async def status(service: Service, path: str) -> int:
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{service.port}{path}")).status_code


async def until_not_ready_because(service: Service, part: str) -> None:
    async def says_so() -> bool:
        status, reason = await readiness(service)
        assert status == 503
        return part in reason

    await until(says_so)


async def test_without_a_schema_it_lives_and_waits_and_says_why(
    empty: Settings, connection: asyncpg.Connection
) -> None:
    with structlog.testing.capture_logs() as events:
        async with serving(empty) as service:
            assert await status(service, "/health") == 200
            await until_not_ready_because(service, "has the migration run?")
            assert await status(service, "/") == 503
            await connection.execute("CREATE TABLE alembic_version AS SELECT '0000' AS version_num")
            await until_not_ready_because(service, f"at revision 0000, but this version needs {SCHEMA_REVISION}")
            await connection.execute("DROP TABLE alembic_version")
            await upgrade(empty)
            await until_ready(service)
            assert await status(service, "/") == 200
    obstacles = [event["obstacle"] for event in events if event["event"] == "not ready"]
    assert "has the migration run?" in obstacles[0]
    assert "at revision 0000" in obstacles[1]
    # A check may fall between two revisions. An obstacle is logged when it changes, not at each check.
    assert all(former != latter for former, latter in pairwise(obstacles))
    assert [event["event"] for event in events if event["event"] == "ready"] == ["ready"]


async def test_without_a_database_it_lives_and_answers_503_with_a_time_to_come_back(
    settings: Settings, tmp_path: Path
) -> None:
    async with serving(
        settings.model_copy(update={"db_host": str(tmp_path)}), replace(WIDE, retry_budget=0.2)
    ) as service:
        await until_not_ready_because(service, "Is it up")
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:
            response = await client.get(f"http://127.0.0.1:{service.port}/api/v1/goals")
        assert (response.status_code, 1 < int(response.headers["retry-after"]) <= LIMITS.failover_time) == (503, True)


async def test_a_table_of_another_shape_is_told_by_its_column(empty: Settings, connection: asyncpg.Connection) -> None:
    await upgrade(empty)
    await connection.execute("ALTER TABLE goals ALTER COLUMN id TYPE integer, DROP COLUMN row_version")
    async with serving(empty) as service:
        await until_not_ready_because(service, "the column goals.row_version is missing, but must be bigint")
        await connection.execute("ALTER TABLE goals ADD COLUMN row_version integer NOT NULL DEFAULT 1")
        await until_not_ready_because(service, "the column goals.row_version is integer, but must be bigint")
        await connection.execute("ALTER TABLE goals ALTER COLUMN row_version TYPE bigint")
        await until_ready(service)


async def test_a_table_whose_changes_nobody_counts_is_named(empty: Settings, connection: asyncpg.Connection) -> None:
    await upgrade(empty)
    await connection.execute("ALTER TABLE goals DISABLE TRIGGER goals_row_version")
    async with serving(empty) as service:
        await until_not_ready_because(service, "the trigger goals_row_version is disabled or missing")
        await connection.execute("ALTER TABLE goals ENABLE TRIGGER goals_row_version")
        await until_ready(service)


async def test_the_revisions_of_another_project_are_told(empty: Settings, connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name TEXT NOT NULL)")
    await connection.execute("CREATE TABLE alembic_version AS SELECT 'ae1027a6acf' AS version_num")
    async with serving(empty) as service:
        await until_not_ready_because(service, "alembic_version contains ae1027a6acf, from another project")


async def test_a_newer_schema_is_good_enough(empty: Settings, connection: asyncpg.Connection) -> None:
    await upgrade(empty)
    await connection.execute("UPDATE alembic_version SET version_num = '0099'")
    async with serving(empty) as service:
        await until_ready(service)


async def test_a_schema_without_a_revision_is_none(empty: Settings, connection: asyncpg.Connection) -> None:
    await upgrade(empty)
    await connection.execute("DELETE FROM alembic_version")
    async with serving(empty) as service:
        await until_not_ready_because(service, "revision None")


async def test_an_obstacle_that_stays_is_told_once(empty: Settings, connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE SEQUENCE asked")
    await connection.execute("CREATE VIEW alembic_version AS SELECT '0000' AS version_num FROM nextval('asked')")

    async def has_asked_three_times() -> bool:
        # The third query comes after the second answer was logged, or not.
        return bool(await connection.fetchval("SELECT last_value FROM asked") >= 3)

    with structlog.testing.capture_logs() as events:
        async with serving(empty) as service:
            await until(has_asked_three_times)
            await until_not_ready_because(service, "at revision 0000")
    assert [event["event"] for event in events].count("not ready") == 1


async def test_a_later_outage_is_no_obstacle(empty: Settings) -> None:
    await upgrade(empty)
    administrator = await asyncpg.connect(host=empty.db_host, user="postgres", database="postgres")
    async with serving(empty) as service:
        await until_ready(service)
        await administrator.execute(f'ALTER DATABASE "{empty.db_name}" ALLOW_CONNECTIONS false')
        await administrator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", empty.db_name
        )
        assert await status(service, "/") == 503
        assert await readiness(service) == (200, "ready")
        await administrator.execute(f'ALTER DATABASE "{empty.db_name}" ALLOW_CONNECTIONS true')
        assert await status(service, "/") == 200
    await administrator.close()


async def test_what_cannot_be_opened_beforehand_is_opened_when_needed(empty: Settings) -> None:
    await upgrade(empty)
    administrator = await asyncpg.connect(host=empty.db_host, user="postgres", database="postgres")
    await administrator.execute(f'ALTER DATABASE "{empty.db_name}" CONNECTION LIMIT 2')
    with structlog.testing.capture_logs() as events:
        async with serving(empty) as service:
            await until_ready(service)
            assert any(event["event"].startswith("pool warm-up failed") for event in events)
            assert await status(service, "/") == 200
    await administrator.close()


async def test_without_a_right_to_read_the_schema_it_waits_for_it(empty: Settings) -> None:
    await upgrade(empty)
    administrator = await asyncpg.connect(host=empty.db_host, user="postgres", database=empty.db_name)
    await administrator.execute("DROP ROLE IF EXISTS stranger")
    await administrator.execute("CREATE ROLE stranger LOGIN")
    with structlog.testing.capture_logs() as events:
        async with serving(empty.model_copy(update={"db_username": "stranger"})) as service:
            await until_not_ready_because(service, "cannot do this now")
            await administrator.execute("GRANT SELECT ON alembic_version TO stranger")
            await until_ready(service)
    assert "42501" in {event.get("sqlstate") for event in events}
    await administrator.execute("DROP OWNED BY stranger")
    await administrator.execute("DROP ROLE stranger")
    await administrator.close()


async def test_an_address_that_cannot_be_spelt_is_told_and_does_not_end_the_wait(settings: Settings) -> None:
    async with serving(settings.model_copy(update={"db_host": ".nowhere"})) as service:
        await until_not_ready_because(service, "the schema cannot be read (Unicode")
        assert await status(service, "/health") == 200
