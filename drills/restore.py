"""Everything is deleted by mistake; a second cluster restores an earlier moment from the backup and the archive."""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import asyncpg

from drills.cluster import Cluster, DrillError
from drills.drill import Case, Drill, observe
from drills.journal import Attempt, cut, reconcile
from drills.scenarios import writers
from drills.stage import Stage
from drills.timeline import Mark
from tools.polling import until

RESTORED = "restored"
"""The single instance of the second cluster; a real cluster would then clone its standbys, as usual."""
_LIMIT = 60.0
"""Seconds until the second cluster accepts writes; on a real site, this depends on the data and the object store."""
_GROWN, _SHORT_GROWN = 1000, 50
"""Megabytes by which the data grows; the restore times of larger sizes are calculated from this."""
_SIZES = (10, 100, 1000)
"""Gigabytes."""
_SEGMENT = 16
"""Megabytes of a WAL segment."""
_GROW = """
INSERT INTO goals (goal_name)
SELECT 'earlier ' || n || ' ' || repeat(md5(n::text), 30) FROM generate_series($1::bigint + 1, $1 + $2) AS n
"""
"""Rows of about a kilobyte."""
_FETCHED = re.compile(r'restored log file "[0-9A-F]{24}" from archive')
_LEFT_OUT = re.compile(r"recovery stopping before (?:commit|abort) of transaction \d+, time (.+)")
ENDED_EARLY = "recovery ended before configured recovery target was reached"


class Marker(NamedTuple):
    """A moment to restore to: no write acknowledged before `asked` may be missing, and no later one present.

    `target` is PostgreSQL's setting for it; `end` is its position in the WAL, if known.
    """

    name: str
    target: str
    asked: float
    answered: float
    end: str | None


class Store:
    """A folder instead of an object store: one base backup, and all WAL segments since."""

    def __init__(self, cluster: Cluster, name: str = "store") -> None:
        self._cluster = cluster
        self.base = cluster.folder / f"{name}-base"
        self.wal = cluster.folder / f"{name}-wal"

    def open(self) -> dict[str, str]:
        """Create the folder, and return the settings of a primary that archives its WAL here."""
        self.wal.mkdir()
        self._cluster._give(self.wal)
        # Never overwrites a file, and never leaves a partial file under the final name.
        file = f"{self.wal}/%f"
        command = f'test ! -e "{file}" && cp "%p" "{file}.part" && mv "{file}.part" "{file}"'
        return {"archive_mode": "on", "archive_command": command}

    async def archive(self) -> None:
        """Make the primary archive its WAL here, which needs a restart."""
        cluster = self._cluster
        for setting, value in self.open().items():
            await cluster.execute(f"ALTER SYSTEM SET {setting} = '{value}'", database="postgres")
        await cluster.stop(cluster.primary)
        await cluster.start(cluster.primary)
        await cluster.until_whole()

    async def back_up(self) -> None:
        """Take the base backup, with the WAL that it needs to be consistent."""
        source = ("-h", "127.0.0.1", "-p", str(self._cluster.port), "-U", "postgres")
        options = ("-X", "stream", "-c", "fast", "--no-sync")
        await self._cluster._run("pg_basebackup", *source, "-D", self.base, *options)

    async def until_archived(self) -> None:
        """Wait until all WAL written so far is in the archive."""
        cluster = self._cluster
        last: str = await cluster.fetch("SELECT pg_walfile_name(pg_switch_wal())", database="postgres")

        async def is_there() -> bool:
            return (self.wal / last).exists()

        await until(is_there, f"{last} is archived")

    async def count_failures(self) -> int:
        return int(await self._cluster.fetch("SELECT failed_count FROM pg_stat_archiver", database="postgres"))

    async def restore(self, *settings: str, archived: Path | None = None) -> None:
        """Start a second cluster from the base backup; it replays the WAL in `archived`, if given."""
        cluster = self._cluster
        await cluster.kill(RESTORED)
        data = cluster._data(RESTORED)
        shutil.rmtree(data, ignore_errors=True)
        await asyncio.to_thread(shutil.copytree, self.base, data)
        cluster.choose_ports([RESTORED])
        cluster._configure(RESTORED, leader=None)
        # Its own writes wait for no standby, and must not go to the archive that it came from.
        lines = ["synchronous_standby_names = ''", "archive_mode = off", *settings]
        if archived is not None:
            lines.append(f'restore_command = \'cp "{archived}/%f" "%p"\'')
            (data / "recovery.signal").touch()
        with (data / "postgresql.auto.conf").open("a", encoding="ascii") as file:
            file.write("".join(f"{line}\n" for line in lines))
        for path in (data, *data.rglob("*")):
            cluster._give(path)
        (cluster.folder / f"{RESTORED}.log").unlink(missing_ok=True)
        await cluster.start(RESTORED)

    async def restore_to(self, marker: Marker) -> None:
        """Replay the archive up to the marker, and stop there without accepting writes yet."""
        await self.restore(marker.target, "recovery_target_action = 'pause'", archived=self.wal)

        async def has_stopped() -> bool:
            query = "SELECT pg_get_wal_replay_pause_state() = 'paused'"
            return bool(await self._cluster.fetch(query, name=RESTORED, database="postgres"))

        await until(has_stopped, f"the second cluster reaches {marker.name}", 600)

    async def restore_beyond(self, marker: Marker, archived: Path) -> str:
        """Restore to a marker that the WAL in `archived` does not reach; return the log once recovery has ended."""
        cluster = self._cluster
        with contextlib.suppress(DrillError):  # it may end before pg_ctl finds it running
            await self.restore(marker.target, "recovery_target_action = 'promote'", archived=archived)

        async def has_ended() -> bool:
            if cluster._find_main(RESTORED) is None:
                return True
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # it may end meanwhile
                return not await cluster.fetch("SELECT pg_is_in_recovery()", name=RESTORED)
            return False

        await until(has_ended, "the second cluster reaches the end of its archive")
        return _read_log(cluster)

    async def accept_writes(self) -> None:
        await self._cluster.execute("SELECT pg_wal_replay_resume()", name=RESTORED)

        async def accepts_writes() -> bool:
            return not await self._cluster.fetch("SELECT pg_is_in_recovery()", name=RESTORED)

        await until(accepts_writes, "the second cluster accepts writes")


