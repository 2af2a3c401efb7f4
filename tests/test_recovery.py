"""The check of the backups: it knows a good one from each kind of bad one, and leaves nothing behind."""

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
import trustme
from anyio import to_thread

from goals import embedded, recovery
from goals.connections import connect_arguments
from goals.errors import ConfigurationError
from goals.limits import Limits
from goals.models import SCHEMA_REVISION
from goals.scratch import Scratch
from goals.settings import Settings
from tests.conftest import ROOT, WIDE, upgrade
from tools.polling import until

CHECK = replace(WIDE, restore_pause=0.01, restore_connect=30.0, restore_sample=3, api_patience=0.0)
HASTY = replace(CHECK, restore_patience=0.0, restore_connect=0.0, removal_patience=0.0)
PATH = "/apis/postgresql.cnpg.io/v1/namespaces/goals/clusters/goals-db-check"
MANIFEST = ROOT / "k8s/components/restore-check/cluster.json"


def settings_of(socket: Path) -> Settings:
    return Settings().model_copy(update=embedded.SETTINGS | {"db_host": str(socket)})


async def execute(socket: Path, statement: str) -> None:
    connection = await asyncpg.connect(**connect_arguments(settings_of(socket), WIDE))
    await connection.execute(statement)
    await connection.close()


def add(age: str) -> str:
    """Five goals and a key of this age."""
    then = f"now() - interval '{age}'"
    return f"""
        INSERT INTO goals (goal_name, created_at, updated_at) SELECT 'goal', {then}, {then} FROM generate_series(1, 5);
        INSERT INTO goal_keys (key, fingerprint, goal_id, created_at) VALUES (gen_random_uuid(), '', 1, {then})
    """  # noqa: S608  it is made of constants


def own(path: Path) -> None:
    if os.geteuid() == 0:
        shutil.chown(path, embedded.ACCOUNT, pwd.getpwnam(embedded.ACCOUNT).pw_gid)


