"""The commands: `python -m goals serve`, `migrate`, `widen`, `openapi`, `check-restore`; `up` starts everything."""

import os
import sys

from goals import otel, signals
from goals.errors import ConfigurationError

signals.leave_at_once()
try:
    otel.check(os.environ)
except ConfigurationError as error:
    sys.exit(f"error: {error}")

import argparse
import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import structlog

from goals import app, embedded, logs, widening
from goals.limits import Limits
from goals.models import SCHEMA_REVISION
from goals.openapi import DOCUMENT
from goals.settings import Settings, read_settings

log = structlog.get_logger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 1 with the cause and the remedy in one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m goals", description="A goal tracker on PostgreSQL.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run in (up, serve, migrate, widen, openapi, check_restore):
        summary = (run.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(run.__name__.replace("_", "-"), help=summary, description=summary)
        command.set_defaults(run=run)
        if run is migrate:
            command.add_argument("--dry-run", action="store_true", help="only check, and print what would be done")
        # part azure
        if run is check_restore:
            command.add_argument("folder", type=Path, help="the folder that k8s/components/restore-check mounts")
        # end azure
    if sys.stdout is None:  # the shell's `>&-`
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  for as long as the program runs
    options = vars(parser.parse_args(arguments))
    run = options.pop("run")
    try:
        run(**options)
        _say("")  # a failure to flush what is buffered is an error too
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1  # the reader closed the pipe
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # At exit Python would flush again, and print a message and set an exit code of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _say(text: str) -> None:
    """Print optional text. A closed pipe is ignored; any other failure to write raises a `ConfigurationError`."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to standard output ({error.strerror}): free some space or redirect the output"
        ) from None


def up() -> None:
    """Start PostgreSQL unless DB_HOST is set, migrate, and serve until Ctrl-C."""
    signals.leave_in_order()
    embedded.ignore_client_variables()
    threading.Thread(target=_stop_without, args=(os.getppid(),), daemon=True).start()
    settings = read_settings()
    if "goals_drain_seconds" not in settings.model_fields_set:
        settings = settings.model_copy(update={"goals_drain_seconds": 0})
    logs.configure(settings.goals_log_format)
    _say("starting\n" if settings.db_host else f"starting, with PostgreSQL {embedded.VERSION} in {embedded.DATA}/\n")
    with contextlib.ExitStack() as running:
        if settings.db_host is None:
            socket = running.enter_context(embedded.run(embedded.DATA))
            settings = settings.model_copy(update=embedded.SETTINGS | {"db_host": str(socket)})
        running.callback(signals.ignore)
        _migrate(settings, quiet=True)
        asyncio.run(app.serve(settings, Limits(), announce=_welcome(settings)))


def serve() -> None:
    """Serve the page, the API and the ops port until SIGTERM."""
    settings = _read_remote_settings()
    logs.configure(settings.goals_log_format)
    _ignore_client_variables()
    asyncio.run(app.serve(settings, Limits()))


def migrate(*, dry_run: bool) -> None:
    """Upgrade the schema to the newest revision; concurrent runs are safe."""
    signals.leave_in_order()
    settings = read_settings()
    logs.configure(settings.goals_log_format)
    _ignore_client_variables()
    _migrate(settings, dry_run=dry_run)


# part adoption
def widen() -> None:
    """Make an adopted table's integer ids bigint while clients keep working; a second run resumes an unfinished one."""
    signals.leave_in_order()
    settings = _read_remote_settings()
    logs.configure(settings.goals_log_format)
    _ignore_client_variables()
    asyncio.run(widening.widen(settings, Limits()))


# end adoption
# part azure
def check_restore(*, folder: Path) -> None:
    """Restore the backups into a scratch cluster, compare it with the database, and remove it."""
    from goals import recovery  # noqa: PLC0415  no other command needs it

    signals.leave_in_order()
    settings = _read_remote_settings()
    logs.configure(settings.goals_log_format)
    _ignore_client_variables()
    recovery.check(folder, settings, Limits())


# end azure
def openapi() -> None:
    """Print the API's OpenAPI document."""
    sys.stdout.buffer.write(orjson.dumps(DOCUMENT, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


def _migrate(settings: Settings, *, quiet: bool = False, dry_run: bool = False) -> None:
    if not Path("alembic.ini").is_file():
        raise ConfigurationError("there is no alembic.ini here: run this in the project's root")
    # Not at the top: these imports would delay the start of `serve` by a fifth of a second.
    from alembic import command  # noqa: PLC0415  see above
    from alembic.config import Config  # noqa: PLC0415  see above
    from alembic.script.revision import ResolutionError  # noqa: PLC0415  see above
    from alembic.util import CommandError  # noqa: PLC0415  see above

    try:
        attributes = {"settings": settings, "quiet": quiet or dry_run, "dry_run": dry_run}
        command.upgrade(Config("alembic.ini", attributes=attributes), "head")
    except CommandError as error:
        # An unknown revision with a higher number comes from a later version that was rolled back to this one.
        unknown = error.__cause__
        if not isinstance(unknown, ResolutionError) or unknown.argument <= SCHEMA_REVISION:
            raise ConfigurationError(str(error)) from None
        log.warning("schema newer than this version: left unchanged", revision=unknown.argument, needs=SCHEMA_REVISION)


def _ignore_client_variables() -> None:
    if names := embedded.ignore_client_variables():
        log.warning("ignored: only DB_… and SSL configure the connection to PostgreSQL", variables=names)


def _read_remote_settings() -> Settings:
    settings = read_settings()
    if settings.db_host is None:
        raise ConfigurationError("DB_HOST is not set: name a PostgreSQL server, or use `make up`, which starts one")
    return settings


def _stop_without(parent: int) -> None:
    """Stop when the parent process is gone, so that a killed `make` leaves no service behind that holds its ports."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _welcome(settings: Settings) -> Callable[[int, int], None]:
    host = f"[{settings.goals_bind}]" if ":" in settings.goals_bind else settings.goals_bind

    def announce(port: int, ops_port: int) -> None:
        output = logs.Output(sys.stdout)
        output.write(
            f"\n  the page        http://{host}:{port}"
            f"\n  for operators   http://{host}:{ops_port}  (/readyz /livez /version /metrics)"
            # part loadtest
            "\n  load test       make load-ui, in another terminal"
            # end loadtest
            "\n  stop            Ctrl-C\n\n"
        )
        output.flush()

    return announce


sys.exit(main())
