"""Users in plain Python: the interface of Locust's `HttpUser`, with the scenarios' client and measurements."""

import base64
import json as json_module
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from email.message import Message
from functools import cached_property
from http import HTTPStatus
from http.cookiejar import CookieJar
from operator import attrgetter
from time import perf_counter, time
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import quote, urlencode, urljoin, urlsplit
from urllib.request import Request as CookieRequest

import gevent
from gevent import Greenlet
from gevent.pool import Group
from locust import TaskSet, User, constant
from locust.env import Environment
from locust.exception import CatchResponseError, LocustError, StopUser

from loadtest.client import Client, Connector, Response, encode
from loadtest.recorder import Recorder
from loadtest.scenario import Request, Target, add_header

MOST_REDIRECTS = 30
_MOST_REMEMBERED = 1000
_LONGEST_KILL = 1.0  # seconds
_MOVED = frozenset({301, 302, 303, 307, 308})

Pairs = Mapping[str, Any] | Iterable[tuple[str, Any]]


class PythonRun:
    """What the Python users of this process share for one run; `fire` is Locust's request event, or None."""

    def __init__(self, recorder: Recorder, fire: Callable[..., None] | None) -> None:
        self.recorder = recorder
        self.fire = fire
        self._connectors: dict[tuple[Target, float], Connector] = {}

    def connect(self, target: Target, timeout: float) -> "Client[PythonResponse]":
        key = (target, timeout)
        if key not in self._connectors:
            self._connectors[key] = Connector(target, timeout, self.recorder.add_connection)
        return Client(self._connectors[key], PythonResponse)

    def close(self) -> None:
        for connector in self._connectors.values():
            connector.close()


class PythonResponse(Response):
    """The outcome of a request, with the attributes of Locust's response; a context manager for `catch_response`.

    Rarely used attributes are computed on demand, because every request creates an object.
    """

    url: str = ""
    method: str = ""
    name: str = ""
    history: Sequence[str] = ()
    """The addresses that redirected."""
    context: Mapping[str, Any] = MappingProxyType({})
    report: "Callable[[PythonResponse], None] | None" = None
    """Called at the end of a `with`, if the request was made with `catch_response`."""
    _result: str | bool | None = None

    @property
    def status_code(self) -> int:
        return self.status

    @property
    def elapsed(self) -> timedelta:
        return timedelta(seconds=self.seconds)

    @property
    def request_meta(self) -> dict[str, Any]:
        """The arguments of Locust's request event."""
        return {
            "request_type": self.method,
            "name": self.name,
            "response_time": 1000 * self.seconds,
            "response_length": len(self.content),
            "context": self.context,
            "start_time": time() - self.seconds,
            "url": self.history[0] if self.history else self.url,
        }

    @property
    def ok(self) -> bool:
        return self.failure_reason is None

    @property
    def text(self) -> str:
        return self.content.decode(self.headers.get_content_charset("utf-8"), errors="replace")

    @cached_property
    def headers(self) -> Message:
        """The headers; their names are case-insensitive."""
        return _parse_headers(self.head)

    @property
    def failure_reason(self) -> str | None:
        """Why the request counts as failed: the reason given to `failure`, or the error or status, as in a scenario."""
        if self._result is not None:
            return None if isinstance(self._result, bool) else self._result
        return self.error or (f"status {self.status}" if self.status >= 400 else None)  # noqa: PLR2004  as k6

    def json(self) -> Any:
        return json_module.loads(self.content)

    def raise_for_status(self) -> None:
        if self.error or self.status >= 400:  # noqa: PLR2004  what HTTP calls an error
            raise CatchResponseError(self.error or f"status {self.status}")

    def success(self) -> None:
        """Count this request as successful, whatever its status; for a `with` with `catch_response`."""
        self._result = True

    def failure(self, reason: object) -> None:
        """Count this request as failed, whatever its status; for a `with` with `catch_response`."""
        self._result = str(reason)

    def __enter__(self) -> Self:
        if self.report is None:
            raise LocustError("to use a request in a `with`, pass catch_response=True")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        handled = isinstance(error, CatchResponseError)
        if self._result is None and isinstance(error, Exception):
            self._result = str(error) or type(error).__name__
        assert self.report is not None  # noqa: S101  `__enter__` has checked it
        self.report(self)
        return handled


