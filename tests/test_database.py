"""Statements, and the connections they need, under every fault that can be made on a real server."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest
import structlog
import trustme
from sqlalchemy import text

from goals import embedded
from goals.database import Database
from goals.errors import DatabaseUnavailableError, LockedError, OverloadedError, StatementRefusedError
from goals.settings import Settings
from tests.conftest import LIMITS, WAIT_FOR_THE_LOCK, WIDE, until_running
from tools import tls
from tools.polling import until

ONE = text("SELECT 1 AS one")


async def backends(administrator: asyncpg.Connection) -> list[int]:
    """The server processes behind the pools of this test."""
    rows = await administrator.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'goals' ORDER BY pid")
    return [row["pid"] for row in rows]


async def terminate(administrator: asyncpg.Connection) -> None:
    await administrator.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'goals'"
    )


async def test_a_statement_answers_with_its_rows(database: Database) -> None:
    rows, attempts, *_ = await database.run(text("SELECT CAST(:number AS integer) AS number"), {"number": 42})
    assert ([row.number for row in rows], attempts) == ([42], 1)


async def test_a_statement_is_its_own_transaction(database: Database, administrator: asyncpg.Connection) -> None:
    await database.fetch(text("INSERT INTO goals (goal_name) VALUES ('committed') RETURNING id"))
    assert await administrator.fetchval("SELECT goal_name FROM goals") == "committed"


async def test_every_connection_is_opened_at_once(database: Database, administrator: asyncpg.Connection) -> None:
    before = set(await backends(administrator))
    await database.fill()
    assert len(set(await backends(administrator)) - before) == database.size


async def test_connections_that_died_while_idle_are_not_noticed(
    database: Database, administrator: asyncpg.Connection
) -> None:
    await database.fill()
    await terminate(administrator)
    assert [row.one for row in await database.fetch(ONE)] == [1]


async def test_a_connection_that_is_lost_takes_no_other_with_it(
    database: Database, administrator: asyncpg.Connection
) -> None:
    await database.fill()
    before = set(await backends(administrator))
    await administrator.execute("SELECT pg_advisory_lock(1)")
    statement = asyncio.create_task(database.fetch(text(f"{WAIT_FOR_THE_LOCK}, 'lost alone'")))
    await until_running(administrator, "lost alone")
    lost = await administrator.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE '%lost alone%' AND pid <> pg_backend_pid()"
    )
    await administrator.execute("SELECT pg_terminate_backend($1, 5000)", lost)
    await administrator.execute("SELECT pg_advisory_unlock(1)")
    await statement
    await asyncio.gather(*(database.fetch(ONE) for _ in range(database.size)))
    assert before - set(await backends(administrator)) == {lost}


async def test_a_statement_that_was_sent_is_never_told_to_have_done_nothing(
    settings: Settings, administrator: asyncpg.Connection
) -> None:
    database = Database(settings, replace(WIDE, gate_queue=0))
    await administrator.execute("SELECT pg_advisory_lock(1)")

    async def take_the_next_place() -> None:
        while True:
            with contextlib.suppress(OverloadedError):
                await database.run(text(f"{WAIT_FOR_THE_LOCK}, 'other'"))
            await asyncio.sleep(0)

    sent = asyncio.create_task(database.run(text(f"{WAIT_FOR_THE_LOCK}, 'sent'")))
    await until_running(administrator, "'sent'")
    # One more than there are places: as soon as the first is free, it is taken, before the second attempt comes for it.
    others = [asyncio.create_task(take_the_next_place()) for _ in range(database.size)]
    await until_running(administrator, WAIT_FOR_THE_LOCK, database.size)
    await administrator.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE query LIKE '%''sent''%' AND pid <> pg_backend_pid()"
    )
    with pytest.raises(DatabaseUnavailableError):
        await sent
    for other in others:
        other.cancel()
    await asyncio.wait(others)
    await database.close()


async def test_a_statement_cut_off_is_sent_again(database: Database, administrator: asyncpg.Connection) -> None:
    with structlog.testing.capture_logs() as events:
        await administrator.execute("SELECT pg_advisory_lock(1)")
        statement = asyncio.create_task(database.run(text(f"{WAIT_FOR_THE_LOCK}, 'cut off' AS what")))
        await until_running(administrator, "cut off")
        await terminate(administrator)
        await administrator.execute("SELECT pg_advisory_unlock(1)")
        rows, attempts, *_ = await statement
        assert (rows[0].what, attempts) == ("cut off", 2)
        while len(events) < 2:
            await database.fetch(ONE)  # the outage is over once they have succeeded for a while
    assert [event["event"] for event in events] == ["database does not answer", "database answers again"]


async def test_a_statement_on_a_connection_that_is_being_closed_is_sent_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = asyncpg.Connection.prepare

    async def fail(*_: object, **__: object) -> None:
        monkeypatch.setattr(asyncpg.Connection, "prepare", prepare)
        raise asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")

    monkeypatch.setattr(asyncpg.Connection, "prepare", fail)
    rows, attempts, *_ = await database.run(ONE)
    assert (rows[0].one, attempts) == (1, 2)


async def test_a_statement_whose_plan_a_migration_has_outdated_is_sent_again(
    database: Database, administrator: asyncpg.Connection
) -> None:
    await administrator.execute("CREATE TABLE outdated AS SELECT CAST('a name' AS varchar(9)) AS name")
    await administrator.execute("GRANT SELECT ON outdated TO goals_user")
    try:
        statement = text("SELECT name FROM outdated")
        await database.fetch(statement)
        await administrator.execute("ALTER TABLE outdated ALTER COLUMN name TYPE text")
        rows, attempts, *_ = await database.run(statement)
    finally:
        await administrator.execute("DROP TABLE outdated")
    assert (rows[0].name, attempts) == ("a name", 2)


async def test_a_statement_that_may_not_be_repeated_is_sent_once(
    database: Database, administrator: asyncpg.Connection
) -> None:
    await administrator.execute("SELECT pg_advisory_lock(1)")
    statement = asyncio.create_task(database.run(text(f"{WAIT_FOR_THE_LOCK}, 'sent once'"), repeatable=False))
    await until_running(administrator, "sent once")
    await terminate(administrator)
    with pytest.raises(DatabaseUnavailableError, match="did not confirm whether"):
        await statement


async def test_dead_connections_are_replaced_before_a_statement_that_may_not_be_repeated(
    database: Database, administrator: asyncpg.Connection
) -> None:
    await database.fill()
    await terminate(administrator)
    await until(lambda: is_closed(database))
    rows, attempts, *_ = await database.run(ONE, repeatable=False)
    assert (rows[0].one, attempts) == (1, 1)


async def is_closed(database: Database) -> bool:
    """Whether the driver has noticed the end of the connection that is next in the pool."""
    async with database.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        return bool(driver.is_closed())


async def test_a_defect_of_ours_is_not_repeated(database: Database) -> None:
    for repeatable in (True, False):
        with pytest.raises(StatementRefusedError, match="42601"):
            await database.run(text("SELEC 1"), repeatable=repeatable)


async def test_a_defect_is_told_without_the_values_that_postgresql_quotes(database: Database) -> None:
    statement = text("INSERT INTO goals (id, goal_name) VALUES (1, :name), (1, :name)")
    with pytest.raises(StatementRefusedError, match="23505, constraint goals_pkey") as caught:
        await database.fetch(statement, {"name": "x" * 40})
    shown = "".join(traceback.format_exception(caught.value))
    assert "xxx" not in shown
    assert "INSERT INTO goals" in shown


async def test_a_table_that_is_not_there_yet_is_an_outage(database: Database) -> None:
    with pytest.raises(DatabaseUnavailableError, match="cannot do this now"):
        await database.fetch(text("SELECT * FROM no_such_table"))


async def test_a_statement_that_takes_too_long_is_given_up_and_not_repeated(settings: Settings, schema: None) -> None:
    database = Database(settings, replace(WIDE, statement_timeout=0.1))
    with pytest.raises(DatabaseUnavailableError, match="cannot do this now"):
        await database.fetch(text("SELECT pg_sleep(60)"))
    await database.close()


async def test_a_standby_is_left(database: Database, administrator: asyncpg.Connection) -> None:
    role = "ALTER ROLE goals_user IN DATABASE goals_database"
    await administrator.execute(f"{role} SET default_transaction_read_only = on")
    insert = text("INSERT INTO goals (goal_name) VALUES ('moved') RETURNING id")
    try:
        await database.fetch(ONE)  # a connection to what is now a standby waits in the pool
        statement = asyncio.create_task(database.run(insert))
        while not database._failures:
            assert not statement.done()
            await asyncio.sleep(0)
    finally:
        await administrator.execute(f"{role} RESET default_transaction_read_only")
    rows, attempts, *_ = await statement
    assert len(rows) == 1
    assert attempts > 1


async def test_a_frozen_connection_is_left_for_a_new_one(settings: Settings, administrator: asyncpg.Connection) -> None:
    database = Database(settings, replace(WIDE, command_timeout=LIMITS.command_timeout))
    before = set(await backends(administrator))
    await database.fetch(ONE)
    (frozen,) = set(await backends(administrator)) - before
    os.kill(frozen, signal.SIGSTOP)
    try:
        rows, attempts, *_ = await database.run(ONE)
        assert rows[0].one == 1
        assert attempts > 1
    finally:
        os.kill(frozen, signal.SIGCONT)
        await database.close()


async def test_a_server_that_is_not_there_is_given_up_after_the_budget(settings: Settings, tmp_path: Path) -> None:
    database = Database(settings.model_copy(update={"db_host": str(tmp_path)}), replace(WIDE, retry_budget=0.1))
    with pytest.raises(DatabaseUnavailableError, match="did not answer"):
        await database.fetch(ONE)
    await database.close()


async def test_a_server_that_accepts_and_says_nothing_is_given_up_at_the_deadline(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = Database(
            settings.model_copy(update={"db_host": "127.0.0.1", "db_port": port}), replace(WIDE, retry_budget=0.1)
        )
        with pytest.raises(DatabaseUnavailableError):
            await database.fetch(ONE)
        await database.close()


async def test_a_primary_is_looked_for_again_where_a_look_hangs(settings: Settings) -> None:
    came: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(lambda _, writer: came.append(writer), "127.0.0.1", 0) as silent:
        own = settings.model_copy(update={"db_host": "127.0.0.1", "db_port": silent.sockets[0].getsockname()[1]})
        database = Database(own, WIDE)
        database._check_primary(asyncio.get_running_loop().time())

        async def came_again() -> bool:
            return len(came) > 2

        await until(came_again)
        await database.close()
        for writer in came:
            writer.close()


async def test_what_is_under_way_ends_with_the_pool(database: Database, administrator: asyncpg.Connection) -> None:
    await administrator.execute("SELECT pg_advisory_lock(1)")
    statement = asyncio.create_task(database.fetch(text(f"{WAIT_FOR_THE_LOCK}, 'under way'")))
    await until_running(administrator, "under way")
    await database.close()
    with pytest.raises(asyncio.CancelledError):
        await statement


async def test_a_pool_that_others_hold_is_an_overload(settings: Settings, schema: None) -> None:
    database = Database(settings.model_copy(update={"goals_pool_size": 5}), replace(WIDE, gate_timeout=0.1))
    held = [await database.engine.connect() for _ in range(5)]
    with pytest.raises(OverloadedError, match="No connection"):
        await database.fetch(ONE)
    for connection in held:
        await connection.close()
    await database.close()


class Remote(NamedTuple):
    """A PostgreSQL behind TCP that asks for TLS and a password."""

    settings: Settings
    administrator: asyncpg.Connection
    password_file: Path


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """The socket of a server that wants a password from the service."""
    folder = tmp_path_factory.mktemp("guarded")
    with embedded.run(folder) as socket:
        rules = folder / "postgres" / "pg_hba.conf"
        rules.write_text("local all goals_user scram-sha-256\n" + rules.read_text())
        administrator = await asyncpg.connect(host=str(socket), user="postgres", database="postgres")
        await administrator.execute("SELECT pg_reload_conf()")
        await administrator.close()
        yield socket


@pytest.fixture
async def remote(guarded: Path, settings: Settings, tmp_path: Path) -> AsyncIterator[Remote]:
    """Its way in by TLS with a certificate for `localhost`; the password is "first"."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    (tmp_path / "password").write_text("first\n")
    administrator = await asyncpg.connect(host=str(guarded), user="postgres", database="postgres")
    await administrator.execute("ALTER ROLE goals_user PASSWORD 'first'")
    async with tls.entrance(lambda: asyncio.open_unix_connection(str(guarded / ".s.PGSQL.5432")), context) as port:
        yield Remote(
            settings.model_copy(
                update={
                    "db_host": "localhost",
                    "db_port": port,
                    "ssl": "verify-full",
                    "db_ca_file": tmp_path / "ca.crt",
                    "db_password_file": tmp_path / "password",
                }
            ),
            administrator,
            tmp_path / "password",
        )
    await administrator.close()