async def run(drill: Drill) -> None:
    async with Stage() as stage:
        store = Store(stage.cluster)
        try:
            await store.archive()
            await stage.fill(10_000 if drill.short else 500_000)
            await stage.serve(2)
            attempts, points, times = await _write(drill, stage, store)
            await stage.cluster.execute("DELETE FROM goals")
            await store.until_archived()
            drill.say("every goal is deleted by mistake")
            await _restore(drill, stage, store, attempts, points, "to a restore point")
            await _restore(drill, stage, store, attempts, times, "to a point in time")
            await _move_over(drill, stage, cut(attempts, times[-1].asked, times[-1].answered))
            await _leave_gap(drill, stage, store, points[-1], times[-1])
            await _control(drill, stage, store, attempts, times[-1])
            await _grow(drill, stage, store)
        finally:
            await stage.cluster.kill(RESTORED)


async def _write(drill: Drill, stage: Stage, store: Store) -> tuple[list[Attempt], list[Marker], list[Marker]]:
    """Run the load, take a base backup and set markers; return the clients' attempts and the markers of both kinds."""
    case = drill.begin(
        "backup", "a base backup is taken under load, WAL is archived continuously, and restore targets are marked"
    )
    load = await stage.load(writers(short=drill.short))
    case.began = at = time.time()
    await store.back_up()
    case.marks.append(Mark(at, "base backup", time.time()))
    points, times = [], []
    for number in range(1 if drill.short else 3):
        await asyncio.sleep(drill.random.uniform(0.3, 0.8 if drill.short else 6))
        points.append(await _mark_point(stage, f"point {number + 1}"))
        # In a later segment, as after minutes on a quiet site.
        await stage.cluster.fetch("SELECT pg_switch_wal()::text", database="postgres")
        await asyncio.sleep(drill.random.uniform(0.3, 0.8 if drill.short else 6))
        times.append(mark_time(f"moment {number + 1}"))
    await asyncio.sleep(1)
    drill.end(case)
    attempts = await load.stop()
    drill.account(await stage.reconcile(attempts), attempts)
    case.marks += sorted(Mark(marker.asked, marker.name, marker.answered) for marker in (*points, *times))
    case.figures = observe(attempts, case.began, case.ended)
    case.check("errors shown, up to the last response", sum(a.shows_error for a in attempts), "=", 0)
    case.check("segments that were not archived at the first attempt", await store.count_failures(), "=", 0)
    drill.draw(case, attempts)
    return attempts, points, times