class PythonClient:
    """`self.client`: requests paths or addresses like Locust's `HttpSession`, and measures them like a scenario.

    Unlike a scenario, it keeps cookies and follows redirects; a request with redirects is measured as one. It does not
    support `files`, `proxies`, `hooks`, `stream`, `verify` or `cert`.
    """

    def __init__(self, base_url: str, user: "GoalsUser", run: PythonRun) -> None:
        self.base_url = base_url
        self.headers: dict[str, str] = {}
        """Sent with each request."""
        self.auth: tuple[str, str] | None = None
        self.cookies = CookieJar()
        self.request_name: str | None = None
        self._user = user
        self._run = run
        self._clients: dict[tuple[str, float | None], Client[PythonResponse]] = {}
        self._remembered: dict[tuple[str, str, str | None], Sending] = {}

    @contextmanager
    def rename_request(self, name: str) -> Iterator[None]:
        """Measure the requests within this `with` under one name."""
        self.request_name = name
        try:
            yield
        finally:
            self.request_name = None

    def get(self, url: str, name: str | None = None, **options: Any) -> PythonResponse:
        return self.request("GET", url, name, **options) if options else self._repeat("GET", url, name)

    def options(self, url: str, **options: Any) -> PythonResponse:
        return self.request("OPTIONS", url, **options)

    def head(self, url: str, **options: Any) -> PythonResponse:
        return self.request("HEAD", url, **{"allow_redirects": False, **options})

    def post(self, url: str, data: Any = None, json: Any = None, **options: Any) -> PythonResponse:
        return self.request("POST", url, data=data, json=json, **options)

    def put(self, url: str, data: Any = None, **options: Any) -> PythonResponse:
        return self.request("PUT", url, data=data, **options)

    def patch(self, url: str, data: Any = None, **options: Any) -> PythonResponse:
        return self.request("PATCH", url, data=data, **options)

    def delete(self, url: str, name: str | None = None, **options: Any) -> PythonResponse:
        return self.request("DELETE", url, name, **options) if options else self._repeat("DELETE", url, name)

    def request(
        self,
        method: str,
        url: str,
        name: str | None = None,
        *,
        catch_response: bool = False,
        context: Mapping[str, Any] | None = None,
        params: Pairs | None = None,
        data: Pairs | str | bytes | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = True,
    ) -> PythonResponse:
        """Send a request and measure it under `name` or its path; errors are in the response, and are not raised."""
        name = name or self.request_name
        given = params or data is not None or json is not None or headers or cookies or auth or timeout
        plain = not (given or self._adds_headers())
        sending = self._remembered.get((method, url, name)) if plain else None
        if sending is None:
            body, kind = _encode_body(data, json)
            all_headers = {**self.headers, **(headers or {})}
            if kind:
                add_header(all_headers, "Content-Type", kind)
            if login := auth or self.auth:
                credentials = base64.b64encode(":".join(login).encode()).decode()
                add_header(all_headers, "Authorization", f"Basic {credentials}")
            if cookies:
                add_header(all_headers, "Cookie", "; ".join(f"{key}={value}" for key, value in cookies.items()))
            sending = self._encode(method, self._make_address(url, params), name, all_headers, body, timeout)
            if plain and len(self._remembered) < _MOST_REMEMBERED:
                self._remembered[method, url, name] = sending
        return self._perform(sending, context, catch_response=catch_response, allow_redirects=allow_redirects)

    def _repeat(self, method: str, url: str, name: str | None) -> PythonResponse:
        """Send a request without options; if it was sent before, reuse its encoded form."""
        sending = self._remembered.get((method, url, name or self.request_name))
        if sending is None or self._adds_headers():
            return self.request(method, url, name)
        return self._perform(sending)

    def _adds_headers(self) -> object:
        return self.headers or self.auth or self.cookies._cookies  # type: ignore[attr-defined]  # noqa: SLF001  its length iterates over all cookies

    def _perform(
        self,
        sending: "Sending",
        context: Mapping[str, Any] | None = None,
        *,
        catch_response: bool = False,
        allow_redirects: bool = True,
    ) -> PythonResponse:
        response = self._send(sending)
        if allow_redirects and response.status in _MOVED:
            response = self._follow(response, sending)
        response.name, response.method = sending.name, sending.method
        if self._run.fire:
            response.context = {**self._user.context(), **(context or {})}
        if catch_response:
            response.report = self._report
        else:
            self._report(response)
        return response

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _make_address(self, url: str, params: Pairs | None) -> str:
        address = url if url.lower().startswith(("http://", "https://")) else f"{self.base_url}{url}"
        if params:
            address += ("&" if "?" in address else "?") + urlencode(_list_pairs(params), doseq=True)
        return _escape(address)

    def _encode(
        self, method: str, address: str, name: str | None, headers: dict[str, str], body: bytes, timeout: float | None
    ) -> "Sending":
        parts = urlsplit(address)
        origin = f"{parts.scheme}://{parts.netloc}"
        target = Target.parse(origin)
        if self.cookies._cookies:  # type: ignore[attr-defined]  # noqa: SLF001  as above
            request = CookieRequest(address)  # noqa: S310  nothing is opened: it only carries what a jar asks for
            self.cookies.add_cookie_header(request)
            if cookie := request.get_header("Cookie"):
                given = next((value for name, value in headers.items() if name.lower() == "cookie"), None)
                headers = {name: value for name, value in headers.items() if name.lower() != "cookie"}
                headers["Cookie"] = f"{cookie}; {given}" if given else cookie
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        wire = encode(Request(method, path, headers, body), target)
        client = self._clients.get((origin, timeout))
        if client is None:
            client = self._clients[origin, timeout] = self._run.connect(target, timeout or self._user.timeout)
        return Sending(client, wire, method, address, name or path, headers, body, timeout)

    def _send(self, sending: "Sending") -> PythonResponse:
        client, recorder = sending.client, self._run.recorder
        self._user.has_yielded = True
        try:
            response = client.request(sending.wire, has_body=sending.method != "HEAD")
        except BaseException:
            recorder.interrupted += 1
            raise
        recorder.sent_seconds += response.seconds
        response.url = sending.address
        if client.pause:
            self._user.pause(client.pause)
        if b"set-cookie:" in response.head.lower():
            request = CookieRequest(sending.address)  # noqa: S310  nothing is opened: it only carries what a jar asks for
            self.cookies.extract_cookies(_CookieResponse(response.headers), request)  # type: ignore[arg-type]  # all that a jar asks for
        return response

    def _follow(self, response: PythonResponse, sending: "Sending") -> PythonResponse:
        """Follow redirects (RFC 9110, 15.4) and return the last response, whose duration includes all of them."""
        begun = perf_counter() - response.seconds
        history: list[str] = []
        while response.status in _MOVED and (place := response.header("Location")):
            if len(history) == MOST_REDIRECTS:
                response = PythonResponse(0, b"", b"", 0.0, f"more than {MOST_REDIRECTS} redirects")
                break
            history.append(sending.address)
            method, body, headers = sending.method, sending.body, dict(sending.headers)
            there = _escape(urljoin(sending.address, place))
            dropped = {"cookie"}  # the jar adds the right ones
            if response.status == HTTPStatus.SEE_OTHER or (
                response.status in {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND} and method == "POST"
            ):
                method, body = "HEAD" if method == "HEAD" else "GET", b""
                dropped.add("content-type")
            if urlsplit(there).netloc != urlsplit(sending.address).netloc:
                dropped.add("authorization")
            headers = {name: value for name, value in headers.items() if name.lower() not in dropped}
            try:
                sending = self._encode(method, there, None, headers, body, sending.timeout)
            except ValueError as error:
                response = PythonResponse(0, b"", b"", 0.0, f"redirected to {there}: {error}")
                break
            response = self._send(sending)
        response.url, response.history, response.seconds = sending.address, history, perf_counter() - begun
        return response

    def _report(self, response: PythonResponse) -> None:
        run, failure = self._run, response.failure_reason
        series = run.recorder.add_series(response.name, response.method)
        series.received += response.received
        series.add(response.seconds, failure, len(response.content))
        if run.fire:
            exception = CatchResponseError(failure) if failure else None
            run.fire(**response.request_meta, response=response, exception=exception)


