"""The locustfile for scenarios: the user class, and the load shape that plays the chosen scenario."""

import sys
from time import perf_counter

import gevent
from locust import LoadTestShape

from loadtest import plugin
from loadtest.executors import Open
from loadtest.recorder import Counter
from loadtest.report import draw_progress, find_no_connection
from loadtest.session import AT_ONCE, Session
from loadtest.thresholds import Threshold, evaluate
from loadtest.users import ScenarioUser

__all__ = ["ScenarioShape", "ScenarioUser", "plugin"]

TICK_SECONDS = 1.0
"""How often Locust calls a shape."""

_LONGEST_START = 30.0  # seconds until the first user must have started


class ScenarioShape(LoadTestShape):
    """Determines the number of users, the end of the run, and whether a threshold ends it early."""

    use_common_options = True  # -u and -t replace the scenario's numbers; `connect` takes them out of the web UI

    session: Session
    """Set when Locust is ready."""

    def reset_time(self) -> None:
        self.start_time = perf_counter()
        self._shown = Counter(0, 0.0)
        try:
            self.session.prepare()
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")

    def tick(self) -> tuple[int, float] | None:
        session, plan = self.session, self.session.plan
        if plan is None or plan.scenario is None:
            return None
        load, at = plan.scenario.load, session.recorder.age
        if not at:
            if perf_counter() - self.start_time > _LONGEST_START:
                return None
            session.await_workers(_LONGEST_START)
        if at > TICK_SECONDS / 2:
            self._show(at, load.seconds)
            session.is_over = self._must_abort(plan.thresholds, at)
            if session.is_over or session.interrupted:
                return None
        left = load.seconds - at
        if at and left <= TICK_SECONDS:  # the next tick would come late: wait for the exact end here
            gevent.sleep(max(left, 0))
            session.is_over = not session.interrupted
            return None
        if isinstance(load, Open):
            return session.parts, AT_ONCE
        return load.count_users(at), session.spawn_rate

    def _show(self, at: float, total: float) -> None:
        users = self.runner.user_count if self.runner else 0
        line = draw_progress(self.session.recorder, at, total, users, self._shown)
        self._shown = Counter(int(self.session.recorder.metric("http_reqs").count), at)
        sys.stderr.write(f"\r\033[K{line}" if sys.stderr.isatty() else f"{line}\n")
        sys.stderr.flush()

    def _must_abort(self, thresholds: list[Threshold], at: float) -> bool:
        asked = [threshold for threshold in thresholds if threshold.abort_on_fail]
        due = [threshold for threshold in asked if at > threshold.delay_abort]
        outcomes = evaluate(due, self.session.recorder)
        crossed = [outcome.threshold for outcome in outcomes if outcome.measured is not None and not outcome.ok]
        cause = find_no_connection(self.session.recorder)
        for reason in [cause] if cause else [f"{threshold.selector} {threshold.expression}" for threshold in crossed]:
            if crossed:
                sys.stderr.write(f"\nstopping early: {reason}\n")
        return bool(crossed)