@pytest.mark.parametrize(
    ("word", "host", "works"),
    [
        ("verify-full", "localhost", True),
        ("verify-full", "127.0.0.1", False),  # the certificate is for localhost
        ("verify-ca", "127.0.0.1", True),
        ("require", "127.0.0.1", True),
        ("prefer", "127.0.0.1", True),
        ("disable", "127.0.0.1", False),  # the server is reached by TLS only
    ],
)
async def test_tls_follows_the_words_of_libpq(remote: Remote, word: str, host: str, *, works: bool) -> None:
    database = Database(
        remote.settings.model_copy(update={"ssl": word, "db_host": host}),
        WIDE if works else replace(WIDE, retry_budget=0.5),
    )
    try:
        await database.fetch(ONE)
        answered = True
    except DatabaseUnavailableError:
        answered = False
    assert answered == works
    await database.close()


async def test_a_certificate_of_another_authority_is_refused(remote: Remote, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.crt")
    database = Database(
        remote.settings.model_copy(update={"db_ca_file": tmp_path / "other.crt"}), replace(WIDE, retry_budget=0.1)
    )
    with pytest.raises(DatabaseUnavailableError):
        await database.fetch(ONE)
    await database.close()


async def test_a_new_password_is_read_when_the_old_one_is_refused(remote: Remote) -> None:
    database = Database(remote.settings, WIDE)
    await database.fetch(ONE)
    await remote.administrator.execute("ALTER ROLE goals_user PASSWORD 'second'")
    await terminate(remote.administrator)
    with structlog.testing.capture_logs() as events:
        statement = asyncio.create_task(database.fetch(ONE))
        while not any(event.get("sqlstate") == "28P01" for event in events):
            assert not statement.done()
            await asyncio.sleep(0)
        remote.password_file.write_text("second\n")
        assert len(await statement) == 1
    await database.close()


async def test_connections_that_work_are_found_among_those_that_cannot_be_replaced(remote: Remote) -> None:
    database = Database(remote.settings, WIDE)
    await database.fill()
    await remote.administrator.execute("ALTER ROLE goals_user PASSWORD 'second'")
    await remote.administrator.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM "
        "(SELECT pid FROM pg_stat_activity WHERE application_name = 'goals' LIMIT $1)",
        database.size - 2,
    )
    with structlog.testing.capture_logs() as events:
        for _ in range(10):
            answers = await asyncio.gather(*(database.fetch(ONE) for _ in range(3 * database.size)))
            assert all(len(rows) == 1 for rows in answers)
        remote.password_file.write_text("second\n")
        while events[-1]["event"] != "database accepts connections again":
            await asyncio.gather(*(database.fetch(ONE) for _ in range(database.size)))
    logged = [event for event in events if event["event"] == "database refuses connections"]
    assert [event["sqlstate"] for event in logged] == ["28P01"]
    await database.close()


