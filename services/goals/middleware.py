"""Middleware for every request: logs, metrics, traces, limits, deadlines, headers, and the check of its origin."""

import asyncio
import re
import time
from collections.abc import Callable
from itertools import chain
from typing import Any
from urllib.parse import unquote

import structlog
import uuid_utils
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from goals import logs
from goals.limits import Limits
from goals.responses import answer
from goals.telemetry import OTHER_METHOD, RequestMetrics, describe_method

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}", re.ASCII)
_PORT = re.compile(r":[0-9]*\Z", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_ABSOLUTE_TARGET = re.compile(rb"https?://([^/?#@:][^/?#@]*)(/.*)?", re.IGNORECASE | re.DOTALL)
_CLOSING = {"connection": "close"}  # the rest of a refused request is not read (RFC 9112, 9.6)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110, 9.2.1
_trace_context = TraceContextTextMapPropagator()

SECURITY_HEADERS = [
    (
        b"content-security-policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'; "
            b"base-uri 'none'; frame-ancestors 'none'"
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # Not no-referrer: with it, browsers send `Origin: null` with our own forms.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-embedder-policy", b"require-corp"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
STRICT_TRANSPORT_SECURITY = (b"strict-transport-security", b"max-age=31536000")


def _to_origin_form(scope: Scope) -> None:
    """Turn a target in absolute form into origin form, with its authority as the Host (RFC 9112, 3.2.2)."""
    target = _ABSOLUTE_TARGET.fullmatch(scope["raw_path"])
    if target is not None:
        authority, path = target.groups(default=b"/")
        others = [(name, value) for name, value in scope["headers"] if name != b"host"]
        scope.update(raw_path=path, path=unquote(path.decode("ascii")), headers=[(b"host", authority), *others])


class Headers:
    """Adds the security headers to every response, and `Connection: close` while the service drains.

    As the outermost middleware, it also converts targets to origin form for the others.
    """

    def __init__(self, app: ASGIApp, *, hsts: bool, draining: Callable[[], bool]) -> None:
        self.app = app
        self._headers = [*SECURITY_HEADERS, *([STRICT_TRANSPORT_SECURITY] if hsts else [])]
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        _to_origin_form(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.raw.extend(self._headers)
                if self._draining():
                    headers.append("connection", "close")
            await send(message)

        return await self.app(scope, receive, send_with_headers)


class Record:
    """Measures and logs each request, gives it an id, and turns a crash into a response without details.

    If `X-Request-ID` is a plain token, it is the id, so that a gateway's id is kept; the response returns the id.
    """

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics, write: Callable[[dict[str, Any]], None]) -> None:
        self.app = app
        self._metrics = metrics
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid_utils.uuid7())
        logs.context.set({"request_id": request_id})
        label = self._metrics.start(scope["method"])
        status, size, error = 0, 0, None

        async def send_recorded(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).append("x-request-id", request_id)
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_recorded)
        except Exception as crash:
            error = type(crash).__qualname__
            log.exception("request crashed")
            if status:
                raise  # the response has started: only closing the connection tells the client
            await answer(scope, crash)(scope, receive, send_recorded)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", None)
            if status >= 500 and error is None:  # noqa: PLR2004  HTTP's own border
                error = str(status)
            self._metrics.end(label, scope["http_version"], scope["scheme"], route, status, error, seconds)
            self._write(
                {
                    "method": label,
                    "path": scope["raw_path"].decode("ascii"),
                    "route": route,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "bytes": size,
                }
            )
        return None


class Trace:
    """Records each request as a span that continues the caller's trace, and returns the span's context.

    The context arrives in `traceparent` and `tracestate` (W3C Trace Context) and is returned in `traceresponse` (W3C
    Trace Context HTTP Response Headers). The span does not contain the query string.
    """

    def __init__(self, app: ASGIApp, *, tracer: Tracer) -> None:
        self.app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {
            **describe_method(scope["method"]),
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
        }
        method = attributes["http.request.method"]
        name = method if method != OTHER_METHOD else "HTTP"  # as the conventions for HTTP spans name it
        with self._tracer.start_as_current_span(
            name, _trace_context.extract(carrier), SpanKind.SERVER, attributes
        ) as span:
            context = span.get_span_context()
            trace_id = format_trace_id(context.trace_id)
            logs.context.set({**logs.context.get(), "trace_id": trace_id})
            response = f"00-{trace_id}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"

            async def send_traced(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).append("traceresponse", response)
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:  # noqa: PLR2004  HTTP's own border
                        span.set_attribute("error.type", str(message["status"]))
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            try:
                await self.app(scope, receive, send_traced)
            except Exception as crash:
                span.set_attribute("error.type", type(crash).__qualname__)
                raise
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(f"{name} {route}")
                    span.set_attribute("http.route", route)
        return None


class Guard:
    """Refuses oversized, contradictory, slow, cross-origin or misdirected requests before any handler runs.

    It closes their connection. A handler gets a body only once it is complete, within `body_deadline` and `body_size`.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, hosts: tuple[str, ...] = ()) -> None:
        self.app = app
        self._limits = limits
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        started = False

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        seconds = self._limits.request_deadline if scope["method"] in SAFE_METHODS else self._limits.write_deadline
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                try:
                    self._check(scope, headers)
                    body = receive
                    if _has_body(headers):
                        body = await self._receive_all(receive, headers)
                        # The body has its own deadline: the whole request deadline is left for the database's retries.
                        deadline.reschedule(asyncio.get_running_loop().time() + seconds)
                    await self.app(scope, body, send_noted)
                except HTTPException as refusal:
                    # Hypercorn waits forever to deliver a body that nobody reads (its queue takes ten pieces).
                    discarding = asyncio.create_task(_discard(receive))
                    await answer(scope, refusal)(scope, receive, send_noted)
                    await discarding
                except ClientDisconnect:
                    pass  # a client that left in the middle of its body reads no response
        except TimeoutError:
            if not deadline.expired():
                raise
            if started:
                return None  # the response has started: the server closes the connection, and counts it
            late = HTTPException(503, "The request took too long.", {"retry-after": "1", "connection": "close"})
            await answer(scope, late)(scope, receive, send)
        return None

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        # RFC 9112, 6.1: such a message may be smuggled past a proxy; answer and close.
        if b"transfer-encoding" in headers and (b"content-length" in headers or scope["http_version"] == "1.0"):
            raise HTTPException(400, "The length of the request is ambiguous.", _CLOSING)
        if not scope["raw_path"].startswith((b"/", b"*")):
            raise HTTPException(400, "The request target is not an address on this service.", _CLOSING)
        limits, query, fields = self._limits, scope["query_string"], scope["headers"]
        if len(scope["raw_path"]) + len(query) + bool(query) > limits.target_size:
            raise HTTPException(414, f"The address is longer than {limits.target_size:,} bytes.", _CLOSING)
        # Hypercorn's own limit depends on how many bytes happen to arrive at once.
        if len(fields) > limits.headers_number or sum(map(len, chain(*fields))) > limits.headers_size:
            too_long = f"The header has more than {limits.headers_number} fields or {limits.headers_size:,} bytes."
            raise HTTPException(431, too_long, _CLOSING)
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts and _PORT.sub("", host) not in self._hosts:
            raise HTTPException(400, "This service does not answer to that host name.", _CLOSING)
        if scope["method"] not in SAFE_METHODS and _is_cross_origin(headers, host):
            names = (b"host", b"origin", b"sec-fetch-site")
            log.warning(
                "cross-origin request refused; if this service's own page sent it, the proxy must pass Host unchanged",
                **{name.decode().replace("-", "_"): _quote(headers[name]) for name in names if name in headers},
            )
            raise HTTPException(403, "Another website sent this request.", _CLOSING)

    async def _receive_all(self, receive: Receive, headers: dict[bytes, bytes]) -> Receive:
        too_long = HTTPException(413, f"The request body is longer than {self._limits.body_size:,} bytes.", _CLOSING)
        declared = headers.get(b"content-length", b"").lstrip(b"0") or b"0"
        if len(declared) > len(str(self._limits.body_size)) or int(declared) > self._limits.body_size:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_deadline):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > self._limits.body_size:
                        raise too_long
                    more = message.get("more_body", False)
        except TimeoutError:
            too_slow = f"The request body did not arrive within {self._limits.body_deadline:g} seconds."
            raise HTTPException(408, too_slow, _CLOSING) from None

        async def receive_body() -> Message:
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return receive_body


def _is_cross_origin(headers: dict[bytes, bytes], host: str) -> bool:
    """Whether a browser reports that another site made this request.

    No cookie is involved; the check only keeps other sites from posting. A browser with Fetch Metadata sends
    `Sec-Fetch-Site` (W3C), an older one `Origin` (RFC 6454); a client that sends neither is not a browser. Schemes
    are compared only by their default ports: a gateway may terminate TLS.
    """
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in {b"same-origin", b"none"}
    origin = headers.get(b"origin")
    if origin is None:
        return False
    scheme, _, authority = origin.decode("latin-1").lower().partition("://")
    if scheme not in _DEFAULT_PORTS:
        return True
    name, port = _split(authority)
    ports = {port or _DEFAULT_PORTS[scheme]}
    if _DEFAULT_PORTS[scheme] in ports:
        ports |= {"", "80"} if scheme == "https" else {""}
    host_name, host_port = _split(host)
    return not host_name or host_name != name or host_port not in ports


def _split(authority: str) -> tuple[str, str]:
    """Return the host and the port of an authority; a missing one is empty."""
    port = _PORT.search(authority)
    return (authority, "") if port is None else (authority[: port.start()], port.group()[1:])


def _quote(value: bytes) -> str:
    """Return a request's field in a form that is safe to log: no control characters, and at most 255 bytes."""
    return value[:255].decode("latin-1").encode("ascii", "backslashreplace").decode()


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


async def _discard(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
