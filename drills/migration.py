"""The schema changes while clients write: each revision under load, while the previous version still runs."""

import asyncio
import re
import subprocess
import sys
import time
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

from drills import ROOT, seed
from drills.cluster import DrillError
from drills.drill import Case, Drill, observe
from drills.history import VERSIONS, History, HistoryError, list_revisions
from drills.journal import Attempt
from drills.scenarios import visitors, writers
from drills.stage import Load, Replica, Stage
from drills.timeline import Mark
from goals.limits import Limits
from tools.checkout import copy_tree
from tools.polling import until

NEXT = "next revision"
REQUESTS = 20_000
ROWS = 1_000_000
MIGRATORS = 5
LOCK_TIMEOUT = Limits().lock_timeout
"""The lock timeout of every revision."""
_NOTICE = 0.05
"""Seconds that PostgreSQL may take to end a wait after its timeout, and to serve the statements behind it."""
LONGEST_WAIT = LOCK_TIMEOUT + _NOTICE
_GAVE_UP = "The table is locked by a long transaction; trying again"
_DID = "Running upgrade"
_WAITED = re.compile(
    r"\] goals LOG: +process \d+ acquired \w+ on .* after ([\d.]+) ms(?: at character \d+)?$", re.MULTILINE
)

_BLOCKED = re.compile(r"\] goals-migrate LOG: +process \d+ still waiting for \w+ on relation ")
_OLD_TRANSACTIONS = re.compile(r"\] goals-migrate LOG: +process \d+ still waiting for \w+ on virtual transaction ")
_LONG_TRANSACTION = "BEGIN; LOCK TABLE goals IN ROW EXCLUSIVE MODE"
"""The lock of an uncommitted write: everything that blocks writers has to wait for it."""

_REVISION_NOW = "SELECT version_num FROM alembic_version"
_LOGGING = {
    "log_lock_waits": "on",
    "deadlock_timeout": "20ms",  # the server only logs lock waits that are longer
    "log_line_prefix": "%m [%p] %a ",
}
_REVISION = '''"""A column and an index, like most revisions."""

from alembic import op
from tools.polling import until

revision = "{revision}"
down_revision = "{former}"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '{timeout}'")
    op.execute("ALTER TABLE goals ADD COLUMN IF NOT EXISTS drill_{revision} TEXT")
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS drill_{revision}_idx ON goals (drill_{revision})")
        op.execute("RESET lock_timeout")
'''


class Version(NamedTuple):
    """A version of the service: its name, its folder, and the module to run."""

    name: str
    root: Path
    module: tuple[str, ...] = ("goals", "serve")
    has_api: bool = True

    def run(self, *module: str) -> tuple[str, ...]:
        """Return the command that runs a module of this version, and not of this tree."""
        return ("tools.checkout", str(self.root), *module)

    @property
    def revision(self) -> str:
        """The revision of the schema that it needs, which `/version` reports."""
        return list_revisions(self.root)[-1]


class Hop(NamedTuple):
    """The change from one served version to the next, over the revisions between them."""

    former: Version
    revisions: list[str]
    new: Version


# part adoption
ORIGINAL = Version("the original Go app", ROOT, (seed.MODULE,), has_api=False)
# end adoption
TREE = Version("this version", ROOT)


async def run(drill: Drill) -> None:
    async with Stage() as stage:
        await log_waits(stage)
        hops = await _plan(drill, stage)
        attempts = list(chain.from_iterable([await _make_hop(drill, stage, hop) for hop in hops]))
        if not hops:
            return
        attempts.sort(key=lambda attempt: attempt.ended)
        drill.account(await stage.reconcile(attempts), attempts)
        last = drill.held[-1]
        last.check("earlier goals that are missing", await stage.count_missing(), "=", 0)
        if not drill.short:
            last.check("requests in total", drill.requests, ">=", REQUESTS)
        await _control(drill, stage, hops[-1])


async def log_waits(stage: Stage) -> None:
    for setting, value in _LOGGING.items():
        await stage.cluster.execute(f"ALTER SYSTEM SET {setting} = '{value}'", database="postgres")
    await stage.cluster.fetch("SELECT pg_reload_conf()", database="postgres")