async def _mark_point(stage: Stage, name: str) -> Marker:
    asked = time.time()
    end = await stage.cluster.fetch("SELECT pg_create_restore_point($1)::text", name, database="postgres")
    return Marker(name, f"recovery_target_name = '{name}'", asked, time.time(), end)


def mark_time(name: str) -> Marker:
    now = time.time()
    return Marker(name, f"recovery_target_time = '{datetime.fromtimestamp(now, UTC).isoformat()}'", now, now, None)


async def _restore(
    drill: Drill, stage: Stage, store: Store, attempts: Sequence[Attempt], markers: Sequence[Marker], name: str
) -> None:
    """Restore to each of the markers; the last restored cluster keeps running and accepts writes."""
    case = drill.begin(name, "a second cluster is restored from backup and archive, and compared with the journal")
    longest, fetched, megabytes = 0.0, 0, 0.0
    for marker in markers:
        at = time.time()
        await store.restore_to(marker)
        await _check_end(case, stage, marker)
        await store.accept_writes()
        seconds = time.time() - at
        size = float(await stage.cluster.fetch("SELECT pg_database_size('goals_database') / 1e6", name=RESTORED))
        longest, fetched, megabytes = max((longest, fetched, megabytes), (seconds, _count_fetched(stage.cluster), size))
        await judge(case, stage, attempts, marker)
        drill.say(f"{marker.name}: restored in {seconds:.1f} s")
    drill.end(case)
    case.check("time until the new cluster accepts writes, s", longest, "<", _LIMIT, kind="timing")
    case.explanation += (
        f"; each restore took at most {longest:.1f} s for {megabytes:.0f} MB of data and {fetched} WAL segments"
    )


def _read_log(cluster: Cluster) -> str:
    """Return the second cluster's log since its start."""
    return (cluster.folder / f"{RESTORED}.log").read_text(encoding="utf-8", errors="replace")


def _count_fetched(cluster: Cluster) -> int:
    """Return how many archived segments it has fetched; it may read one ahead, and request one twice."""
    return len(set(_FETCHED.findall(_read_log(cluster))))


async def _check_end(case: Case, stage: Stage, marker: Marker) -> None:
    """Compare the position at which the replay has stopped with the marker."""
    if marker.end is not None:
        query = "SELECT pg_last_wal_replay_lsn() - CAST(CAST($1 AS text) AS pg_lsn)"
        beyond = await stage.cluster.fetch(query, marker.end, name=RESTORED, database="postgres")
        case.check(f"{marker.name}: bytes of WAL replayed beyond it, or short of it", abs(float(beyond)), "=", 0)
    else:
        query = "SELECT extract(epoch FROM pg_last_xact_replay_timestamp())"
        last = float(await stage.cluster.fetch(query, name=RESTORED, database="postgres"))
        case.check(f"{marker.name}: replayed changes that are newer", last > marker.asked, "=", 0)
        left_out = _LEFT_OUT.search(_read_log(stage.cluster))
        if left_out is None:
            raise DrillError(f"PostgreSQL does not log at which change it stopped, for {marker.name}")
        first = datetime.fromisoformat(left_out[1]).timestamp()
        case.check(f"{marker.name}: omitted changes that are older", first <= marker.asked, "=", 0)


async def judge(case: Case, stage: Stage, attempts: Sequence[Attempt], marker: Marker) -> None:
    names = await stage.read_names(RESTORED)
    known = cut(attempts, marker.asked, marker.answered)
    verdict = reconcile(known, names)
    later = [a for a in attempts if a.is_write and a.is_done and a.begun >= marker.answered]
    case.check(f"{marker.name}: writes acknowledged before it", verdict.acknowledged, ">", 0)
    case.check(f"{marker.name}: of these, missing", verdict.lost + await stage.count_missing(RESTORED), "=", 0)
    case.check(f"{marker.name}: duplicated", verdict.duplicated, "=", 0)
    case.check(f"{marker.name}: writes acknowledged after it", len(later), ">", 0)
    case.check(f"{marker.name}: of these, present", verdict.phantom, "=", 0)


async def _move_over(drill: Drill, stage: Stage, known: Sequence[Attempt]) -> None:
    """Route the service to the second cluster, where users continue."""
    case = drill.begin("switched", "the service switches to the restored cluster, and clients write to it")
    stage.database.route_to([stage.cluster.ports[RESTORED]])
    stage.database.sever()
    load = await stage.load(writers(short=drill.short))
    case.began = time.time()
    await asyncio.sleep(1 if drill.short else 5)
    drill.end(case)
    attempts = await load.stop()
    verdict = reconcile([*known, *attempts], await stage.read_names(RESTORED))
    before = reconcile(known, []).acknowledged
    drill.account(replace(verdict, acknowledged=verdict.acknowledged - before), attempts)
    case.figures = observe(attempts, case.began, case.ended)
    case.check("errors shown, up to the last response", sum(a.shows_error for a in attempts), "=", 0)
    case.check("writes acknowledged", case.figures.acknowledged, ">", 0)
    drill.draw(case, attempts)


