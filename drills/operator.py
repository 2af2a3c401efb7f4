"""Simulates CloudNativePG's operator, at its measured pace, when the primary is lost or switched over."""

import asyncio
import time
from typing import Any, NamedTuple

import asyncpg

from drills.drill import Drill, Promotion
from drills.stage import Stage


class Times(NamedTuple):
    """Ranges of seconds after an event until a standby accepts writes, and until the primary's Service routes to it.

    `grace` is how long a shutdown waits for connections to end.
    """

    promoted: tuple[float, float]
    routed: tuple[float, float]
    grace: float = 0.0


PACES: dict[Promotion, dict[str, Times]] = {
    # CloudNativePG 1.30.0 with the values of our manifests, measured on a cluster: docs/operations.md.
    "cnpg": {
        "kill": Times((9.6, 9.6), (11.4, 11.4)),
        "deletion": Times((5.5, 5.5), (7.0, 7.0), 1.0),
        "switchover": Times((3.3, 3.9), (6.7, 8.9), 1.0),
        "lost node": Times((66.0, 66.0), (74.7, 74.7)),
    },
    "at-once": {
        "kill": Times((0.0, 1.2), (0.0, 0.0)),
        "deletion": Times((0.0, 0.0), (0.0, 0.0)),
        "switchover": Times((0.0, 0.0), (0.0, 0.0)),
        "lost node": Times((8.0, 8.0), (8.0, 8.0)),
    },
}
_FORGOTTEN = 40.0
"""Seconds after which Kubernetes stops routing to a silent node."""
_PROMOTING = 0.2
"""Seconds that a promotion itself takes."""
_COMMIT = "SELECT pg_logical_emit_message(true, 'drill', '')"
"""A write that waits for a standby but changes no table."""


class Event(NamedTuple):
    """One change of the primary, in Unix seconds; from `possible` on, `DB_HOST` accepted synchronous commits."""

    what: str
    began: float
    promoted: float
    routed: float
    possible: float


class Operator:
    """Acts as CloudNativePG, at its own pace, or as an operator that promotes immediately."""

    def __init__(self, drill: Drill, stage: Stage, promotion: Promotion | None = None) -> None:
        """Use the drill's pace, or that of another `promotion`."""
        self._drill = drill
        self._stage = stage
        self._pace = PACES[promotion or drill.promotion]

    async def lose(self) -> Event:
        """Kill the primary's pod with SIGKILL, and bring it back as a standby."""
        stage, began, lost = self._stage, time.time(), self._stage.cluster.primary
        stage.route_to([])
        await stage.cluster.kill(lost)
        event = await self.hand_over("kill", began)
        await stage.cluster.rejoin(lost)
        return await self._settle(event)

    async def delete(self) -> Event:
        """Delete the primary's pod, which shuts it down cleanly; it comes back as a standby."""
        stage, began, old = self._stage, time.time(), self._stage.cluster.primary
        stage.route_to([])
        await stage.cluster.stop(old, grace=self._pace["deletion"].grace)
        event = await self.hand_over("deletion", began)
        await stage.cluster.rejoin(old, rewind=False)
        return await self._settle(event)

    async def switch_over(self, *, lag: float | None = None) -> Event:
        """Switch over to another instance. Until the Service follows, it routes to the former one, now a standby."""
        stage, began, old = self._stage, time.time(), self._stage.cluster.primary
        await stage.cluster.stop(old, grace=self._pace["switchover"].grace)
        candidates = stage.cluster.standbys
        await stage.cluster.start_standby(old, follow=False)
        return await self._settle(await self.hand_over("switchover", began, candidates, lag=lag))

    async def lose_node(self) -> Event:
        """Lose the primary's node: everything on it stops responding, and Kubernetes takes a while to notice."""
        stage, began, lost = self._stage, time.time(), self._stage.cluster.primary
        for way in (*stage.services, stage.instances[lost]):
            await way.swallow()
        stage.route_to([])
        stage.cluster.freeze(lost)
        forgetting = asyncio.create_task(self._forget(began + min(_FORGOTTEN, self._pace["lost node"].promoted[0])))
        event = await self.hand_over("lost node", began)
        await forgetting
        await stage.cluster.kill(lost)
        await stage.instances[lost].reappear()
        await stage.cluster.rejoin(lost)
        return await self._settle(event)

    async def _forget(self, at: float) -> None:
        await sleep_until(at)
        for service in self._stage.services:
            await service.reappear()

    async def hand_over(
        self, what: str, began: float, candidates: list[str] | None = None, *, lag: float | None = None
    ) -> Event:
        """Promote a standby and route the Service to it, each at its time; standbys follow the Service.

        With `lag`, the Service as seen from the second node follows only after that many seconds.
        """
        stage, cluster, times = self._stage, self._stage.cluster, self._pace[what]
        await sleep_until(began + self._drill.random.uniform(*times.promoted) - _PROMOTING)
        candidates = candidates or cluster.standbys
        promoted = await cluster.promote(candidates, follow=False)
        promoted_at = time.time()
        probe = asyncio.create_task(self._until_possible())
        await sleep_until(began + self._drill.random.uniform(*times.routed))
        routed_at = time.time()
        stage.route_to([cluster.port], second=lag is None)
        cluster.follow(name for name in cluster.standbys if cluster.is_up(name))
        possible = await probe
        self._drill.say(
            f"{what}: {promoted} promoted after {promoted_at - began:.1f} s, "
            f"the Service routes to it after {routed_at - began:.1f} s, commits after {possible - began:.1f} s"
        )
        if lag is not None:
            await sleep_until(began + lag)
            stage.route_to([cluster.port])
        return Event(what, began, promoted_at, routed_at, possible)

    async def _settle(self, event: Event) -> Event:
        await self._stage.cluster.until_whole()
        return event

    async def _until_possible(self) -> float:
        """Wait for a synchronous commit at `DB_HOST`, and return its time."""
        while True:
            try:
                await self._commit()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                await asyncio.sleep(0.05)  # it is not there yet
            else:
                return time.time()

    async def _commit(self) -> None:
        connection: Any = await asyncpg.connect(
            host=self._stage.database.address,
            port=self._stage.database.port,
            user="postgres",
            database="goals_database",
            ssl=False,
            timeout=1,
        )
        try:
            await connection.execute(_COMMIT)
        finally:
            connection.terminate()


async def sleep_until(at: float) -> None:
    await asyncio.sleep(max(at - time.time(), 0))
