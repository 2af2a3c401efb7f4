"""The commands as a user types them: started, stopped, killed, and refused with one line that says what to do."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import asyncpg
import httpx2
import pytest

from goals import embedded
from goals.models import SCHEMA_REVISION
from goals.openapi import DOCUMENT
from goals.settings import Settings
from tests.conftest import ROOT, Service, upgrade

ADDRESSES = re.compile(r"the page +http://127\.0\.0\.1:(\d+)\n +for operators +http://127\.0\.0\.1:(\d+) ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like the root, with data of its own."""
    for name in ("alembic", "alembic.ini"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def environment(**variables: str) -> dict[str, str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("DB_", "GOALS_", "SSL", "PYTHON"))
    }
    ours = {"GOALS_PORT": "0", "GOALS_OPS_PORT": "0", "GOALS_WRITE_WAIT_SECONDS": "0"}
    return clean | ours | variables


def goals(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "goals", *arguments]
    return subprocess.run(
        command, check=False, cwd=folder, env=environment(**variables), capture_output=True, text=True, timeout=60
    )


@contextlib.contextmanager
def started(
    *command: str, folder: Path, variables: Mapping[str, str] | None = None, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """A process of the command, ended with the test whatever becomes of it."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**(variables or {})),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(stream: IO[str] | None, pattern: re.Pattern[str]) -> re.Match[str]:
    """Read on until `pattern` is there; the test fails where the stream ends before."""
    assert stream is not None
    text = ""
    while (found := pattern.search(text)) is None:
        line = stream.readline()
        assert line, f"ended after: {text}"
        text += line
    return found


def addresses(process: subprocess.Popen[str]) -> Service:
    port, ops_port = read_until(process.stdout, ADDRESSES).groups()
    return Service(int(port), int(ops_port))


def is_running(folder: Path) -> bool:
    """Whether the embedded server of `folder` lives (a zombie that nobody waits for does not)."""
    try:
        pid = (folder / ".data" / "postgres" / "postmaster.pid").read_text().partition("\n")[0]
    except FileNotFoundError:
        return False
    return Path(f"/proc/{pid}").exists()


UP = (sys.executable, "-m", "goals", "up")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_serves_and_a_signal_stops_everything(folder: Path, number: signal.Signals) -> None:
    with started(*UP, folder=folder) as process:
        service = addresses(process)
        assert "<title>Goals</title>" in httpx2.get(f"http://127.0.0.1:{service.port}/", trust_env=False).text
        assert httpx2.get(f"http://127.0.0.1:{service.ops_port}/livez", trust_env=False).text == "live"
        process.send_signal(number)
        assert process.wait() == 0
    assert not is_running(folder)


def test_up_keeps_the_goals_between_runs(folder: Path) -> None:
    for expected in (0, 1):
        with started(*UP, folder=folder) as process:
            api = f"http://127.0.0.1:{addresses(process).port}/api/v1/goals"
            assert len(httpx2.get(api, trust_env=False).json()["goals"]) == expected
            assert httpx2.post(api, json={"goal_name": "kept"}, trust_env=False).status_code == 201
            process.terminate()
            process.wait()


def test_up_needs_nobody_who_reads_what_it_prints(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    reader, writer = os.pipe()
    os.close(reader)
    with started(*UP, folder=folder, variables={"GOALS_PORT": str(port)}, stdout=writer) as process:
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"http://127.0.0.1:{port}/", trust_env=False).is_success:
                    break
            assert process.poll() is None
        process.terminate()
        assert process.wait() == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    os.close(writer)


def test_up_says_that_its_output_takes_nothing(folder: Path) -> None:
    with Path("/dev/full").open("w") as full, started(*UP, folder=folder, stdout=full.fileno()) as process:
        assert process.wait() == 1
        assert process.stderr is not None
        assert process.stderr.read() == (
            "error: cannot write to standard output (No space left on device): free some space or redirect the output\n"
        )
    assert not (folder / ".data").exists()


def test_without_a_standard_output_there_is_an_exit_code_and_no_traceback(folder: Path) -> None:
    command = ["/bin/sh", "-c", shlex.join([sys.executable, "-m", "goals", "openapi"]) + " >&-"]
    done = subprocess.run(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_up_shows_each_request_on_a_line_and_nothing_of_alembic(folder: Path) -> None:
    with started(*UP, folder=folder, variables={"GOALS_LOG_FORMAT": "console"}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting, with PostgreSQL 18 in .data/\n"
        before = read_until(process.stdout, ADDRESSES)
        httpx2.get(f"http://127.0.0.1:{before[1]}/nowhere?x=1", trust_env=False)
        line = read_until(process.stdout, re.compile(r"\d\d:\d\d:\d\d  404  GET     /nowhere +[\d.]+ ms\n"))
        assert len(line[0]) <= 81
        for text in (before.string, line.string):
            assert not re.search("alembic|Running upgrade|Context impl", text)
        process.terminate()
        assert process.wait() == 0


def test_the_document_may_be_read_in_part(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with started(sys.executable, "-m", "goals", "openapi", folder=folder, stdout=writer) as process:
        assert process.wait() == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""
    os.close(writer)


def test_up_is_stopped_while_it_starts(folder: Path) -> None:
    with started(*UP, folder=folder) as process:
        while not (folder / ".data" / "postgres").exists():
            assert process.poll() is None
        process.terminate()
        assert process.wait() in {0, 128 + signal.SIGTERM}
    assert not is_running(folder)


def test_a_signal_that_comes_in_a_finalizer_is_not_lost(folder: Path) -> None:
    # `subprocess` has one, and so has the import system.
    program = """
import runpy, signal, sys
from goals import embedded

class Finalized:
    def __len__(self):
        return 0
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

embedded.ignore_client_variables = Finalized
sys.argv = ["goals", "up"]
runpy.run_module("goals", run_name="__main__", alter_sys=True)
"""
    waiting = {"GOALS_WRITE_WAIT_SECONDS": "15"}  # the migration goes on until there is a loop to stop
    with started(sys.executable, "-c", program, folder=folder, variables=waiting) as process:
        assert process.stderr is not None
        assert process.wait() in {0, 128 + signal.SIGTERM}, process.stderr.read()
    assert not is_running(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_still_imports_ends_it_without_a_word(tmp_path: Path, number: signal.Signals) -> None:
    # The first of the imports stands still, and says so.
    (tmp_path / "orjson.py").write_text("import signal\nprint('importing', flush=True)\nsignal.pause()\n")
    with started(*UP, folder=tmp_path) as process:
        read_until(process.stdout, re.compile("importing"))
        process.send_signal(number)
        assert process.wait() == 128 + number  # by a handler, without which the first process of a container goes on
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("command", "stream"), [("goals migrate", "stdout"), ("alembic upgrade head", "stderr")], ids=["goals", "alembic"]
)
async def test_a_signal_stops_a_migration_and_its_server(
    folder: Path, command: str, stream: str, number: signal.Signals
) -> None:
    with contextlib.ExitStack() as running:
        with embedded.run(folder / ".data") as place:
            # Its turn is taken, so that the signal finds it waiting.
            connection = await asyncpg.connect(host=str(place), user="goals_user", database="goals_database")
            await connection.execute("SELECT pg_advisory_lock($1)", int.from_bytes(b"goals"[:7]))
            process = running.enter_context(started(sys.executable, "-m", *command.split(), folder=folder))
            read_until(getattr(process, stream), re.compile("Waiting for another migration"))
        assert is_running(folder)  # the migration uses it still
        process.send_signal(number)
        assert process.wait() == 128 + number
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert not is_running(folder)
    connection.terminate()


def test_migrate_works_in_a_folder_of_any_name(folder: Path) -> None:
    weird = folder / "100%, it's $HOME"
    weird.mkdir()
    for name in ("alembic", "alembic.ini"):
        (weird / name).symlink_to(ROOT / name)
    done = goals("migrate", folder=weird)
    assert done.returncode == 0, done.stderr
    assert not is_running(weird)


def test_after_a_kill_the_next_up_takes_over_and_leaves_nothing(folder: Path) -> None:
    with started(*UP, folder=folder) as process:
        addresses(process)
        process.kill()
        process.wait()
        assert is_running(folder)
    with started(*UP, folder=folder) as process:
        addresses(process)
        process.terminate()
        process.wait()
    assert not is_running(folder)


def test_up_ends_with_the_make_that_started_it(folder: Path) -> None:
    with started("sh", "-c", f"{shlex.join(UP)}; true", folder=folder) as shell:
        service = addresses(shell)
        shell.kill()
        shell.wait()
        assert shell.stdout is not None
        assert shell.stdout.read() is not None  # ends when the last process that holds it does
    assert not is_running(folder)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"http://127.0.0.1:{service.port}/", trust_env=False)


def test_up_uses_the_server_that_it_is_given(folder: Path, settings: Settings) -> None:
    variables = {"DB_HOST": str(settings.db_host), "SSL": "disable", "GOALS_DRAIN_SECONDS": "0"}
    with started(*UP, folder=folder, variables=variables) as process:
        addresses(process)
        process.terminate()
        assert process.wait() == 0
    assert not (folder / ".data").exists()


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that was refused."""
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_port_in_use_is_named_with_the_remedy(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused(goals("up", folder=folder, GOALS_PORT=str(port)))
    assert f"port {port} (Address already in use)" in line
    assert "GOALS_PORT" in line
    assert not is_running(folder)


def test_data_of_another_version_are_named_with_the_remedy(folder: Path) -> None:
    (folder / ".data" / "postgres").mkdir(parents=True)
    (folder / ".data" / "postgres" / "PG_VERSION").write_text("16\n")
    assert "PostgreSQL 16" in refused(goals("up", folder=folder))


def test_a_disk_that_cannot_be_written_is_named_with_the_remedy(folder: Path) -> None:
    (folder / ".data").touch()
    assert "DB_HOST" in refused(goals("up", folder=folder))


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_server_that_cannot_be_reached_is_named_with_the_remedy(folder: Path, host: str) -> None:
    line = refused(goals("up", folder=folder, DB_HOST=host, DB_PORT="1"))
    assert f"{host}, port 1" in line
    assert "check DB_HOST" in line


def test_a_setting_that_makes_no_sense_is_named_without_its_value(folder: Path) -> None:
    assert "GOALS_POOL_SIZE" in refused(goals("up", folder=folder, GOALS_POOL_SIZE="4711"))
    line = refused(goals("serve", folder=folder, DB_HOST="x", DB_PORT="secret"))
    assert "DB_PORT" in line
    assert "secret" not in line


def test_serve_asks_for_a_server(folder: Path) -> None:
    assert "DB_HOST is not set" in refused(goals("serve", folder=folder))


# part adoption
def test_widen_asks_for_a_server(folder: Path) -> None:
    assert "DB_HOST is not set" in refused(goals("widen", folder=folder))


def test_widen_says_where_there_is_nothing_to_do(folder: Path, settings: Settings, schema: None) -> None:
    done = goals("widen", folder=folder, DB_HOST=str(settings.db_host), SSL="disable", GOALS_LOG_FORMAT="json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["event"] == "goals.id is already bigint: nothing to do"


# end adoption
def test_migrate_asks_for_the_projects_root(tmp_path: Path) -> None:
    assert "alembic.ini" in refused(goals("migrate", folder=tmp_path, DB_HOST="127.0.0.1"))


def test_migrate_brings_its_own_server(folder: Path) -> None:
    done = goals("migrate", folder=folder, GOALS_LOG_FORMAT="json")
    assert done.returncode == 0, done.stderr
    said = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert any(line.startswith("Running upgrade") and f"-> {SCHEMA_REVISION}" in line for line in said)
    assert not is_running(folder)


async def test_migrate_ignores_what_other_clients_follow_and_can_only_look(folder: Path, empty: Settings) -> None:
    variables = {"DB_HOST": str(empty.db_host), "DB_NAME": empty.db_name, "SSL": "disable", "GOALS_LOG_FORMAT": "json"}
    theirs = {"PGTARGETSESSIONATTRS": "standby", "PGSSLCERT": "/nowhere", "PGOPTIONS": "-c search_path=nowhere"}
    done = goals("migrate", "--dry-run", folder=folder, **variables, **theirs)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert set(json.loads(first)["variables"]) >= theirs.keys()
    assert [line[:24] for line in others] == [
        f"revision {number:04} would run:" for number in range(1, int(SCHEMA_REVISION) + 1)
    ]
    assert goals("migrate", folder=folder, **variables).returncode == 0
    last = goals("migrate", "--dry-run", folder=folder, **variables).stdout.splitlines()[-1]
    assert last == f"nothing would be done: the schema is at revision {SCHEMA_REVISION}"
    assert goals("serve", folder=folder, DB_HOST="/nowhere", GOALS_BIND="nowhere.invalid", PGHOST="x").returncode == 1


async def test_migrate_leaves_a_schema_that_is_newer(folder: Path, empty: Settings) -> None:
    await upgrade(empty)
    connection = await asyncpg.connect(host=empty.db_host, user="goals_user", database=empty.db_name)
    variables = {"DB_HOST": str(empty.db_host), "DB_NAME": empty.db_name, "SSL": "disable", "GOALS_LOG_FORMAT": "json"}
    await connection.execute("UPDATE alembic_version SET version_num = '0099'")
    done = goals("migrate", folder=folder, **variables)
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["revision"] == "0099"
    await connection.execute("UPDATE alembic_version SET version_num = '0000'")
    assert "'0000'" in refused(goals("migrate", folder=folder, **variables))
    await connection.close()


def test_openapi_prints_the_document(folder: Path) -> None:
    assert json.loads(goals("openapi", folder=folder).stdout) == json.loads(json.dumps(DOCUMENT))


def test_an_unknown_command_is_a_usage_error(folder: Path) -> None:
    assert goals("fly", folder=folder).returncode == 2


SERVE = (sys.executable, "-m", "goals", "serve")
LISTENING = re.compile(r'"port":(\d+),"ops_port":(\d+),"event":"listening"')


@pytest.fixture
def variables(settings: Settings, schema: None) -> dict[str, str]:
    """The environment of a service in a container, with the database of the tests."""
    return {"DB_HOST": str(settings.db_host), "SSL": "disable", "GOALS_LOG_FORMAT": "json"}


def ready(process: subprocess.Popen[str]) -> Service:
    port, ops_port = read_until(process.stdout, LISTENING).groups()
    read_until(process.stdout, re.compile('"event":"ready"'))
    return Service(int(port), int(ops_port))


def probe(service: Service) -> httpx2.Response:
    return httpx2.get(f"http://127.0.0.1:{service.ops_port}/readyz", trust_env=False)


def test_a_service_that_is_told_to_stop_drains_first(folder: Path, variables: dict[str, str]) -> None:
    with started(*SERVE, folder=folder, variables=variables | {"GOALS_DRAIN_SECONDS": "300"}) as process:
        service = ready(process)
        with httpx2.Client(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as client:
            assert "connection" not in client.get("/health").headers
            process.terminate()
            read_until(process.stdout, re.compile('"event":"draining"'))
            unready = probe(service)
            assert (unready.status_code, unready.text) == (503, "not ready: draining")
            assert unready.headers["connection"] == "close"
            for path, status in (("/health", 200), ("/", 200), ("/nowhere", 404), ("/add_goal", 405)):
                response = client.get(path)
                assert (response.status_code, response.headers["connection"]) == (status, "close")
        process.terminate()
        assert process.wait() == 0


def test_a_second_signal_stops_at_once(folder: Path, variables: dict[str, str]) -> None:
    with started(*SERVE, folder=folder, variables=variables | {"GOALS_DRAIN_SECONDS": "300"}) as process:
        ready(process)
        process.terminate()
        read_until(process.stdout, re.compile('"event":"draining"'))
        process.terminate()
        assert process.wait() == 0


FORM_HEAD = (
    b"POST /add_goal HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n"
)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n", FORM_HEAD % 99 + b"goal"])
def test_a_half_sent_request_does_not_keep_it_alive(folder: Path, variables: dict[str, str], sent: bytes) -> None:
    with started(*SERVE, folder=folder, variables=variables | {"GOALS_DRAIN_SECONDS": "0"}) as process:
        service = ready(process)
        with socket.create_connection(("127.0.0.1", service.port)) as half:
            half.sendall(sent)
            probe(service)  # what was sent before has been read by the time this is answered
            process.terminate()
            assert process.wait(timeout=30) == 0


def test_a_request_under_way_is_finished(folder: Path, variables: dict[str, str]) -> None:
    form = b"goal_name=finished"
    with started(*SERVE, folder=folder, variables=variables | {"GOALS_DRAIN_SECONDS": "0"}) as process:
        service = ready(process)
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(FORM_HEAD % len(form) + form[:5])
            probe(service)
            process.terminate()
            read_until(process.stdout, re.compile('"event":"draining"'))
            client.sendall(form[5:])
            assert client.recv(65536).startswith(b"HTTP/1.1 303")
        assert process.wait() == 0


def test_the_log_of_a_machine_is_lines_of_json(folder: Path, variables: dict[str, str]) -> None:
    with started(*SERVE, folder=folder, variables=variables | {"GOALS_DRAIN_SECONDS": "0"}) as process:
        service = ready(process)
        httpx2.get(f"http://127.0.0.1:{service.port}/health", trust_env=False)
        process.terminate()
        output, errors = process.communicate()
    logged = [json.loads(line) for line in output.splitlines()]
    assert [line["event"] for line in logged] == ["request", "draining", "stopped"]
    assert errors == ""


def make(*arguments: str, folder: Path, umask: int = -1) -> subprocess.CompletedProcess[str]:
    """Run `make` on a copy of what it builds the environments from, with the `uv` and `python` that are in `folder`."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ("make", *arguments),  # noqa: S607  whichever the user has
        check=False,
        cwd=folder,
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        umask=umask,
    )


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    "environment_of", re.findall(r"(?m)^\$\(VENV\)/(\.\w+): .*\n\t\$\(NEED_PYTHON\)", (ROOT / "Makefile").read_text())
)
def test_make_names_a_python_that_is_too_old(tmp_path: Path, environment_of: str) -> None:
    # It speaks as a Python does whose version is older than what it is asked for.
    write_program(tmp_path / "python", f'exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 14); $2"')
    write_program(tmp_path / "uv", "echo installed")
    done = make(f".venv/{environment_of}", "PYTHON=python", folder=tmp_path)
    assert done.returncode
    assert "error: python is not Python 3.11 or newer" in done.stderr.splitlines()[0]
    assert done.stdout == ""


def test_others_may_read_what_make_installs_whatever_the_umask(tmp_path: Path) -> None:
    write_program(tmp_path / "uv", "mkdir -p .venv/bin; touch .venv/data .venv/bin/run; chmod u+x .venv/bin/run")
    done = make(".venv/.local", folder=tmp_path, umask=0o077)
    assert done.returncode == 0, done.stderr
    modes = {name: (tmp_path / ".venv" / name).stat().st_mode & 0o777 for name in ("bin", "bin/run", "data")}
    assert modes == {"bin": 0o755, "bin/run": 0o755, "data": 0o644}


DEV = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tools import dev; sys.exit(dev.main())",
)


@pytest.mark.timeout(300)
def test_under_dev_a_changed_template_starts_the_service_again(folder: Path) -> None:
    template = folder / "services" / "goals" / "page.html"
    template.parent.mkdir(parents=True)
    template.touch()
    with started(*DEV, folder=folder) as process:
        addresses(process)
        server = (folder / ".data" / "postgres" / "postmaster.pid").read_text().partition("\n")[0]
        template.write_text("changed")
        read_until(process.stdout, re.compile(r"services/goals/page\.html changed: restarting\n"))
        addresses(process)
        assert (folder / ".data" / "postgres" / "postmaster.pid").read_text().startswith(f"{server}\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not is_running(folder)


def test_dev_uses_the_server_that_it_is_given(folder: Path) -> None:
    with started(*DEV, folder=folder, variables={"DB_HOST": "127.0.0.1", "DB_PORT": "1"}) as process:
        assert process.stderr is not None
        assert "cannot reach PostgreSQL at 127.0.0.1, port 1" in process.stderr.readline()
        read_until(process.stdout, re.compile(r"goals exited: waiting for a change\n"))
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not (folder / ".data").exists()


def test_dev_says_what_makes_no_sense(folder: Path) -> None:
    with started(*DEV, folder=folder, variables={"GOALS_PORT": "x"}) as process:
        assert process.wait() == 1
        assert process.stderr is not None
        assert process.stderr.read().startswith("error: GOALS_PORT: ")