async def _plan(drill: Drill, stage: Stage) -> list[Hop]:
    """Find the versions of each hop, leave out those that git lacks, and set the table up for the first one."""
    history = History(ROOT)
    hops = []
    try:
        history.check(whole=True)
        hops += _find_hops(history, stage.folder)
        # part adoption
        await stage.cluster.execute(
            f"DROP TABLE goals, alembic_version; {seed.TABLE}; ALTER TABLE goals OWNER TO goals_user"
        )
        # end adoption
        if hops and hops[0].former.has_api:
            await _begin_at(stage, hops[0].former)
    except HistoryError as error:
        for revision in list_revisions(ROOT):
            drill.leave_out(f"revision {revision}", "under load, with the previous version running", str(error))
    await stage.fill(20_000 if drill.short else ROWS)
    try:
        history.check(whole=False)
        hops.append(make_next(history, stage.folder))
    except HistoryError as error:
        drill.leave_out(NEXT, "a future revision", str(error))
    return hops


async def _begin_at(stage: Stage, version: Version) -> None:
    """Migrate an empty schema to the revision of a former version."""
    await stage.cluster.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION goals_user")
    migrators = Migrators(stage, version, version.revision, number=1)
    await migrators.start()
    await migrators.finish()


# Versions.


def _find_hops(history: History, folder: Path) -> list[Hop]:
    """Return all hops from the first version in git to this tree's schema."""
    revisions = list_revisions(ROOT)
    hops: list[Hop] = []
    served: list[Version] = []
    # part adoption
    served.append(ORIGINAL)
    # end adoption
    between = revisions[:1]
    for revision, successor in pairwise(revisions):
        commit = history.find_last(revision, successor)
        if commit is not None:
            new = _unpack(history, commit, folder)
            hops += [Hop(served[-1], between, new)] if served else []
            served.append(new)
            between = []
        between = [*between, successor]
    return [*hops, Hop(served[-1], between, TREE)] if served else hops


def _unpack(history: History, commit: str, folder: Path) -> Version:
    root = folder / f"commit-{commit}"
    history.unpack(commit, root)
    return Version(f"commit {commit}", root)


def make_next(history: History, folder: Path) -> Hop:
    """Create a future revision of the usual kind, which today's version, from its commit, must tolerate."""
    head = TREE.revision
    commit = history.find_last(head, None)
    if commit is None:
        raise HistoryError(f"revision {head} is not committed yet, so no commit has the version that runs with it")
    new = Version("its successor", folder / "next")
    revision = add_revision(ROOT, new.root, f"{LOCK_TIMEOUT * 1000:.0f}ms")
    return Hop(_unpack(history, commit, folder), [revision], new)


def add_revision(tree: Path, root: Path, timeout: str) -> str:
    """Copy a tree to the folder `root`, add a revision there, and make its service need it."""
    copy_tree(tree, root)
    former = list_revisions(root)[-1]
    revision = f"{int(former) + 1:04}"
    text = _REVISION.format(revision=revision, former=former, timeout=timeout)
    (root / VERSIONS / f"{revision}_drill.py").write_text(text, encoding="utf-8")
    models = root / "services" / "goals" / "models.py"
    source = models.read_text(encoding="utf-8")
    if f'SCHEMA_REVISION = "{former}"' not in source:
        raise DrillError(f"models.py does not say that it needs revision {former}")
    models.write_text(
        source.replace(f'SCHEMA_REVISION = "{former}"', f'SCHEMA_REVISION = "{revision}"'), encoding="utf-8"
    )
    return revision


# The hops.


