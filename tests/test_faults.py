"""Writers under random faults: what is acknowledged is stored once, and what is refused is not, or its key finds it."""

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest
from opentelemetry.metrics import NoOpMeter
from sqlalchemy import text

from drills.broken import answer_before_the_commit, let_a_group_fail_together
from drills.cluster import Cluster
from drills.proxy import TcpProxy
from goals import embedded, store, writes
from goals.database import Database
from goals.errors import GoalsError, IdempotencyKeyReusedError, OverloadedError
from goals.models import Goal
from goals.schemas import new_key
from goals.settings import Settings
from goals.telemetry import GroupMetrics
from goals.writes import Writes
from tests.conftest import LIMITS, upgrade
from tools.polling import until

WRITERS = 16
ADDS = 8
"""Of each writer, at least; they go on until the faults are over."""
NUMBER, _, SEED = os.environ.get("FAULT_RUNS", "5").partition(":")
SEED = SEED or str(random.randrange(10**9))  # noqa: S311  no secret


@dataclass
class Stage:
    cluster: Cluster
    proxy: TcpProxy
    settings: Settings


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    """A primary and two standbys behind a proxy; a commit waits for either standby."""
    async with Cluster() as cluster, TcpProxy([cluster.port]) as proxy:
        settings = Settings().model_copy(
            update=embedded.SETTINGS | {"db_host": "127.0.0.1", "db_port": proxy.port, "goals_pool_size": 10}
        )
        await upgrade(settings)
        yield Stage(cluster, proxy, settings)


@dataclass
class Add:
    key: UUID
    name: str
    goal: Goal | None = None
    refusal: GoalsError | None = None


@dataclass
class Run:
    """One run: its writers, what they were answered, and the faults meanwhile."""

    stage: Stage
    random: random.Random
    groups: int
    adds: list[Add] = field(default_factory=list)
    held: set[UUID] = field(default_factory=set)
    biggest_group: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, faults: Iterable[Callable[["Run"], Awaitable[None]]]) -> list[str]:
        """Let the writers write while the faults happen; give what is wrong afterwards."""
        await self.stage.cluster.execute("TRUNCATE goals, goal_keys")
        limits = replace(LIMITS, groups=self.groups)
        database = Database(self.stage.settings, limits)
        adding = Writes(database, limits, GroupMetrics(NoOpMeter("goals")))
        writing = [asyncio.create_task(self._write(adding)) for _ in range(WRITERS)]
        for fault in faults:
            await asyncio.sleep(self.random.uniform(0, 0.1))
            await fault(self)
        self.over.set()
        await asyncio.gather(*writing)
        wrong = await self._judge(adding)
        await database.close()
        return wrong

    async def _write(self, adding: Writes) -> None:
        number = 0
        while number < ADDS or not self.over.is_set():
            number += 1
            await asyncio.sleep(self.random.uniform(0, 0.01))
            key = new_key()
            add = Add(key, f"{key} first")
            if self.adds and self.random.random() < 0.2:
                key = self.random.choice(self.adds[-WRITERS:]).key  # whose first attempt may be under way
                add = Add(key, f"{key} {self.random.choice(['first', 'other'])}")
            elif self.random.random() < 0.1:
                self.held.add(key)
                await asyncio.sleep(0.03)  # for another session to take it
            self.adds.append(add)
            await self._send(adding, add)

    async def _send(self, adding: Writes, add: Add) -> None:
        try:
            add.goal = await adding.add({"goal_name": add.name}, add.key, add.name.encode())
        except GoalsError as error:
            add.refusal = error

    async def _judge(self, adding: Writes) -> list[str]:
        connection = await self.stage.cluster.connect()
        rows = await connection.fetch("SELECT id, goal_name FROM goals")
        biggest = "SELECT max(number) FROM (SELECT count(*) AS number FROM goals GROUP BY xmin::text) AS commits"
        self.biggest_group = await connection.fetchval(biggest)
        await connection.close()
        stored: dict[UUID, list[tuple[int, str]]] = {}
        for row in rows:
            stored.setdefault(UUID(row["goal_name"].split()[0]), []).append((row["id"], row["goal_name"]))
        wrong = [f"phantom: {key}" for key in stored.keys() - {add.key for add in self.adds}]
        for add in self.adds:
            there = stored.get(add.key, [])
            is_mine = [name for _, name in there] == [add.name]
            again = Add(add.key, add.name)
            is_repeated = is_mine and (add.goal is None or add in self.adds[-WRITERS:])
            if is_repeated:
                await self._send(adding, again)  # its key knows what became of it, even if nobody else does
            faults = {
                "stored twice": len(there) > 1,
                "acknowledged and lost": add.goal is not None and there != [(add.goal.id, add.name)],
                "not found by its key": is_repeated and (again.goal is None or again.goal.id != there[0][0]),
                "refused for a goal that is not there": isinstance(add.refusal, IdempotencyKeyReusedError)
                and not there,
            }
            wrong += [f"{what}: {add}, there is {there}" for what, is_so in faults.items() if is_so]
        return wrong


