"""The integration with Locust, for scenarios and for users in plain Python: options, events and the web UI."""

import argparse
import logging
import resource
import signal
import sys
from typing import Any

import gevent
from locust import events, runners, stats
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner
from locust.web import WebUI

from loadtest import web
from loadtest.python_users import GoalsUser
from loadtest.scenario import ScenarioError, list_scenarios, read_scenario
from loadtest.session import REPORT_SECONDS, Session, round_milliseconds
from loadtest.thresholds import USAGE

__all__ = ["GoalsUser"]

_MOST_FILES = 65_536

stats.bucket_response_time = round_milliseconds  # type: ignore[assignment]  # documented as replaceable, by floats too
runners.WORKER_REPORT_INTERVAL = REPORT_SECONDS


class AnyPath(list[str]):
    """The choices in the web UI; the command line also accepts the path of a file, which is checked elsewhere."""

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
        default="original",
        help=f"the scenario to run: {', '.join(names)}, or the path of a .toml file",
    )
    for name, default, explanation in (
        ("--out", "", "folder for the reports (default: out/load/<scenario>)"),
        ("--journal", "", "file that receives a JSON line for each attempt"),
        (
            "--slo",
            "",
            "file of the objectives that give the default thresholds, or none (default: observability/slo.toml)",
        ),
    ):
        parser.add_argument(name, default=default, metavar="PATH", help=explanation, include_in_web_ui=False)
    parser.add_argument(
        "--web-allowed-hosts",
        default="",
        metavar="NAMES",
        env_var="LOCUST_WEB_ALLOWED_HOSTS",
        help="additional host names of the web UI, besides localhost and --web-host, separated by commas",
        include_in_web_ui=False,
    )
    parser.add_argument(
        "--request-events",
        action="store_true",
        help="fire Locust's request event for every request; on by default if a plug-in listens to it",
        include_in_web_ui=False,
    )


def connect(environment: Environment, runner: Any, web_ui: WebUI | None, **_: Any) -> None:
    """Connect a session to Locust's events, and refuse an invalid run before any request is sent."""
    # libev's clock still shows the time before the imports, so timers would fire too early.
    gevent.get_hub().loop.update_now()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _MOST_FILES)), hard))
    logging.getLogger("locust.stats_logger").setLevel(logging.WARNING)  # our summary replaces it
    # A constant number of users means that all start at once.
    logging.getLogger("locust.runners").addFilter(lambda record: "spawn rate is very high" not in record.msg)

    is_worker = isinstance(runner, WorkerRunner)
    session = Session(environment, runner, headless=web_ui is None)
    if session.has_shape:
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
            # If the same key interrupted the master too, it ends the run properly.
            gevent.sleep(2 * REPORT_SECONDS)
            runner.quit()
        elif web_ui is None and session.has_shape:
            session.interrupted = True
        elif web_ui is None:
            runner.quit()
        else:
            runner.quit()
            web_ui.stop()

    # Otherwise Python raises KeyboardInterrupt in the running user, and SIGTERM kills the process: Locust handles it
    # only after a load shape has ended.
    for number in (signal.SIGINT, signal.SIGTERM) if web_ui is None and not is_worker else (signal.SIGINT,):
        gevent.signal_handler(number, interrupt)
    listen = environment.events
    listen.request.add_listener(session.on_request)
    listen.test_start.add_listener(session.on_test_start)
    listen.test_stop.add_listener(session.on_test_stop)
    listen.quitting.add_listener(session.on_quitting)
    listen.worker_report.add_listener(session.on_worker_report)
    # The first listener, so that the flushed figures are in Locust's own statistics when they are sent.
    listen.report_to_master._handlers.insert(0, session.on_report_to_master)  # noqa: SLF001  there is no public way
    if web_ui is not None:
        address = web.extend(web_ui, session)
        sys.stderr.write(f"load test: {address}\n")
        sys.stderr.flush()


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(connect)
