"""What Locust loads: the options, the users, and the one load shape that plays whichever scenario is chosen."""

import argparse
import logging
import resource
import signal
import sys
from time import perf_counter
from typing import Any

import gevent
from flask import Response as Page
from locust import LoadTestShape, events, runners, stats
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.web import WebUI

from loadtest.executors import Open
from loadtest.recorder import Counter
from loadtest.report import draw_progress, find_no_connection
from loadtest.scenario import ScenarioError, list_scenarios, read_scenario
from loadtest.session import AT_ONCE, Session, round_milliseconds
from loadtest.thresholds import USAGE, Threshold, evaluate
from loadtest.users import ScenarioUser

__all__ = ["ScenarioShape", "ScenarioUser"]

TICK_SECONDS = 1.0
"""How often Locust asks a shape."""

_MOST_FILES = 65_536
_LONGEST_START = 30.0  # seconds until the first user must have started

stats.bucket_response_time = round_milliseconds  # type: ignore[assignment]  # documented as replaceable, by floats too
runners.WORKER_REPORT_INTERVAL = TICK_SECONDS


class AnyPath(list[str]):
    """The choices that the web UI offers; on the command line a file's path does as well, and was looked at before."""

    def __contains__(self, _: object) -> bool:
        return True


def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    def existing(name: str) -> str:
        try:
            read_scenario(name)
        except ScenarioError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return name

    names = list_scenarios()
    parser.add_argument(
        "--scenario",
        type=existing,
        choices=AnyPath(names),
        metavar="NAME",
        default="seed",
        help=f"what to play: {', '.join(names)}, or the path of a .toml file",
    )
    for name, default, explanation in (
        ("--out", "", "folder of the reports (default: out/load/<scenario>)"),
        ("--journal", "", "file that gets a line of JSON for each attempt"),
        ("--slo", "", "objectives that give the default thresholds, or none (default: observability/slo.toml)"),
    ):
        parser.add_argument(name, default=default, metavar="PATH", help=explanation, include_in_web_ui=False)
    parser.add_argument(
        "--request-events",
        action="store_true",
        help="fire Locust's request event for every request, as it is where a plug-in listens to it",
        include_in_web_ui=False,
    )


class ScenarioShape(LoadTestShape):
    """Says how many users there are, when the run ends, and whether a threshold ends it early."""

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
        if plan is None:
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


def connect(environment: Environment, runner: Any, web_ui: WebUI | None, **_: Any) -> None:
    """Tie a session to Locust's events, and refuse what cannot be played before anything is sent."""
    # libev's clock still shows the time before the imports: timers would fire too early by that much.
    gevent.get_hub().loop.update_now()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _MOST_FILES)), hard))
    logging.getLogger("locust.stats_logger").setLevel(logging.WARNING)  # our summary takes its place
    # All users at once is what a constant number of users means.
    logging.getLogger("locust.runners").addFilter(lambda record: "spawn rate is very high" not in record.msg)

    is_worker = isinstance(runner, WorkerRunner)
    session = Session(environment, runner, headless=web_ui is None)
    shape: Any = environment.shape_class
    shape.session = session
    shape.use_common_options = web_ui is None
    if not is_worker and web_ui is None:
        try:
            session.prepare()
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(USAGE)

    def interrupt() -> None:
        if is_worker:
            # A master that was interrupted too, by the same key, ends the run as it should be ended.
            gevent.sleep(2 * TICK_SECONDS)
            runner.quit()
        elif web_ui is None:
            session.interrupted = True
        else:
            runner.quit()
            web_ui.stop()

    # Else Python raises KeyboardInterrupt in whatever user is at work, and SIGTERM kills: Locust handles it only once
    # a load shape has ended.
    for number in (signal.SIGINT, signal.SIGTERM) if web_ui is None and not is_worker else (signal.SIGINT,):
        gevent.signal_handler(number, interrupt)
    listen = environment.events
    listen.test_start.add_listener(session.on_test_start)
    listen.test_stop.add_listener(session.on_test_stop)
    listen.quitting.add_listener(session.on_quitting)
    listen.worker_report.add_listener(session.on_worker_report)
    # First of all listeners: what it flushes must be in Locust's own figures when they are sent.
    listen.report_to_master._handlers.insert(0, session.on_report_to_master)  # noqa: SLF001  there is no public way
    if web_ui is not None and web_ui.app is not None:
        web_ui.app.add_url_rule("/verdict", "verdict", lambda: Page(session.page, mimetype="text/html"))


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(connect)
