"""Structured logs on standard output: JSON lines for machines, or readable lines for people."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import IO, Any, BinaryIO, Generic, Literal, TextIO, TypeVar, cast

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

AnyText = TypeVar("AnyText", str, bytes)
CONSOLE_WIDTH = 80
LogFormat = Literal["auto", "json", "console"]

context: ContextVar[Mapping[str, str]] = ContextVar("context", default=MappingProxyType({}))
"""The ids of the current request and its trace; every event that is logged during the request includes them."""


def _add_context(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {**context.get(), **event}


class Output(Generic[AnyText]):
    """Standard output that never fails: an unwritable log must not affect the service."""

    def __init__(self, stream: IO[AnyText]) -> None:
        self._stream: IO[AnyText] = stream

    def write(self, text: AnyText) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _is_readable(log_format: LogFormat) -> bool:
    return log_format == "console" or (log_format == "auto" and sys.stdout.isatty())


def request_writer(log_format: LogFormat) -> Callable[[dict[str, Any]], None]:
    """Return the function that writes the log line of one request.

    JSON lines bypass structlog, whose processors would cost as much as the rest of a request's record, and the lines
    of one iteration of the event loop are written by one system call.
    """
    if _is_readable(log_format):
        output = Output(sys.stdout)

        def write_readable(fields: dict[str, Any]) -> None:
            output.write(_describe(**fields) + "\n")
            output.flush()

        return write_readable
    stream = Output(sys.stdout.buffer)
    is_due = False

    def flush() -> None:
        nonlocal is_due
        is_due = False
        stream.flush()

    def write(fields: dict[str, object]) -> None:
        nonlocal is_due
        line = {
            "event": "request",
            "level": "info",
            "time": datetime.now(UTC),
            **context.get(),
            **fields,
        }
        del line["path"]  # unlike the route, the path has unbounded values
        stream.write(orjson.dumps(line, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))
        if not is_due:
            is_due = True
            asyncio.get_running_loop().call_soon(flush)

    return write


def _describe(*, method: str, path: str, status: int, seconds: float, **_others: object) -> str:
    """Return a request as a line that fits a terminal: time, status, method, path, duration."""
    duration = f"{seconds * 1000:.1f} ms"
    start = f"{datetime.now().astimezone():%H:%M:%S}  {int(status) or '---'}  {method:<6}  "
    room = max(CONSOLE_WIDTH - len(start) - max(len(duration), 10) - 2, 1)
    return f"{start}{path if len(path) <= room else path[: room - 1] + '…':<{room}}  {duration:>10}"


def configure(log_format: LogFormat) -> None:
    """Send structlog's events and the standard library's records through the same processors."""
    readable = _is_readable(log_format)
    common: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _add_context,
    ]
    last: list[Processor] = (
        [
            # The rich traceback would show the values of variables, including a goal's text.
            structlog.dev.ConsoleRenderer(timestamp_key="time", exception_formatter=structlog.dev.plain_traceback)
        ]
        if readable
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(orjson.dumps)]
    )
    structlog.configure(
        processors=[*common, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", Output(sys.stdout)))
        if readable
        else structlog.BytesLoggerFactory(cast("BinaryIO", Output(sys.stdout.buffer))),
    )
    # Libraries log through the standard library; their records go through the same processors.
    handler = logging.StreamHandler(Output(sys.stdout))
    decode: list[Callable[..., str]] = [] if readable else [lambda _logger, _method, line: line.decode()]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, *decode],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
