"""Virtual users: their iterations, in a closed loop or as arrivals that do not wait for earlier ones."""

import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate, count
from time import perf_counter
from typing import ClassVar
from uuid import uuid4

import gevent
from gevent.pool import Group
from locust import User, task
from locust.exception import StopUser
from locust.user.task import LOCUST_STATE_STOPPING

from loadtest import client
from loadtest.checks import Check, parse_check
from loadtest.client import Response
from loadtest.executors import Open
from loadtest.journal import Journal
from loadtest.recorder import Rate, Recorder, Series
from loadtest.scenario import Request, Scenario, Source, Step, Target, parse_source

_LONGEST_RETRY_PAUSE = 1.0
_FIRST_RETRY_PAUSE = 0.05
_LOOK_SECONDS = 0.2  # how late a waiting user may notice that it has to stop

SERVER_ERRORS = range(500, 600)


class BoundStep:
    """A step prepared for a run: with parsed checks, its counters, and its encoded bytes if they do not vary."""

    def __init__(self, step: Step, target: Target, recorder: Recorder) -> None:
        self.step = step
        self.name = step.label
        self.attempts = step.attempts
        self.series: Series = recorder.add_series(step.label, step.method)
        self.checks: list[tuple[Rate, Check]] = [
            (recorder.add_check(name), parse_check(text)) for name, text in step.checks.items()
        ]
        self.save: dict[str, Source] = {name: parse_source(text) for name, text in step.save.items()}
        self.journal: dict[str, Source] = {name: parse_source(text) for name, text in step.journal.items()}
        self._target = target
        self._fixed: tuple[Request, bytes] | None = None
        if not step.variables:
            self._fixed = self._encode({})

    def render(self, values: Mapping[str, str]) -> tuple[Request, bytes]:
        return self._fixed or self._encode(values)

    def _encode(self, values: Mapping[str, str]) -> tuple[Request, bytes]:
        request = self.step.render(self._target, values)
        return request, client.encode(request, self._target)


class Run:
    """What all users of this process share for one run.

    `fire` is Locust's request event, called for every request; `None` if nothing listens to it.
    """

    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        recorder: Recorder,
        *,
        journal: Journal | None,
        fire: Callable[..., None] | None,
        part: int,
        parts: int,
    ) -> None:
        self.scenario = scenario
        self.target = target
        self.recorder = recorder
        self.journal = journal
        self.fire = fire
        self.part = part
        self.parts = parts
        self.needs_values = any(step.variables for task in scenario.task for step in task.step)
        self.connector = client.Connector(target, scenario.timeout, recorder.add_connection)
        self._tasks = [[BoundStep(step, target, recorder) for step in task.step] for task in scenario.task]
        self._weights = list(accumulate(task.weight for task in scenario.task))
        # User numbers differ between processes, so that a journal distinguishes the users.
        self.numbers = count(part, parts)

    def pick(self) -> list[BoundStep]:
        if len(self._tasks) == 1:
            return self._tasks[0]
        return random.choices(self._tasks, cum_weights=self._weights)[0]  # noqa: S311  not for secrets

    def close(self) -> None:
        self.connector.close()
        if self.journal:
            self.journal.close()


class VirtualUser:
    """One connection and the iterations on it, until `is_stopping` returns true."""

    def __init__(self, run: Run, is_stopping: Callable[[], bool]) -> None:
        self._run = run
        self._is_stopping = is_stopping
        self._client = client.Client(run.connector, Response)
        self._number = next(run.numbers)
        self._iteration = -1
        run.recorder.add_users(1)

    def close(self) -> None:
        self._client.close()
        self._run.recorder.add_users(-1)

    def iterate(self, due: float | None = None) -> None:
        """Perform one task. `due` is when an arrival should have started: its latency counts from there.

        If the run ends while a task waits to retry, the task is abandoned without the checks of that step.
        """
        run = self._run
        run.recorder.iterations += 1
        self._iteration += 1
        values: dict[str, str] = {}
        if run.needs_values:
            values = {"uuid": str(uuid4()), "user": str(self._number), "iteration": str(self._iteration)}
        for step in run.pick():
            response = self._send(step, values, due)
            if response is None:
                return
            due = None
            for rate, check in step.checks:
                if check(response):
                    rate.passes += 1
                else:
                    rate.fails += 1
            for name, source in step.save.items():
                value = _extract(source, response)
                if value is None:
                    return  # nothing to continue with, such as no goal to remove
                values[name] = value

    def pause(self, seconds: float) -> None:
        """Wait until the time is over or the user has to stop; this time does not count as work."""
        end = perf_counter() + seconds
        self._run.recorder.adjust_active_users(-1)
        try:
            while (left := end - perf_counter()) > 0 and not self._is_stopping():
                gevent.sleep(min(left, _LOOK_SECONDS))
        finally:
            self._run.recorder.adjust_active_users(1)

    def _send(self, step: BoundStep, values: Mapping[str, str], due: float | None) -> Response | None:
        """Return the step's last response; `None` if the run ended before a retry."""
        request, wire = step.render(values)
        journal = self._run.journal
        attempt = 1
        while True:
            begun, begun_at = perf_counter(), time.time()
            try:
                response = self._client.request(wire)
            except BaseException:
                self._run.recorder.interrupted += 1
                if journal:
                    waited = Response(0, b"", b"", perf_counter() - begun, "interrupted")
                    self._write(journal, step, attempt, values, request, begun_at, waited)
                raise
            self._record(step, response, due)
            if journal:
                self._write(journal, step, attempt, values, request, begun_at, response)
            if self._client.pause:
                self.pause(self._client.pause)
            if attempt == step.attempts or not (response.error or response.status in SERVER_ERRORS):
                return response
            self.pause(_choose_pause(response, attempt))
            if self._is_stopping():
                return None
            attempt, due = attempt + 1, None

    def _record(self, step: BoundStep, response: Response, due: float | None) -> None:
        run, series, seconds = self._run, step.series, response.seconds
        recorder = run.recorder
        recorder.sent_seconds += seconds
        if due is not None:
            recorder.service.add(seconds)
            seconds = perf_counter() - due
        series.received += response.received
        failure = None
        if response.error or response.status >= 400:  # noqa: PLR2004  as k6's http_req_failed
            failure = response.error or f"status {response.status}"
        series.add(seconds, failure, len(response.content))
        if run.fire:
            run.fire(
                request_type=series.method,
                name=step.name,
                response_time=1000 * seconds,
                response_length=len(response.content),
                response=response,
                context={},
                exception=Exception(failure) if failure else None,
                start_time=time.time() - seconds,
                url=f"{run.target.scheme}://{run.target.authority}",
            )

    def _write(
        self,
        journal: Journal,
        step: BoundStep,
        attempt: int,
        values: Mapping[str, str],
        request: Request,
        begun_at: float,
        response: Response,
    ) -> None:
        answer = {"answer": {name: _show(source, response) for name, source in step.journal.items()}}
        journal.write(
            time=time.time(),
            begun=begun_at,
            user=self._number,
            iteration=self._iteration,
            step=step.name,
            attempt=attempt,
            uuid=values.get("uuid"),
            method=request.method,
            path=request.path,
            sent=request.body.decode(),
            status=response.status,
            error=response.error,
            seconds=round(response.seconds, 6),
            **(answer if step.journal else {}),
        )


