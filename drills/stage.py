"""The environment of a drill: the cluster, replicas of the service, and load from `loadtest/`, all real processes."""

import asyncio
import contextlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from drills import ROOT
from drills.broken import MODULE, read_names_from_a_file
from drills.cluster import NAMES, Cluster, DrillError, read_to_the_end
from drills.journal import Attempt, Verdict, read_journal, reconcile
from drills.proxy import TcpProxy
from drills.scenarios import SHOWN
from goals import embedded
from tools.polling import until

_LISTENING = re.compile(r'"port":(\d+),"ops_port":(\d+),"event":"listening"')
PRIMARY, SECOND, INSTANCES = "goals-db-rw.drill", "goals-db-rw.second.drill", "goals-db-instances.drill"
"""Names of the primary's Service, of the same Service as seen from another node, and of all instances."""
_CUT_OFF = 1
"""The load test's exit code for a run that was ended early, as by `Load.stop`."""


def clean_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without variables that would configure the service."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("DB_", "GOALS_", "SSL"))} | variables


class Replica:
    """One process of the service."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0
        self.ops_port = 0

    async def until_ready(self) -> None:
        async def is_listening() -> bool:
            if self.process.returncode is not None:
                raise DrillError(f"the service ended during its start: {self.log.read_text()[-500:]}")
            found = _LISTENING.search(self.log.read_text())
            if found:
                self.port, self.ops_port = int(found[1]), int(found[2])
            return found is not None

        await until(is_listening, "the service listens")
        async with httpx2.AsyncClient(trust_env=False) as client:

            async def is_ready() -> bool:
                return (await client.get(f"http://127.0.0.1:{self.ops_port}/readyz")).status_code == 200

            await until(is_ready, "the service is ready")

    async def read_schema(self) -> str:
        """Return the schema revision that it reports as needed."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{self.ops_port}/version")
        return str(answer.json()["schema"])

    def terminate(self) -> None:
        self.process.terminate()

    async def kill(self) -> None:
        """End it with SIGKILL, unless it has ended."""
        if self.process.returncode is None:
            self.process.kill()
        await self.wait()

    async def wait(self) -> int:
        """Wait for its end, and return the exit code."""
        return await self.process.wait()


class Load:
    """A run of the load test with a journal. `stop` ends it."""

    def __init__(self, process: asyncio.subprocess.Process, journal: Path, log: Path) -> None:
        self._process = process
        self._journal = journal
        self._log = log

    async def until_on(self) -> None:
        async def is_on() -> bool:
            if self._process.returncode is not None:
                raise DrillError(f"the load test ended during its start: {self._log.read_text()[-1000:]}")
            return self._journal.exists() and self._journal.stat().st_size > 0

        await until(is_on, "the load starts")

    async def stop(self) -> list[Attempt]:
        """End it after the current iterations, and read the journal."""
        if self._process.returncode is None:
            self._process.terminate()
        return await self.finish()

    async def wait(self) -> int:
        """Wait until it ends on its own, and return its exit code."""
        return await self._process.wait()

    async def finish(self) -> list[Attempt]:
        """Wait until it ends on its own, and read the journal."""
        code = await self.wait()
        if code not in {0, _CUT_OFF}:
            raise DrillError(f"the load test ended with exit code {code}: {self._log.read_text()[-1000:]}")
        return read_journal(self._journal)

    def count(self) -> int:
        """Return how many attempts have ended so far."""
        with self._journal.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))

    async def kill(self) -> None:
        """End it with SIGKILL, unless it has ended."""
        if self._process.returncode is None:
            self._process.kill()
        await self.wait()