async def _make_hop(drill: Drill, stage: Stage, hop: Hop) -> list[Attempt]:
    """Migrate under the former version's load, revision by revision, then run the new version alongside it."""
    await stage.serve(1 if drill.short else 2, hop.former.run(*hop.former.module))
    replicas = dict.fromkeys(stage.replicas, hop.former)
    load = await stage.load(_scenario(drill, hop.former))
    loads, cases = [load], []
    # In the short form directly to the last one, as pods do.
    for revision in hop.revisions[-1:] if drill.short else hop.revisions:
        what = f"{MIGRATORS} migrations start while a long transaction locks the table and {hop.former.name} is running"
        case = drill.begin(f"revision {revision}" if revision in list_revisions(ROOT) else NEXT, what)
        cases.append(case)
        logged = len(stage.cluster.read_log())
        has_met = await _migrate(drill, stage, case, hop.new, revision)
        if revision == hop.revisions[-1]:
            case.explanation += f"; then {hop.new.name} runs alongside"
            added = await _start(stage, hop.new)
            replicas[added] = hop.new
            loads.append(await _work_beside(drill, stage, case, hop.new, added))
            if hop.former.has_api:
                await _roll_back(drill, stage, case, hop.former)
        else:
            case.explanation += f"; only {hop.former.name} runs, because no version of the service used this revision"
            await asyncio.sleep(1)
        drill.end(case)
        _check_waits(case, stage.cluster.read_log()[logged:], has_met=has_met)
    others = [replica for replica, version in replicas.items() if await replica.read_schema() != version.revision]
    cases[-1].check("replicas that report a revision other than their version's", len(others), "=", 0)
    former, new = await asyncio.gather(*(load.stop() for load in loads))
    for replica in replicas.keys() - set(stage.replicas):
        await replica.kill()
    everything = sorted(chain(former, new), key=lambda attempt: attempt.ended)
    for case in cases:
        case.figures = observe(everything, case.began, case.ended)
        case.check("errors shown", case.figures.errors, "=", 0)
        drill.draw(case, everything)
    cases[-1].check("errors shown, up to the last response", sum(a.shows_error for a in everything), "=", 0)
    began = min(attempt.begun for attempt in new)
    cases[-1].check(
        "responses of the former version alongside the new one", sum(a.ended > began for a in former), ">", 0
    )
    cases[-1].check("responses of the new version", len(new), ">", 0)
    return everything


def _scenario(drill: Drill, version: Version) -> str:
    if version.has_api:
        return writers(short=drill.short)
    return visitors(16, pause="100ms" if drill.short else None)


async def _start(stage: Stage, version: Version) -> Replica:
    return await stage.start_replica(version.run(*version.module))


async def _work_beside(drill: Drill, stage: Stage, case: Case, new: Version, replica: Replica) -> Load:
    load = await stage.load(_scenario(drill, new), replica.port)
    at = time.time()
    case.marks.append(Mark(at, "side by side", at))
    await asyncio.sleep(1 if drill.short else 10)
    return load


async def _roll_back(drill: Drill, stage: Stage, case: Case, former: Version) -> None:
    """Start the former version again, as a rollback or a rescheduled pod does; its own migration runs first."""
    revision = await stage.cluster.fetch(_REVISION_NOW)
    migrators = Migrators(stage, former, former.revision, number=1)
    try:
        await migrators.start()
        codes = await migrators.finish()
    finally:
        migrators.kill()
    case.check("migrations of the former version that fail on the new schema", sum(code != 0 for code in codes), "=", 0)
    case.check("revision of the schema afterwards", int(await stage.cluster.fetch(_REVISION_NOW)), "=", int(revision))
    started = 0
    try:
        replica = await _start(stage, former)
        started = await replica.read_schema() == former.revision
        await replica.kill()
    except DrillError as error:
        drill.say(f"the former version did not start again: {error}")
    case.check("replicas of the former version that start on the new schema", started, "=", 1)


async def _migrate(drill: Drill, stage: Stage, case: Case, version: Version, revision: str) -> bool:
    """Race for the revision while a transaction with a write stays open; return whether the migrators had to wait."""
    logged = len(stage.cluster.read_log())
    connection = await stage.cluster.connect()
    await connection.execute(_LONG_TRANSACTION)
    at = time.time()
    migrators = Migrators(stage, version, revision)

    async def have_met_it() -> bool:
        """Whether a migrator gave up waiting, or the revision needs no lock that conflicts with the transaction."""
        log = stage.cluster.read_log()[logged:]
        return migrators.count(_GAVE_UP) > 0 or migrators.have_ended or bool(_OLD_TRANSACTIONS.search(log))

    try:
        await migrators.start()
        await until(have_met_it, "the migrators meet the long transaction")
        await asyncio.sleep(max(at + (1.5 if drill.short else 6) - time.time(), 0))
        await connection.execute("COMMIT")
        released = time.time()
        codes = await migrators.finish()
    finally:
        connection.terminate()
        migrators.kill()
    done = time.time()
    case.marks += [Mark(at, "long transaction", released), Mark(released, "migration", done)]
    found = await stage.cluster.fetch(_REVISION_NOW)
    drill.say(f"revision {found} {done - released:.1f} s after the table was free")
    case.check("revision of the schema", int(found), "=", int(revision))
    has_met = bool(_BLOCKED.search(stage.cluster.read_log()[logged:])) or migrators.count(_GAVE_UP) > 0
    if has_met:
        case.check("times the migrator gave up and tried again", migrators.count(_GAVE_UP), ">", 0)
    case.check("migrators that ran the revision", migrators.count_that(_DID), "=", 1)
    case.check("migrators that failed", sum(code != 0 for code in codes), "=", 0)
    case.check("time to migrate once the table is free, s", done - released, "<", 60, kind="timing")
    return has_met