class Sending(NamedTuple):
    """A request as it is sent; `name` is the name under which it is measured."""

    client: Client[PythonResponse]
    wire: bytes
    method: str
    address: str
    name: str
    headers: dict[str, str]
    body: bytes
    timeout: float | None


class GoalsUser(User):
    """Base class of users in plain Python, like Locust's `HttpUser`: `@task`, `wait_time`, `self.client`.

    Its requests, checks and thresholds are measured and judged like those of a scenario.
    """

    abstract = True
    wait_time = constant(0)
    timeout: float = 30.0
    """Seconds for one request."""
    thresholds: ClassVar[Mapping[str, list[Any]]] = {}
    """As in a scenario: `{"http_req_duration{name:page}": ["p(95)<250"]}`; the thresholds of all classes apply."""
    current: ClassVar[PythonRun | None] = None
    """The current run, set before users are spawned; None if it could not be prepared."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._run = GoalsUser.current
        self.has_yielded = False
        """Whether other greenlets have had a turn since the last wait; any request gives them one."""
        self._has_to_stop = False
        if self._run is not None:
            self.client = PythonClient(str(self.host or "").rstrip("/"), self, self._run)

    def check(self, name: str, ok: object) -> bool:
        """Count a check as passed or failed, and return which, so that a task can depend on it."""
        if self._run is not None:
            rate = self._run.recorder.add_check(name)
            if ok:
                rate.passes += 1
            else:
                rate.fails += 1
        return bool(ok)

    def start(self, group: Group) -> Greenlet:
        if self._run is None:  # the reason is reported elsewhere, once
            self._group, self._greenlet = group, group.spawn(lambda _: None, self)
            return self._greenlet
        greenlet = super().start(group)
        self._run.recorder.add_users(1)
        self._run.recorder.adjust_active_users(1)
        greenlet.link(self._leave)
        return greenlet

    def stop(self, force: bool = False) -> bool:  # noqa: FBT001, FBT002  Locust's signature
        self._has_to_stop = True
        return bool(super().stop(force))

    def pause(self, seconds: float) -> None:
        """Sleep; this time does not count as work."""
        assert self._run is not None  # noqa: S101  else it has nothing to do
        self._run.recorder.adjust_active_users(-1)
        try:
            gevent.sleep(seconds)
        finally:
            self._run.recorder.adjust_active_users(1)

    def end_iteration(self, seconds: float) -> None:
        """Wait between two tasks; skip a wait of 0 unless others need a turn: it costs a fifth of a request."""
        assert self._run is not None  # noqa: S101  as above
        self._run.recorder.iterations += 1
        if seconds > 0 or not self.has_yielded:
            self.pause(seconds)
            if self._has_to_stop:
                # Like all waiting users, it is killed next: do not start a request that would be cut off.
                gevent.sleep(_LONGEST_KILL)
                raise StopUser
        self.has_yielded = False

    def _leave(self, _: Greenlet) -> None:
        assert self._run is not None  # noqa: S101  as above
        self._run.recorder.adjust_active_users(-1)
        self._run.recorder.add_users(-1)
        self.client.close()


def _sleep(task_set: TaskSet, seconds: float) -> None:
    user = task_set.user
    if isinstance(user, GoalsUser):
        user.end_iteration(seconds)
    else:
        gevent.sleep(seconds)


# An iteration ends with the wait of any task set, including a nested one. Locust has no event for it.
TaskSet._sleep = _sleep  # type: ignore[method-assign]  # noqa: SLF001
# The same property without a Python frame: each iteration reads it five times, a twentieth of a request's cost.
TaskSet.user = property(attrgetter("_user"))  # type: ignore[assignment,method-assign]


class _CookieResponse(NamedTuple):
    headers: Message

    def info(self) -> Message:
        return self.headers


def _parse_headers(head: bytes) -> Message:
    headers = Message()
    for line in head.split(b"\r\n\r\n", 1)[0].split(b"\r\n")[1:]:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip()] = value.strip()
    return headers


def _escape(address: str) -> str:
    """Return the address without a fragment, with characters that a request line cannot contain percent-encoded."""
    return quote(address.partition("#")[0], safe="!#$%&'()*+,/:;=?@[]~")


def _list_pairs(pairs: Pairs) -> list[tuple[str, Any]]:
    return list(pairs.items() if isinstance(pairs, Mapping) else pairs)


def _encode_body(data: Pairs | str | bytes | None, json: Any) -> tuple[bytes, str | None]:
    """Return the body, and its media type if the kind of argument determines it."""
    if json is not None:
        return json_module.dumps(json).encode(), "application/json"
    match data:
        case None:
            return b"", None
        case bytes():
            return data, None
        case str():
            return data.encode(), None
    return urlencode(_list_pairs(data), doseq=True).encode(), "application/x-www-form-urlencoded"