class Backups:
    """A database with a base backup from before most of its goals, and its log since then, in segments."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder
        self.base, self.wal = folder / "base", folder / "wal"
        for one in (self.base, self.wal):
            one.mkdir(mode=0o700)
            own(one)
        self.hole = self.wal
        """The segment with the goals of two days ago."""

    async def make(self) -> None:
        await upgrade(settings_of(self.socket))
        await execute(self.socket, add("9 days"))
        source = ("-h", self.socket, "-U", "postgres", "-D", self.base, "-c", "fast", "-X", "stream", "--no-sync")
        program = embedded.find_programs() / "pg_basebackup"
        await to_thread.run_sync(lambda: embedded._call(self.folder / "postgres", program, *source))
        await execute(self.socket, add("2 days"))
        self.hole = await self._close_segment()
        await execute(self.socket, add("1 day"))
        await self._close_segment()
        # This is not archived yet, which is no fault of the backups.
        await execute(self.socket, add("1 minute"))

    async def _close_segment(self) -> Path:
        """Give the segment that holds what was written last, once it is archived."""
        connection = await asyncpg.connect(host=str(self.socket), user="postgres", database="postgres")
        segment = self.wal / str(await connection.fetchval("SELECT pg_walfile_name(pg_switch_wal())"))
        await connection.close()

        async def is_archived() -> bool:
            return segment.exists()

        await until(is_archived, f"{segment.name} is archived")
        return segment

    @contextlib.contextmanager
    def restored(self, command: str) -> Iterator[Path]:
        """A second server, from the base backup and the segments that a shell command gets."""
        with tempfile.TemporaryDirectory(prefix="goals-test-") as folder:
            data = Path(folder) / "postgres"
            subprocess.run(["cp", "-a", self.base, data], check=True)  # noqa: S607  from the system
            (data / ".s.PGSQL.5432.lock").unlink(
                missing_ok=True
            )  # the socket is among the data, where its path is short
            with (data / "postgresql.auto.conf").open("a", encoding="ascii") as file:
                file.write(f"restore_command = '{command}'\n")
            (data / "recovery.signal").touch()
            own(data / "recovery.signal")
            with embedded.run(Path(folder), {"fsync": "off"}) as socket:
                yield socket


@pytest.fixture(scope="module")
async def backups() -> AsyncIterator[Backups]:
    with tempfile.TemporaryDirectory(prefix="goals-test-") as name:
        backups = Backups(Path(name))
        options = {"fsync": "off", "archive_mode": "on", "archive_command": f"cp %p {backups.wal}/%f"}
        with embedded.run(Path(name), options) as backups.socket:
            await backups.make()
            yield backups


async def until_writable(socket: Path) -> None:
    """Wait until the recovery has come to its end, whatever that is."""
    connection = await asyncpg.connect(host=str(socket), user="postgres", database="postgres")

    async def has_ended() -> bool:
        return not bool(await connection.fetchval("SELECT pg_is_in_recovery()"))

    await until(has_ended, "the recovery ends")
    await connection.close()


async def compare(backups: Backups, restored: Path, limits: Limits = CHECK) -> None:
    await until_writable(restored)
    await recovery.compare(settings_of(backups.socket), settings_of(restored), limits)


async def test_a_good_backup_is_good_and_each_difference_is_named(backups: Backups) -> None:
    with backups.restored(f"cp {backups.wal}/%f %p") as restored:
        await until_writable(restored)
        # What was removed since the backup may be there again.
        await execute(
            restored, "INSERT INTO goals (goal_name, created_at) VALUES ('removed', now() - interval '1 day')"
        )
        with structlog.testing.capture_logs() as logs:
            await compare(backups, restored)
        assert [(one["event"], one["goals"], one["keys"]) for one in logs] == [("the backups are complete", 16, 3)]
        # Each is looked for before those above it.
        for change, complaint in (
            ("DELETE FROM goal_keys WHERE created_at > now() - interval '25 hours'", "1 of the 3 newest idempotency"),
            ("UPDATE goals SET goal_name = 'changed' WHERE id = 15", "1 of the 3 newest goals, or their last change"),
            ("DELETE FROM goals WHERE id IN (14, 15)", "lack 1 of 15 goals"),
            ("UPDATE alembic_version SET version_num = '0000'", f"revision 0000, the database has {SCHEMA_REVISION}"),
        ):
            await execute(restored, change)
            with pytest.raises(ConfigurationError, match=complaint):
                await compare(backups, restored)


async def test_a_backup_without_its_log_is_a_week_old(backups: Backups) -> None:
    with backups.restored("false") as restored, pytest.raises(ConfigurationError, match="lack 10 of 15 goals"):
        await compare(backups, restored)


async def test_a_hole_in_the_log_ends_the_restore_early(backups: Backups) -> None:
    command = f"test %f != {backups.hole.name} && cp {backups.wal}/%f %p"
    with (
        backups.restored(command) as restored,
        pytest.raises(ConfigurationError, match=r"lack 10 of 15 goals .* newest"),
    ):
        await compare(backups, restored)


async def test_an_empty_backup_holds_nothing(backups: Backups) -> None:
    with tempfile.TemporaryDirectory(prefix="goals-test-") as name, embedded.run(Path(name)) as restored:
        with pytest.raises(ConfigurationError, match="a different schema or none"):
            await compare(backups, restored)
        await upgrade(settings_of(restored))
        with pytest.raises(ConfigurationError, match=r"lack 15 of 15 goals .* there is none"):
            await compare(backups, restored)
        # And the other way round: who has nothing cannot lack anything.
        with structlog.testing.capture_logs() as logs:
            await recovery.compare(settings_of(restored), settings_of(restored), CHECK)
        assert logs[0]["event"].startswith("the database has no goal that is old enough")


async def test_a_cluster_that_nobody_can_connect_to_is_no_proof(backups: Backups, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot reach PostgreSQL"):
        await recovery.compare(settings_of(backups.socket), settings_of(tmp_path), HASTY)


async def test_a_cluster_may_take_a_moment_to_be_found(backups: Backups) -> None:
    with tempfile.TemporaryDirectory(prefix="goals-test-") as name:
        address = Path(name) / ".s.PGSQL.5432"

        def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            address.unlink()
            address.symlink_to(backups.socket / address.name)
            writer.close()

        async with await asyncio.start_unix_server(hang_up, address):
            await recovery.compare(settings_of(backups.socket), settings_of(Path(name)), CHECK)
        assert address.is_symlink()


# The cluster.


@dataclass
class ApiServer:
    """What the check asks Kubernetes' API for: one cluster, and no other."""

    host: str
    """Where the cluster can be reached that is made."""
    folder: Path
    port: int = 0
    cluster: dict[str, Any] | None = None
    calls: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    """Methods that are answered by a status, from here on."""
    is_ready: bool = True
    going: int = 1
    """How many times the cluster is still seen after it was deleted."""
    authorization: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        self.calls.append(method)
        if method in self.refused:
            return self.refused[method], {"message": "so it is"}
        assert path.partition("?")[0] == PATH, "nothing else is the check's to ask for"
        if method == "PATCH":
            self.cluster = json.loads(body)
            return HTTPStatus.CREATED, self.cluster
        if self.cluster is None:
            return HTTPStatus.NOT_FOUND, {}
        if method == "DELETE":
            self.going -= 1
            if self.going < 0:
                self.cluster = None
            return HTTPStatus.OK, {}
        conditions = [{"type": "Ready", "status": str(self.is_ready)}, {"type": "Other", "status": "True"}]
        return HTTPStatus.OK, {"status": {"conditions": conditions, "writeService": self.host, "phase": "restoring"}}