def _choose_pause(response: Response, attempt: int) -> float:
    """Return the seconds until the next attempt: from `Retry-After`, or growing with each attempt."""
    asked = response.header("Retry-After") or ""
    if asked.isdecimal():
        return int(asked) * random.uniform(1, 1.1)  # noqa: S311  not for secrets
    longest = min(_FIRST_RETRY_PAUSE * 2**attempt, _LONGEST_RETRY_PAUSE)
    return random.uniform(longest / 2, longest)  # noqa: S311  not for secrets


def _show(source: Source, response: Response) -> str | list[str] | None:
    """Return the value for the journal: the header, or everything that the pattern finds in the body."""
    if source.pattern is None:
        return response.header(source.header or "")
    return source.pattern.findall(response.content.decode(errors="replace"))


def _extract(source: Source, response: Response) -> str | None:
    if source.header is not None:
        return response.header(source.header)
    assert source.pattern is not None  # noqa: S101  a source is one or the other
    matches = source.pattern.findall(response.content.decode(errors="replace"))
    return random.choice(matches) if matches else None  # noqa: S311  not for secrets


class ScenarioUser(User):
    """Locust's user class: one user of a closed loop, or the single source of this process's arrivals."""

    current: ClassVar[Run | None] = None
    """The current run, set before users are spawned; None if it could not be prepared."""

    @task
    def work(self) -> None:
        run = self.current
        if run is not None and isinstance(run.scenario.load, Open):
            self._arrive(run, run.scenario.load)
        elif run is not None:
            self._loop(run)
        raise StopUser

    def _loop(self, run: Run) -> None:
        user = VirtualUser(run, self._is_stopping)
        run.recorder.adjust_active_users(1)
        try:
            while not self._is_stopping():
                user.iterate()
                if run.scenario.pause:
                    user.pause(run.scenario.pause * random.uniform(0.5, 1.5))  # noqa: S311  not for secrets
        finally:
            run.recorder.adjust_active_users(-1)
            user.close()

    def _is_stopping(self) -> bool:
        return self._state == LOCUST_STATE_STOPPING

    def _arrive(self, run: Run, load: Open) -> None:
        """Start iterations when they are due; an arrival is dropped if no user is free and no more may be created."""
        limit = -(-load.most_users // run.parts)
        users: list[VirtualUser] = []
        free: list[VirtualUser] = []
        busy = Group()
        begun = perf_counter()
        run.recorder.adjust_active_users(0)  # the run starts, although no user is active yet
        try:
            for at in load.arrivals(run.part, run.parts):
                due = begun + at
                while (left := due - perf_counter()) > 0 and not self._is_stopping():
                    gevent.sleep(min(left, _LOOK_SECONDS))
                if self._is_stopping():
                    break
                if not free and len(users) < limit:
                    users.append(VirtualUser(run, self._is_stopping))
                    free.append(users[-1])
                if free:
                    # The one used last: the other connections stay idle until the server closes them, and no request
                    # is sent at that very moment.
                    busy.spawn(partial(self._serve, run.recorder, free), free.pop(), due)
                else:
                    run.recorder.dropped += 1
            busy.join()
        finally:
            busy.kill()
            for user in users:
                user.close()

    def _serve(self, recorder: Recorder, free: list[VirtualUser], user: VirtualUser, due: float) -> None:
        recorder.adjust_active_users(1)
        try:
            user.iterate(due)
        finally:
            recorder.adjust_active_users(-1)
            free.append(user)