async def reset_connections(run: Run) -> None:
    """Connections are reset, some of them when their commit is done and not yet answered."""
    run.stage.proxy.replies_to_drop = run.random.randint(1, 10)
    await asyncio.sleep(run.random.uniform(0, 0.1))
    run.stage.proxy.sever()
    run.stage.proxy.replies_to_drop = 0


async def hold_keys(run: Run) -> None:
    """Another session has some keys, also of adds that come later, and has not committed."""
    connection = await run.stage.cluster.connect()
    transaction = connection.transaction()
    await transaction.start()
    for _ in range(5):
        await asyncio.sleep(0.02)
        keys = [(key,) for key in run.held]
        insert = "INSERT INTO goal_keys (key, fingerprint, goal_id) VALUES ($1, '', 0) ON CONFLICT DO NOTHING"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(connection.executemany(insert, keys), 0.5)
    await asyncio.sleep(run.random.uniform(2, 5) * LIMITS.group_stall)
    connection.terminate()


async def lock_the_table(run: Run) -> None:
    """A migration has the table for a while, perhaps for longer than a statement may take."""
    connection = await run.stage.cluster.connect()
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("LOCK TABLE goals")
    await asyncio.sleep(LIMITS.statement_timeout * run.random.uniform(0.2, 1.2))
    connection.terminate()


async def lose_the_primary(run: Run) -> None:
    """The standbys are cut off, adds that wait for them are sent again, and then the primary is lost."""
    cluster = run.stage.cluster
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    await cluster.detach(cluster.standbys)
    await until(lambda: cluster.fetch(waiting, database="postgres"))
    run.stage.proxy.sever()
    await until(lambda: cluster.fetch(waiting, database="postgres"))
    await asyncio.sleep(run.random.uniform(0, 0.3))
    lost = cluster.primary
    await cluster.kill(lost)
    await cluster.promote()
    run.stage.proxy.route_to([cluster.port])
    await cluster.rejoin(lost)
    await cluster.until_whole()


BRIEF = [reset_connections, hold_keys, lock_the_table]


@pytest.mark.parametrize("index", range(int(NUMBER)))
async def test_each_acknowledged_add_is_stored_once(stage: Stage, index: int) -> None:
    """FAULT_RUNS says how many runs; `5:SEED` plays the same ones again, as far as the machine lets them be."""
    chance = random.Random(f"{SEED}:{index}")  # noqa: S311  no secret
    # Each of them comes up in any three runs, the others by chance.
    faults = [BRIEF[index % len(BRIEF)], *chance.choices(BRIEF, k=chance.randint(0, 2))]
    chance.shuffle(faults)
    if index % 5 == 0:
        faults.insert(chance.randint(0, len(faults)), lose_the_primary)
    run = Run(stage, chance, groups=chance.choice([1, 2, 10]))
    sys.stdout.write(f"FAULT_RUNS={NUMBER}:{SEED}: {', '.join(fault.__name__ for fault in faults)}\n")
    assert await run.play(faults) == []
    assert sum(add.goal is not None for add in run.adds) >= WRITERS
    assert run.groups > 1 or run.biggest_group > 1


async def test_groups_that_are_answered_before_their_commit_lose_adds(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "insert_goals", store.insert_goals)
    answer_before_the_commit()
    run = Run(stage, random.Random(1), groups=1)  # noqa: S311  no secret
    wrong = await run.play([lose_the_primary])
    assert any("acknowledged and lost" in what for what in wrong)


@pytest.mark.parametrize("together", [False, True])
async def test_adds_whose_keys_are_free_fail_only_where_groups_fail_together(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, *, together: bool
) -> None:
    monkeypatch.setattr(writes, "UNDONE", writes.UNDONE)
    if together:
        let_a_group_fail_together()
    refused = 0
    for seed in range(50 if together else 10):  # not in each run does a held key come into a group
        run = Run(stage, random.Random(seed), groups=1)  # noqa: S311  no secret
        assert await run.play([hold_keys]) == []
        refused += sum(isinstance(add.refusal, OverloadedError) for add in run.adds if add.key not in run.held)
        if refused:
            break
    assert bool(refused) == together


async def test_one_silent_connection_condemns_those_that_are_idle(stage: Stage) -> None:
    database = Database(stage.settings, replace(LIMITS, command_timeout=0.2, retry_budget=10.0))
    await database.fill()
    stage.proxy.silence()
    assert (await database.run(text("SELECT 1"))).attempts == 2
    await database.close()