@pytest.fixture
def api(backups: Backups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server, and in its folder what the CronJob mounts."""
    api = ApiServer(str(backups.socket), tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            api.authorization = self.headers["Authorization"]
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = api.answer(self.command, self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_GET = do_PATCH = do_DELETE = do  # noqa: N815  http.server's names

        def log_message(self, *_: object) -> None:
            pass

    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    for name, text in {"token": "secret\n", "job-name": "restore-check-1", "job-uid": "1234"}.items():
        (tmp_path / name).write_text(text)
    shutil.copy(MANIFEST, tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        api.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        yield api
        server.shutdown()
        thread.join()


async def check(api: ApiServer, backups: Backups, limits: Limits = CHECK) -> None:
    await to_thread.run_sync(recovery.check, api.folder, settings_of(backups.socket), limits)


async def test_the_cluster_is_made_compared_and_removed(api: ApiServer, backups: Backups) -> None:
    with structlog.testing.capture_logs() as logs:
        await check(api, backups)
    assert [one["event"] for one in logs] == ["restoring the backups", "restored", "the backups are complete"]
    assert api.calls == ["DELETE", "PATCH", "GET", "DELETE", "DELETE", "DELETE"]
    assert api.cluster is None
    assert api.authorization == "Bearer secret"


def test_the_job_owns_the_cluster(api: ApiServer) -> None:
    with Scratch(api.folder, CHECK).running() as host:
        assert host == api.host
        assert api.cluster is not None
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "restore-check-1", "uid": "1234"}
        assert api.cluster["metadata"]["ownerReferences"] == [owner]


async def test_what_an_earlier_check_left_goes_first(api: ApiServer, backups: Backups) -> None:
    api.cluster = {"left": "behind"}
    await check(api, backups)
    assert api.calls[:4] == ["DELETE", "DELETE", "DELETE", "PATCH"]


async def test_a_bad_backup_is_removed_as_well(api: ApiServer, backups: Backups, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="goals-test-") as name, embedded.run(Path(name)) as empty:
        api.host = str(empty)
        with pytest.raises(ConfigurationError, match="a different schema or none"):
            await check(api, backups)
    assert api.cluster is None
    assert (tmp_path / "token").exists()


async def test_a_backup_that_cannot_be_restored_is_given_up(api: ApiServer, backups: Backups) -> None:
    api.is_ready = False
    with pytest.raises(ConfigurationError, match=r"not restored within 0 s \(restoring\)"):
        await check(api, backups, replace(HASTY, removal_patience=30.0))
    assert api.cluster is None


async def test_a_cluster_that_does_not_go_is_named(api: ApiServer, backups: Backups) -> None:
    api.going = 1000
    api.cluster = {}
    with pytest.raises(ConfigurationError, match="goals-db-check still exists"):
        await check(api, backups, HASTY)


@pytest.mark.parametrize(("method", "status"), [("PATCH", 403), ("GET", 500)])
async def test_a_refusal_says_what_was_refused(api: ApiServer, backups: Backups, method: str, status: int) -> None:
    api.refused = {method: status}
    with pytest.raises(ConfigurationError, match=rf"refused {method} {PATH}.* \({status}: .*so it is"):
        await check(api, backups)
    assert api.cluster is None


async def test_an_api_server_that_comes_back_is_asked_again(
    api: ApiServer, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting = replace(CHECK, api_patience=30.0)
    api.refused = {"GET": 503}
    checking = asyncio.create_task(check(api, backups, lasting))

    async def is_refused() -> bool:
        return "GET" in api.calls

    await until(is_refused)
    api.refused = {}
    await checking
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "::1")
    with pytest.raises(ConfigurationError, match=r"API server at \[::1\]:\d+ does not answer"):
        await check(api, backups)


def test_what_is_not_mounted_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cluster.json \(No such file"):
        Scratch(tmp_path, CHECK)


def run(api: ApiServer, socket: Path) -> subprocess.Popen[str]:
    variables: Mapping[str, str] = os.environ | {"DB_HOST": str(socket), "SSL": "disable"}
    command = [sys.executable, "-m", "goals", "check-restore", str(api.folder)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_check_that_is_ended_early_removes_the_cluster(
    api: ApiServer, backups: Backups, number: signal.Signals
) -> None:
    api.is_ready = False
    with run(api, backups.socket) as process:

        async def is_waiting() -> bool:
            return "GET" in api.calls

        await until(is_waiting, "the check waits for the cluster")
        assert api.cluster is not None
        process.send_signal(number)
        await to_thread.run_sync(process.communicate)
    assert process.returncode == 128 + number
    assert api.cluster is None


async def test_the_exit_code_is_the_verdict(api: ApiServer, backups: Backups) -> None:
    with run(api, backups.socket) as process:
        _, errors = await to_thread.run_sync(process.communicate)
    assert process.returncode == 0, errors
    api.refused = {"PATCH": 403}
    with run(api, backups.socket) as process:
        _, errors = await to_thread.run_sync(process.communicate)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: the API server refused PATCH")
