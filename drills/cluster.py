"""Three PostgreSQL instances with quorum synchronous replication, and the faults that can be injected."""

import asyncio
import contextlib
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import psutil

from goals import embedded
from tools.polling import until
from tools.ports import reserved

NAMES = ("pg1", "pg2", "pg3")
QUORUM = "ANY 1 (pg1,pg2,pg3)"
"""Each commit waits for any one standby, as CloudNativePG configures it for `method: any, number: 1`."""

_CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 100
shared_buffers = 32MB
jit = off
wal_level = logical  # as CloudNativePG sets it
# Enough WAL for pg_rewind and for standbys that were down; replication slots would have to follow the primary.
wal_keep_size = 512MB
wal_log_hints = on
wal_receiver_status_interval = 1s
# As the manifests set them.
wal_retrieve_retry_interval = 500ms
max_standby_streaming_delay = 300ms
wal_receiver_timeout = 5s
wal_sender_timeout = 5s
log_line_prefix = '%m [%p] '
include 'node.conf'
"""
# The local entry is for pg_upgrade, which opens its own socket.
_ACCESS = "local all all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"


class DrillError(Exception):
    """A drill could not be run as planned, so it has no result."""


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def _until_dead(killed: Sequence[psutil.Process], what: str) -> None:
    async def are_dead() -> bool:
        return not any(_lives(process) for process in killed)

    await until(are_dead, f"{what} dies")


def find_programs(major: str) -> Path:
    """Return the folder of this major version's programs; the wheel's folder of the older version has no number."""
    newest = embedded.find_programs()
    programs = newest if major == embedded.VERSION else newest.parent.with_name("pginstall") / "bin"
    version = subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    if f" {major}." not in version:
        raise DrillError(f"the wheel contains {version.strip()}, not PostgreSQL {major}")
    return programs


class Cluster:
    """A primary and two standbys on 127.0.0.1, which can change roles. An asynchronous context manager.

    As with CloudNativePG, a promotion first waits until no standby receives WAL any longer, then takes the one that has
    received the most: with a quorum of one, only that one may have the last acknowledged commit. With an `archive`,
    also as in CloudNativePG, a promoted instance knows which timelines are taken.

    With `disk`, the first primary has its data on a disk of that many megabytes, and its WAL on another, as with
    CloudNativePG's `walStorage`. If no disk can be mounted, `no_disk` gives the reason, and the data is in the folder.
    """

    def __init__(self, *, disk: int | None = None, major: str = embedded.VERSION, archive: bool = False) -> None:
        # Not a test framework's folder: PostgreSQL refuses to run as root, so another account must have access.
        self.folder = Path(tempfile.mkdtemp(prefix="goals-drill-"))
        self._archive = self.folder / "archive" if archive else None
        self._reserved = contextlib.ExitStack()
        self.ports: dict[str, int] = {}
        self.choose_ports(NAMES)
        self.primary = NAMES[0]
        self.no_disk = "no disk was requested"
        self._disk = disk
        self._mounted = False
        embedded.ignore_client_variables()
        self._major = major
        self._programs = find_programs(major)
        self._passage = contextlib.ExitStack()
        self._synchronous = QUORUM
        self._restore = ""
        self._leader: dict[str, str | None] = dict.fromkeys(NAMES)

    def choose_ports(self, names: Sequence[str]) -> None:
        """Reserve a port for each of these instances, which stays reserved while they are down."""
        self.ports |= zip(names, self._reserved.enter_context(reserved(len(names))), strict=True)

    @property
    def standbys(self) -> list[str]:
        return [name for name in NAMES if name != self.primary]

    @property
    def port(self) -> int:
        """The primary's port."""
        return self.ports[self.primary]

    async def __aenter__(self) -> Self:
        if os.geteuid() == 0:
            self._passage.enter_context(embedded.passage(self._programs, self.folder))
            self._give(self.folder)
        if self._archive is not None:
            self._archive.mkdir()
            self._give(self._archive)
        try:
            await self._build()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        killed = [process for name in NAMES for process in self._signal(name, signal.SIGKILL)]
        try:
            await _until_dead(killed, "the cluster")
        finally:
            if self._mounted:
                # Lazy: a process that does not die still has a file open.
                await _call("umount", "--lazy", self._data(NAMES[0]))
            shutil.rmtree(self.folder, ignore_errors=True)
            self._reserved.close()
            self._passage.close()

    async def _build(self) -> None:
        first = self._data(self.primary)
        if self._disk is not None:
            await self._mount(first)
        log = ("-X", self.folder / f"{self.primary}-wal") if self._mounted else ()
        await self._init(first, *log)
        self._synchronous = ""  # without standbys, nothing could be written
        self._configure(self.primary, leader=None)
        await self.start(self.primary)
        await self.execute("CREATE ROLE goals_user LOGIN", database="postgres")
        await self.execute("CREATE DATABASE goals_database OWNER goals_user", database="postgres")
        self._synchronous = QUORUM
        await asyncio.gather(*(self._clone(name) for name in self.standbys))
        self._configure(self.primary, leader=None)
        self._signal_main(self.primary, signal.SIGHUP)
        await self.until_whole()

    async def _init(self, data: Path, *options: str | Path) -> None:
        """Create the data of an instance; it still needs the configuration from `_configure`."""
        locale = ["--no-locale", "--encoding=UTF8"]
        if self._major == embedded.VERSION:  # the older version has no such provider
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        given = ("-U", "postgres", "--auth=trust", "--no-sync", "--data-checksums", *options, *locale)
        await self._run("initdb", "-D", data, *given)
        with (data / "postgresql.conf").open("a", encoding="ascii") as file:
            file.write(_CONFIGURATION)
            if self._archive is not None:
                # A former primary may archive a segment that is already there: keep the existing one.
                store = f'cp "%p" "{self._archive}/%f.part" && mv "{self._archive}/%f.part" "{self._archive}/%f"'
                file.write(f"archive_mode = on\narchive_command = 'test -e \"{self._archive}/%f\" || ({store})'\n")
        (data / "pg_hba.conf").write_text(_ACCESS, encoding="ascii")

    async def _mount(self, data: Path) -> None:
        """Mount a separate disk for the first primary's data, if possible."""
        if os.geteuid() != 0:
            self.no_disk = "only root may mount a small disk"
            return
        os.mkdir(data, mode=0o700)  # noqa: PTH102  ruff considers the method slow in a coroutine
        try:
            await _call("mount", "-t", "tmpfs", "-o", f"size={self._disk}m,mode=0700", "tmpfs", data)
        except (DrillError, OSError) as error:
            self.no_disk = str(error)
        else:
            self.no_disk = ""
            self._mounted = True
        self._give(data)

    async def _clone(self, name: str) -> None:
        data = self._data(name)
        source = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres")
        await self._run("pg_basebackup", *source, "-D", data, "-X", "stream", "-c", "fast", "--no-sync")
        await self.start_standby(name)

    # Queries.

    async def fetch(
        self, query: str, *arguments: object, name: str | None = None, database: str = "goals_database"
    ) -> Any:
        """Return one value from the primary, or from the instance of this name, as the superuser."""
        connection = await self.connect(name, database)
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            connection.terminate()

    async def execute(self, statement: str, *, name: str | None = None, database: str = "goals_database") -> None:
        connection = await self.connect(name, database)
        try:
            await connection.execute(statement)
        finally:
            connection.terminate()

    async def connect(self, name: str | None = None, database: str = "goals_database") -> Any:
        port = self.ports[name or self.primary]
        return await asyncpg.connect(
            host="127.0.0.1", port=port, user="postgres", database=database, ssl=False, timeout=5, command_timeout=30
        )

    async def until_streaming(self, number: int) -> None:
        async def are_streaming() -> bool:
            query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            return bool(await self.fetch(query, database="postgres") >= number)

        await until(are_streaming, f"{number} standbys follow {self.primary}")

    async def until_whole(self) -> None:
        await self.until_streaming(len(self.standbys))

    async def until_same(self) -> None:
        """Wait until each standby has replayed all that the primary has written so far."""
        end = await self.fetch("SELECT pg_current_wal_lsn()::text", database="postgres")
        for name in self.standbys:

            async def has_replayed(name: str = name) -> bool:
                query = "SELECT pg_last_wal_replay_lsn() >= CAST(CAST($1 AS text) AS pg_lsn)"
                return bool(await self.fetch(query, end, name=name, database="postgres"))

            await until(has_replayed, f"{name} replays what {self.primary} has written")

    def read_log(self) -> str:
        """Return the primary's log."""
        return (self.folder / f"{self.primary}.log").read_text(encoding="utf-8", errors="replace")

    # Operations.

    async def ask_for_passwords(self) -> None:
        """Make the primary require a password from the service for each new connection, as with CloudNativePG."""
        rules = self._data(self.primary) / "pg_hba.conf"
        rules.write_text(f"host all goals_user 127.0.0.1/32 scram-sha-256\n{_ACCESS}", encoding="ascii")
        await self.fetch("SELECT pg_reload_conf()", database="postgres")

    async def start(self, name: str) -> None:
        data = self._data(name)
        await self._run("pg_ctl", "-D", data, "-l", self.folder / f"{name}.log", "-w", "-t", "60", "start")

    async def start_slowly(self, name: str) -> None:
        """Start a crashed instance, which replays WAL until `finish_start` and rejects clients ("starting up")."""
        # PostgreSQL requests the first WAL segment with this command, and waits until the command ends.
        go = self._data(name).with_suffix(".go")
        go.unlink(missing_ok=True)
        self._restore = f"until [ -e {go} ]; do sleep 0.02; done; false"
        self._configure(name, leader=None)
        (self._data(name) / "recovery.signal").touch()
        self._give(self._data(name) / "recovery.signal")
        await self._run("pg_ctl", "-D", self._data(name), "-l", self.folder / f"{name}.log", "-W", "start")

    async def finish_start(self, name: str) -> None:
        """Let the slow start finish; return once the instance accepts connections."""
        self._data(name).with_suffix(".go").touch()

        async def accepts() -> bool:
            with contextlib.suppress(asyncpg.CannotConnectNowError):
                return not await self.fetch("SELECT pg_is_in_recovery()", name=name, database="postgres")
            return False

        await until(accepts, f"{name} starts up")
        self._restore = ""
        self._configure(name, leader=None)

    async def start_standby(self, name: str, *, follow: bool = True, archive: bool = True) -> None:
        """Start an instance as a standby, which receives WAL only if it should `follow` the primary.

        Without the `archive`, it does not know the existing timelines when it starts.
        """
        self._configure(name, leader=self.primary if follow else None, archive=archive)
        signal_file = self._data(name) / "standby.signal"
        signal_file.touch()
        self._give(signal_file)
        await self.start(name)

    async def stop(self, name: str, *, grace: float = 0) -> None:
        """Shut an instance down cleanly (mode fast): it sends all its WAL to its standbys first.

        For `grace` seconds before that, it refuses new connections (mode smart).
        """
        if grace:
            self._signal_main(name, signal.SIGTERM)
            await asyncio.sleep(grace)
        await self._run("pg_ctl", "-D", self._data(name), "-m", "fast", "-w", "stop")

    async def replicate(self, synchronous: str) -> None:
        """Set `synchronous_standby_names` on all three: otherwise a standby would be asynchronous once promoted."""
        self._synchronous = synchronous
        for name in NAMES:
            self._configure(name, self._leader[name])
            self._signal_main(name, signal.SIGHUP)

        async def is_heeded() -> bool:
            return bool(await self.fetch("SHOW synchronous_standby_names", database="postgres") == synchronous)

        await until(is_heeded, "the primary applies synchronous_standby_names")

    async def detach(self, names: Iterable[str]) -> None:
        """Make standbys stop receiving WAL, and wait until they have."""
        for name in names:
            self._configure(name, leader=None)
            self._signal_main(name, signal.SIGHUP)

            async def receives_nothing(name: str = name) -> bool:
                query = "SELECT count(*) = 0 AND current_setting('primary_conninfo') = '' FROM pg_stat_wal_receiver"
                return bool(await self.fetch(query, name=name, database="postgres"))

            await until(receives_nothing, f"{name} stops receiving")

    async def promote(self, candidates: Iterable[str] | None = None, *, follow: bool = True) -> str:
        """Promote the candidate that has received the most WAL (default: of all standbys).

        The other candidates follow it immediately, or only after a call of `follow`.
        """
        standbys = list(candidates or self.standbys)
        await self.detach(standbys)
        best = await self.find_best(standbys)
        await self.fetch("SELECT pg_promote()", name=best, database="postgres")
        self.primary = best
        if follow:
            self.follow(name for name in standbys if name != best)
        return best

    async def find_best(self, standbys: Iterable[str]) -> str:
        """Return the standby that has received the most WAL; among equals, a random one, so that each has a turn."""
        query = "SELECT pg_last_wal_receive_lsn() - '0/0'"
        received = {name: await self.fetch(query, name=name, database="postgres") or 0 for name in standbys}
        return max(received, key=lambda name: (received[name], random.random()))  # noqa: S311  no secret

    def follow(self, names: Iterable[str]) -> None:
        """Let standbys receive from the primary."""
        for name in names:
            self._configure(name, leader=self.primary)
            self._signal_main(name, signal.SIGHUP)

    async def rebuild(self, name: str) -> None:
        """Replace an instance, whatever its state, with a new standby."""
        await self.kill(name)
        shutil.rmtree(self._data(name))
        await self._clone(name)

    async def rejoin(self, name: str, *, rewind: bool = True) -> None:
        """Bring a dead instance back as a standby; `rewind` unless it was shut down cleanly."""
        data = self._data(name)
        if rewind:
            source = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
            # pg_rewind first recovers an instance that was killed, which must not follow a leader then.
            self._configure(name, leader=None)
            (data / "postmaster.pid").unlink(missing_ok=True)
            await self._run("pg_rewind", "-D", data, "--source-server", source, "--no-sync")
        await self.start_standby(name)

    # Faults.

    async def kill(self, name: str) -> None:
        """End the instance and all its children with SIGKILL, as when a pod is lost."""
        await _until_dead(self._signal(name, signal.SIGKILL), name)
        (self._data(name) / "postmaster.pid").unlink(missing_ok=True)

    def freeze(self, name: str) -> None:
        """Stop the instance and all its children with SIGSTOP: its connections stay open and silent."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self._signal(name, signal.SIGCONT)

    def is_up(self, name: str) -> bool:
        """Whether the instance runs and is not frozen."""
        main = self._find_main(name)
        return main is not None and main.status() != psutil.STATUS_STOPPED

    def hold_replay(self, name: str) -> None:
        """Stop a standby's replay: it still receives and confirms commits."""
        self._find_replaying(name).send_signal(signal.SIGSTOP)

    def resume_replay(self, name: str) -> None:
        self._find_replaying(name).send_signal(signal.SIGCONT)

    def _find_replaying(self, name: str) -> psutil.Process:
        main = self._find_main(name)
        for process in main.children() if main is not None else []:
            if f"{name}: startup" in " ".join(process.cmdline()):
                return process
        raise DrillError(f"{name} has no process that replays")

    @property
    def frozen(self) -> list[str]:
        mains = {name: self._find_main(name) for name in NAMES}
        return [name for name, main in mains.items() if main is not None and main.status() == psutil.STATUS_STOPPED]

    async def lengthen_log(self, name: str) -> None:
        """Make a former primary's WAL longer than its successor's, without any client's write."""
        for _ in range(3):
            await self.fetch("SELECT pg_logical_emit_message(false, 'drill', '')", name=name, database="postgres")
            await self.fetch("SELECT pg_switch_wal()::text", name=name, database="postgres")

    def fill_disk(self) -> None:
        """Fill the disk of the first primary's data."""
        with self._filler.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 16))
        with self._filler.open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 12))

    def free_disk(self) -> None:
        self._filler.unlink()

    @property
    def _filler(self) -> Path:
        return self._data(NAMES[0]) / "filler"

    def _signal(self, name: str, number: signal.Signals) -> list[psutil.Process]:
        main = self._find_main(name)
        if main is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            # The main process first: it would start new children.
            processes = [main, *main.children(recursive=True)]
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            return processes
        return []

    def _signal_main(self, name: str, number: signal.Signals) -> None:
        main = self._find_main(name)
        if main is not None:
            main.send_signal(number)

    def _find_main(self, name: str) -> psutil.Process | None:
        try:
            main = psutil.Process(int((self._data(name) / "postmaster.pid").read_text().partition("\n")[0]))
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        return main if main.name().startswith("postgres") else None

    # Files and programs.

    def _data(self, name: str) -> Path:
        return self.folder / name

    def _configure(self, name: str, leader: str | None, *, archive: bool = True) -> None:
        self._leader[name] = leader
        source = f"host=127.0.0.1 port={self.ports[leader]} user=postgres application_name={name}" if leader else ""
        restore = self._restore if name == self.primary else ""
        if self._archive is not None and archive:
            restore = restore or f'test -e "{self._archive}/%f" && cp "{self._archive}/%f" "%p"'
        settings = {
            "port": str(self.ports[name]),
            "cluster_name": name,
            "synchronous_standby_names": self._synchronous,
            "primary_conninfo": source,
            "restore_command": restore,
        }
        text = "".join(f"{setting} = '{value}'\n" for setting, value in settings.items())
        unfinished = self._data(name) / "node.unfinished"
        unfinished.write_text(text, encoding="ascii")
        self._give(unfinished)
        unfinished.rename(self._data(name) / "node.conf")

    def _give(self, path: Path) -> None:
        if os.geteuid() == 0:
            shutil.chown(path, embedded.ACCOUNT, pwd.getpwnam(embedded.ACCOUNT).pw_gid)

    async def _run(self, program: str, *arguments: str | Path, cwd: str | Path = "/") -> None:
        """Run one of PostgreSQL's programs, as another account if this is root: they refuse to run as root."""
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam(embedded.ACCOUNT)
            account = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        await _call(self._programs / program, *arguments, cwd=cwd, **account)


async def read_to_the_end(process: asyncio.subprocess.Process) -> bytes:
    """Return what the program wrote to standard error once it has ended, even if this is cancelled.

    The drill's cleanup thus also finds processes that the program started, such as a server that is starting up.
    """
    end = asyncio.ensure_future(process.communicate())
    try:
        _, errors = await asyncio.shield(end)
    except asyncio.CancelledError:
        await end
        raise
    return errors


async def _call(program: str | Path, *arguments: str | Path, cwd: str | Path = "/", **account: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **account,
    )
    errors = await read_to_the_end(process)
    if process.returncode:
        command = " ".join([Path(program).name, *map(str, arguments)])
        raise DrillError(f"{command}: {errors.decode(errors='replace').strip()}")