class Stage:
    """A cluster behind a proxy that routes to its primary, and replicas of the service behind another proxy.

    With `standbys`, replicas also read from standbys: a name resolves to all three instances, each behind its own
    proxy, and names are resolved from a file. An asynchronous context manager; leaving it ends every process that it
    has started.
    """

    def __init__(self, *, disk: int | None = None, major: str = embedded.VERSION, standbys: bool = False) -> None:
        self.cluster = Cluster(disk=disk, major=major, archive=standbys)
        self.database = TcpProxy()
        """Acts as the Service of the primary: `goals-db-rw`."""
        self.balancer = TcpProxy()
        """Acts as the Service of the replicas."""
        self.reads_standbys = standbys
        self.instances: dict[str, TcpProxy] = {}
        """Act as the network in front of each instance."""
        self.second = TcpProxy(address="127.0.0.5")
        """Acts as the primary's Service as seen from another node, where that differs."""
        self.replicas: list[Replica] = []
        self.variables: dict[str, str] = {}
        """Environment variables of replicas, which override the defaults."""
        self.earlier = 0
        """How many goals existed before the load."""
        self._started: list[Replica | Load] = []
        self._numbers = itertools.count(1)
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as exits:
            folder = exits.enter_context(tempfile.TemporaryDirectory(prefix="goals-drill-files-"))
            self.folder = Path(folder)
            await exits.enter_async_context(self.cluster)
            await exits.enter_async_context(self.database)
            await exits.enter_async_context(self.balancer)
            exits.push_async_callback(self._end)
            self.database.route_to([self.cluster.port])
            await self._migrate()
            if self.reads_standbys:
                await self._open_instances(exits)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def _end(self) -> None:
        # All at once, so that one that cannot be ended does not keep the others alive.
        await asyncio.gather(*(started.kill() for started in self._started), return_exceptions=True)

    async def _open_instances(self, exits: contextlib.AsyncExitStack) -> None:
        """Give each instance its own address, with the port of the primary's Service."""
        port = self.database.port
        for number, name in enumerate(NAMES, 2):
            self.instances[name] = TcpProxy([self.cluster.ports[name]], address=f"127.0.0.{number}", port=port)
            await exits.enter_async_context(self.instances[name])
        self.second.port = port
        await exits.enter_async_context(self.second)
        self.second.route_to(self.database.ports)
        self.write_names()
        self.variables |= {
            "DB_HOST": PRIMARY,
            "DB_STANDBY_HOST": INSTANCES,
            "DB_STANDBY_REPLIES": "2",
            "DRILL_NAMES": str(self._names),
        }

    @property
    def services(self) -> list[TcpProxy]:
        """The primary's Service, as seen from each node."""
        return [self.database, self.second] if self.reads_standbys else [self.database]

    def route_to(self, ports: Sequence[int], *, second: bool = True) -> None:
        """Route new connections to the primary's Service to these ports, on the `second` node too unless it lags."""
        for service in self.services[: 1 + second]:
            service.route_to(ports)

    def write_names(self, *, without: str | None = None) -> Path:
        """Write all names to the resolver's file.

        With `without`, write a separate file that lacks this instance.
        """
        found = {
            PRIMARY: [self.database.address],
            SECOND: [self.second.address],
            INSTANCES: [instance.address for name, instance in self.instances.items() if name != without],
        }
        file = self._names if without is None else self._names.with_name(f"names-without-{without}")
        file.write_text("".join(f"{name} {' '.join(addresses)}\n" for name, addresses in found.items()))
        return file

    def take_names(self) -> None:
        """Make all names unresolvable."""
        self._names.unlink()

    @property
    def _names(self) -> Path:
        return self.folder / "names"

    # The service.

    @property
    def _variables(self) -> dict[str, str]:
        return (
            clean_environment(
                DB_HOST="127.0.0.1",
                DB_PORT=str(self.database.port),
                SSL="disable",
                GOALS_PORT="0",
                GOALS_OPS_PORT="0",
                GOALS_LOG_FORMAT="json",
            )
            | self.variables
        )

    async def _migrate(self) -> None:
        command = [sys.executable, "-m", "goals", "migrate"]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=self._variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        errors = await read_to_the_end(process)
        if process.returncode:
            raise DrillError(f"the migration failed: {errors.decode()[-500:]}")

    async def start_replica(self, module: Sequence[str] = ("goals", "serve"), **variables: str) -> Replica:
        """Start a process of the service, or of a variant from `broken`, and wait until it is ready.

        `variables` are added to its environment; empty ones are removed from it.
        """
        if self.reads_standbys:
            ways = module[1:] if module[0] == MODULE else ()
            module = (MODULE, read_names_from_a_file.__name__, *ways)
        environment = {name: value for name, value in (self._variables | variables).items() if value}
        log = self.folder / f"service-{next(self._numbers)}.log"
        with log.open("w") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *module, cwd=ROOT, env=environment, stdout=output, stderr=output
            )
        replica = Replica(process, log)
        self._started.append(replica)
        await replica.until_ready()
        return replica

    async def serve(self, number: int, module: Sequence[str] = ("goals", "serve"), **variables: str) -> None:
        """Kill all replicas and start `number` new ones."""
        for replica in self.replicas:
            await replica.kill()
        starting = (self.start_replica(module, **variables) for _ in range(number))
        self.replicas = list(await asyncio.gather(*starting))
        self.balance()

    def balance(self) -> None:
        """Route new connections to all replicas."""
        self.balancer.route_to([replica.port for replica in self.replicas])

    # The load.

    async def load(self, scenario: str, port: int | None = None, *, patience: int = 5) -> Load:
        """Start a load test with a scenario (TOML) against the balancer or a port; wait until requests arrive.

        `patience` is how many seconds its users may take to finish their iterations after the end.
        """
        name = f"load-{next(self._numbers)}"
        file = self.folder / f"{name}.toml"
        file.write_text(scenario, encoding="utf-8")
        journal = self.folder / f"{name}.jsonl"
        log = self.folder / f"{name}.log"
        options = {
            "--scenario": str(file),
            "--host": f"http://127.0.0.1:{port or self.balancer.port}",
            "--journal": str(journal),
            "--out": str(self.folder / name),
            "--stop-timeout": str(patience),
        }
        arguments = [part for option in options.items() for part in option]
        with log.open("w") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "locust", "--headless", *arguments),
                cwd=ROOT,
                env=clean_environment(),
                stdout=output,
                stderr=output,
            )
        load = Load(process, journal, log)
        self._started.append(load)
        await load.until_on()
        return load

    async def look(self, replica: Replica, seconds: float, step: str = "page") -> list[Attempt]:
        """Read the page of one replica repeatedly, and return the attempts with what they showed."""
        attempts = []
        end = time.time() + seconds
        async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
            while (begun := time.time()) < end:
                answer = await client.get(f"http://127.0.0.1:{replica.port}/")
                shown = tuple(re.findall(f"Edit <bdi>{SHOWN}<", answer.text))
                now = time.time()
                attempts.append(Attempt(now, now - begun, step, None, answer.status_code, None, shown=shown))
                await asyncio.sleep(0.05)
        return attempts

    async def reconcile(self, attempts: Sequence[Attempt], *, standbys: bool = True) -> Verdict:
        """Compare the acknowledged writes with the stored goals.

        With `standbys`, all three instances must have the same goals; otherwise, a `DrillError` is raised.
        """
        if standbys:
            await self._until_same()
        names = await self.read_names()
        if standbys:
            for name in self.cluster.standbys:
                if await self.read_names(name) != names:
                    raise DrillError(f"{name} does not have the same goals as {self.cluster.primary}")
        return reconcile(attempts, names)

    async def _until_same(self) -> None:
        try:
            await self.cluster.until_whole()
            await self.cluster.until_same()
        except TimeoutError as error:
            # A diverged standby can never follow, so its data is unknown; a busy machine does not explain that.
            raise DrillError(str(error)) from error

    async def fill(self, number: int) -> None:
        """Add `number` goals that do not belong to the load."""
        insert = "INSERT INTO goals (goal_name) SELECT 'earlier ' || n FROM generate_series($1 + 1, $1 + $2) AS n"
        await self.cluster.fetch(insert, self.earlier, number)
        self.earlier += number

    async def count_missing(self, instance: str | None = None) -> int:
        """Return how many of the earlier goals are missing."""
        found = "SELECT count(*) FROM goals WHERE goal_name LIKE 'earlier %'"
        return self.earlier - int(await self.cluster.fetch(found, name=instance))

    async def read_ids(self) -> dict[str, int]:
        """Return the ids of all goals that the load has added, by their UUID."""
        connection = await self.cluster.connect()
        try:
            rows = await connection.fetch("SELECT id, goal_name FROM goals WHERE goal_name LIKE 'drill %'")
        finally:
            connection.terminate()
        return {row[1].split()[1]: row[0] for row in rows}

    async def clear(self) -> None:
        """Remove all goals: the next run has a new journal."""
        await self.cluster.execute("TRUNCATE goals")

    async def read_names(self, instance: str | None = None) -> list[str]:
        """Return the names of all goals except the earlier ones."""
        query = "SELECT goal_name FROM goals WHERE goal_name NOT LIKE 'earlier %' ORDER BY id"
        connection = await self.cluster.connect(instance)
        try:
            return [row[0] for row in await connection.fetch(query)]
        finally:
            connection.terminate()
