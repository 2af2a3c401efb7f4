"""A primary and two standbys, synchronous by a quorum of one, behind the primary's name and that of all."""

import contextlib
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import asyncpg

from goals import embedded
from goals.settings import Settings
from tools.polling import until

ALL = "all.test"
_OPTIONS = {
    "fsync": "off",
    "wal_retrieve_retry_interval": "100ms",
    "max_standby_streaming_delay": "-1",  # a test's query holds replay up for as long as it lasts
}


class Replicas:
    """Three servers: the folder of its socket plays the part of an address, and a link that of the primary's name."""

    def __init__(self) -> None:
        self._exits = contextlib.ExitStack()
        self._folder = Path(self._exits.enter_context(tempfile.TemporaryDirectory(prefix="goals-test-")))
        self._programs = embedded.find_programs()
        self.leader = "a"
        self.addresses: list[str] = []
        """What the resolver says of the name of all; without any, it does not answer."""
        self.look_ups = 0
        self.sockets: dict[str, str] = {}
        self._stopped: set[str] = set()

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            self._exits.enter_context(embedded.passage(self._programs, self._folder / "a"))
        with contextlib.ExitStack() as unfinished:
            unfinished.push(self.__exit__)
            for name in "abc":
                self._add(name)
            for name in "abc":
                self._ask_for_standbys(name)
            unfinished.pop_all()
        self.addresses = list(self.sockets.values())
        self.route_to("a")
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        for name in self.sockets.keys() - self._stopped:
            self.stop(name, "immediate")
        self._exits.close()

    def _add(self, name: str) -> None:
        data = self._data(name)
        data.parent.mkdir()
        if name == "a":
            embedded._init(self._programs, data)
        else:
            data.mkdir(mode=0o700)
            if os.geteuid() == 0:
                shutil.chown(data, embedded.ACCOUNT, pwd.getpwnam(embedded.ACCOUNT).pw_gid)
            source = ("-h", self.sockets["a"], "-U", "postgres", "-X", "stream", "-c", "fast", "--no-sync")
            embedded._call(data, self._programs / "pg_basebackup", "-D", ".", *source)
            for copied in (".s.PGSQL.5432.lock", "server.log"):
                (data / copied).unlink()
            (data / "standby.signal").touch()
            with (data / "postgresql.auto.conf").open("a") as file:
                file.write(f"primary_conninfo = '{self._source('a')}'\n")
        self.start(name)

    def start(self, name: str) -> None:
        self.sockets[name] = str(embedded._start(self._programs, self._data(name), _OPTIONS))
        self._stopped.discard(name)

    def _ask_for_standbys(self, name: str) -> None:
        """Let each of its commits wait for a standby, once there are some."""
        statements = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'; SELECT pg_reload_conf();"
        psql = ("-Xq", "-h", self.sockets[name], "-U", "postgres")
        embedded._call(self._data(name), self._programs / "psql", *psql, given=statements)

    def stop(self, name: str, mode: str) -> None:
        """Stop it, by `immediate` as if it had crashed."""
        embedded._call(self._data(name), self._programs / "pg_ctl", "-D", ".", "-m", mode, "-w", "stop")
        self._stopped.add(name)

    async def restore(self) -> None:
        """Bring back what a test has changed, as long as it has promoted none."""
        self.thaw()
        for name in sorted(self._stopped):
            self.start(name)
        for name in "bc":
            await self.ask(name, "ALTER SYSTEM RESET recovery_min_apply_delay")
            await self.ask(name, "SELECT pg_wal_replay_resume()")
            await self.follow(name, "a")
        self.addresses = list(self.sockets.values())
        self.route_to("a")
        await self.ask("a", "TRUNCATE goals")
        for name in "bc":
            await self.until_same(name)

    def settings(self, settings: Settings) -> Settings:
        names = {
            "db_host": str(self._link),
            "db_standby_host": ALL,
            "db_standby_replies": 2,
            "goals_write_wait_seconds": 15.0,
        }
        return settings.model_copy(update=names)

    def route_to(self, name: str) -> None:
        """Let the primary's name lead to this server."""
        new = self._link.with_suffix(".new")
        new.symlink_to(self.sockets[name])
        new.rename(self._link)

    @property
    def _link(self) -> Path:
        return self._folder / "primary"

    @contextlib.asynccontextmanager
    async def session(self, name: str) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(host=self.sockets[name], user="postgres", database="goals_database")
        try:
            yield connection
        finally:
            await connection.close()

    async def ask(self, name: str, query: str) -> Any:
        async with self.session(name) as connection:
            return await connection.fetchval(query)

    async def promote(self, name: str) -> None:
        """Promote it, and let the third one follow it, if it is there; the primary's name leads to it at once."""
        await self.ask(name, "SELECT pg_promote()")
        former, self.leader = self.leader, name
        for other in set("abc") - {former, name}:
            await self.follow(other, name)
        self.route_to(name)

    async def follow(self, name: str, leader: str) -> None:
        await self.ask(name, f"ALTER SYSTEM SET primary_conninfo = '{self._source(leader) if leader else ''}'")
        await self.ask(name, "SELECT pg_reload_conf()")

    def _source(self, leader: str) -> str:
        return f"host={self.sockets[leader]} user=postgres"

    async def until_same(self, name: str) -> None:
        """Wait until it has replayed what the leader has written so far."""
        end = await self.ask(self.leader, "SELECT CAST(pg_current_wal_lsn() AS text)")
        await until(lambda: self.ask(name, f"SELECT pg_last_wal_replay_lsn() >= '{end}'"))

    async def freeze(self, name: str) -> None:
        """Stop all its processes: its connections stay open and say nothing."""
        async with self.session(name) as connection:
            rows = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        self._frozen = [self._main(name), *(row["pid"] for row in rows)]
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)
        self._frozen = []

    _frozen: list[int] = []  # noqa: RUF012  replaced, never changed

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _main(self, name: str) -> int:
        return int((self._data(name) / "postmaster.pid").read_text().partition("\n")[0])

    def _data(self, name: str) -> Path:
        return self._folder / name / "postgres"