async def _leave_gap(drill: Drill, stage: Stage, store: Store, point: Marker, marker: Marker) -> None:
    """Remove the segment that contains `point`, which is before `marker`, and restore to `marker`."""
    case = drill.begin("gap", "a WAL segment is missing from the archive before the chosen time; the restore must fail")
    cluster = stage.cluster
    broken = cluster.folder / "wal-with-a-gap"
    await asyncio.to_thread(shutil.copytree, store.wal, broken)
    for path in (broken, *broken.iterdir()):
        cluster._give(path)
    query = "SELECT pg_walfile_name(CAST(CAST($1 AS text) AS pg_lsn))"
    missing = broken / await cluster.fetch(query, point.end, database="postgres")
    missing.unlink()
    log = await store.restore_beyond(marker, broken)
    drill.end(case)
    case.check("clusters that accepted writes anyway", cluster._find_main(RESTORED) is not None, "=", 0)
    case.check("segments fetched before the gap", _count_fetched(cluster), ">", 0)
    case.check("failed requests for the missing segment", log.count(str(missing)), ">", 0)
    case.check("log lines that give the reason", log.count(ENDED_EARLY), ">", 0)


async def _control(drill: Drill, stage: Stage, store: Store, attempts: Sequence[Attempt], marker: Marker) -> None:
    await store.restore()
    verdict = reconcile(cut(attempts, marker.asked, marker.answered), await stage.read_names(RESTORED))
    explanation = "the base backup is restored without the archived WAL"
    drill.control("no archive", explanation, "acknowledged writes missing", verdict.lost)


async def _grow(drill: Drill, stage: Stage, store: Store) -> None:
    """Measure how long a restore of more data takes: copying it, and replaying the WAL since the backup."""
    cluster, megabytes = stage.cluster, _SHORT_GROWN if drill.short else _GROWN
    explanation = f"{megabytes:,} MB of new data, restored from a backup taken before it, and from one that has it"
    explanation += " (the full form: 1 GB)" if drill.short else ""
    needed = 10 * megabytes * 1_000_000  # three instances, their WAL, the archive, the backup, and the restored cluster
    if shutil.disk_usage(cluster.folder).free < needed:
        drill.leave_out("growth", explanation, f"it needs {needed / 1e9:g} GB of free space in {cluster.folder.parent}")
        return
    case = drill.begin("growth", explanation)
    rows = 1000 * megabytes
    for begin in range(0, rows, 50_000):
        await cluster.fetch(_GROW, begin, min(50_000, rows - begin))
    stage.earlier = rows
    seconds, _ = await _time_restore(case, stage, store, "replayed")
    replayed = _SEGMENT * _count_fetched(cluster)
    case.explanation += f": {replayed:,} MB of WAL replayed in {seconds:.1f} s"
    await asyncio.to_thread(shutil.rmtree, store.base)
    await store.back_up()
    seconds, copied = await _time_restore(case, stage, store, "copied")
    drill.end(case)
    case.check("megabytes restored", copied, ">=", megabytes)
    case.explanation += f"; {copied:,.0f} MB copied and started in {seconds:.1f} s"
    if drill.short:
        case.explanation += ", which is too little to extrapolate from"
    else:
        rest = (f"{size:,} GB in {_write_time(seconds * 1000 * size / copied)}" for size in _SIZES)
        case.explanation += f", so at this rate {', '.join(rest)}"


async def _time_restore(case: Case, stage: Stage, store: Store, name: str) -> tuple[float, float]:
    """Restore to a point that is marked now; return the seconds until it accepts writes, and its megabytes."""
    point = await _mark_point(stage, name)
    await store.until_archived()
    at = time.time()
    await store.restore_to(point)
    await store.accept_writes()
    seconds = time.time() - at
    case.check(f"{name}: earlier goals that are missing", await stage.count_missing(RESTORED), "=", 0)
    size = float(await stage.cluster.fetch("SELECT pg_database_size('goals_database') / 1e6", name=RESTORED))
    return seconds, size


def _write_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