class Migrators:
    """Several processes that migrate the schema to the same revision at the same time."""

    def __init__(self, stage: Stage, version: Version, revision: str, number: int = MIGRATORS) -> None:
        self._variables = stage._variables
        # As pods do it; only an older revision than the newest needs alembic's own command.
        is_newest = revision == version.revision
        self._command = version.run(*(("goals", "migrate") if is_newest else ("alembic", "upgrade", revision)))
        self._logs = [stage.folder / f"migrator-{revision}-{place}.log" for place in range(number)]
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        for log in self._logs:
            with log.open("w") as output:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", *self._command),
                    cwd=ROOT,
                    env=self._variables,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            self._processes.append(process)

    @property
    def have_ended(self) -> bool:
        return all(process.returncode is not None for process in self._processes)

    async def finish(self) -> list[int]:
        """Wait for all of them, and return their exit codes."""
        try:
            async with asyncio.timeout(120):
                return [await process.wait() for process in self._processes]
        except TimeoutError:
            raise TimeoutError(f"a migrator did not end: {self._read()[-500:]}") from None

    def kill(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()

    def count(self, line: str) -> int:
        return self._read().count(line)

    def count_that(self, line: str) -> int:
        """Return how many of them have logged this line."""
        return sum(line in log.read_text(encoding="utf-8") for log in self._logs)

    def _read(self) -> str:
        return "".join(log.read_text(encoding="utf-8") for log in self._logs)


def read_waits(log: str) -> list[float]:
    """Return how many seconds statements of the service waited for locks, from PostgreSQL's log."""
    return [float(milliseconds) / 1000 for milliseconds in _WAITED.findall(log)]


def _check_waits(case: Case, log: str, *, has_met: bool) -> None:
    """Compare the service's waits for locks in PostgreSQL's log with the limit of the migrations.

    If the migrator `has_met` the long transaction, a statement has waited behind it, and the log must show that.
    """
    waits = read_waits(log)
    if has_met:
        case.check("statements that had to wait for a lock", len(waits), ">", 0)
    else:
        case.explanation += "; the migration takes no lock that others wait for"
    case.check("longest wait for a lock, s", max(waits, default=0.0), "<=", LONGEST_WAIT, kind="timing")


async def _control(drill: Drill, stage: Stage, hop: Hop) -> None:
    new = Version("the control", stage.folder / "control")
    revision = add_revision(hop.new.root, new.root, "0")
    load = await stage.load(_scenario(drill, hop.former))
    logged = len(stage.cluster.read_log())
    connection = await stage.cluster.connect()
    await connection.execute(_LONG_TRANSACTION)
    migrators = Migrators(stage, new, revision, number=1)
    try:
        await migrators.start()

        async def waits() -> bool:
            query = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"
            return bool(await stage.cluster.fetch(query))

        await until(waits, "the migrator waits for the table")
        await asyncio.sleep(1.5)
        await connection.execute("COMMIT")
        await migrators.finish()
    finally:
        connection.terminate()
        migrators.kill()
    attempts = await load.stop()
    explanation = "a migration without lock_timeout waits for a long transaction, and other statements wait behind it"
    drill.control("no lock_timeout", explanation, "requests refused or failed", sum(a.shows_error for a in attempts))
    longest = max(read_waits(stage.cluster.read_log()[logged:]), default=0.0)
    name, explanation = "no lock_timeout, in the log", "PostgreSQL's log of the same migration"
    drill.control(name, explanation, "s for the longest lock wait", longest, LONGEST_WAIT)