async def test_the_former_password_serves_until_the_server_has_the_new_one(remote: Remote) -> None:
    database = Database(remote.settings, replace(WIDE, retry_budget=LIMITS.retry_budget))
    await database.fetch(ONE)
    with structlog.testing.capture_logs() as events:
        remote.password_file.write_text("second\n")
        for _ in range(2):
            await terminate(remote.administrator)
            rows, attempts, *_ = await database.run(ONE)
            assert len(rows) == 1
            # The connection that was lost, and no second refusal: the former password is tried at once.
            assert attempts <= 2
        await remote.administrator.execute("ALTER ROLE goals_user PASSWORD 'second'")
        await terminate(remote.administrator)
        await database.fetch(ONE)
    logged = [event["event"] for event in events if "password" in event["event"]]
    assert logged == [
        "database rejects the new password but accepts the former one",
        "database accepts the new password",
    ]
    await remote.administrator.execute("ALTER ROLE goals_user PASSWORD 'third'")
    await terminate(remote.administrator)
    with pytest.raises(DatabaseUnavailableError):
        await database.fetch(ONE)  # neither the file's nor the one before
    await database.close()


async def test_a_lock_that_a_later_attempt_meets_does_not_say_what_became_of_the_first(
    empty: Settings, connection: asyncpg.Connection
) -> None:
    await connection.execute("""
        CREATE SEQUENCE attempts;
        CREATE FUNCTION attempt() RETURNS integer LANGUAGE plpgsql AS $$
        BEGIN
          IF nextval('attempts') = 1 THEN
            PERFORM pg_terminate_backend(pg_backend_pid());
            PERFORM pg_sleep(60);
          END IF;
          RAISE EXCEPTION 'held' USING ERRCODE = 'lock_not_available';
        END $$
    """)
    database = Database(empty, replace(WIDE, retry_budget=2.0))
    with pytest.raises(DatabaseUnavailableError):
        await database.run(text("SELECT attempt()"))
    with pytest.raises(LockedError):
        await database.run(text("SELECT attempt()"))
    await database.close()


async def test_no_other_lock_timeout_holds_than_a_statements_own(
    database: Database, administrator: asyncpg.Connection
) -> None:
    await administrator.execute("ALTER ROLE goals_user SET lock_timeout = '50ms'")
    try:
        ((limit,),) = await database.fetch(text("SHOW lock_timeout"))
    finally:
        await administrator.execute("ALTER ROLE goals_user RESET lock_timeout")
    assert limit == "0"


async def test_a_connection_that_is_lost_while_it_is_set_up_is_replaced(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy asks a new connection for its JSON types; one that was reset before cannot answer."""
    set_up = asyncpg.Connection.set_type_codec
    losses = iter([True])

    async def lose(connection: asyncpg.Connection, *names: object, **options: object) -> None:
        if next(losses, False):
            connection.terminate()
        await set_up(connection, *names, **options)

    monkeypatch.setattr(asyncpg.Connection, "set_type_codec", lose)
    assert (await database.run(ONE)).attempts == 2
