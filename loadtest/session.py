"""The life of a run in one process: it is prepared, started, measured regularly, and judged at its end."""

import gc
import sys
import time
from collections import deque
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, Self

import gevent
from locust import stats
from locust.env import Environment
from locust.runners import STATE_RUNNING, STATE_SPAWNING, STATE_STOPPED, MasterRunner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadtest import report
from loadtest.client import Response
from loadtest.executors import Closed
from loadtest.journal import Journal
from loadtest.python_users import GoalsUser, PythonRun
from loadtest.recorder import Counter, Fresh, Recorder, middle
from loadtest.scenario import Scenario, Target, parse_conditions, read_scenario
from loadtest.thresholds import ERROR, USAGE, Threshold, complete, evaluate, read_objectives
from loadtest.users import Run, ScenarioUser

FLUSH_SECONDS = 0.2
REPORT_SECONDS = 1.0
"""How often a worker reports to its master."""
AT_ONCE = 50_000
"""A spawn rate that starts all users immediately."""

_CPU_SPAN = 5.0
_OWN_LISTENERS = 2
_REPORT_WAIT = 5.0


def round_milliseconds(milliseconds: float) -> float:
    """Round to three significant digits, like our histograms; Locust itself rounds to whole milliseconds."""
    return float(f"{milliseconds:.3g}")


class Usage(NamedTuple):
    """At a given time, the seconds that this process has used a core, and those that it has waited for one."""

    at: float
    used: float
    waited: float

    @classmethod
    def read(cls) -> Self:
        try:
            # Linux: nanoseconds on a core and in the run queue (its Documentation/scheduler/sched-stats.rst).
            waited = int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
        except OSError:
            waited = 0.0
        return cls(time.perf_counter(), time.process_time(), waited)

    def until(self, later: Self) -> tuple[float, float]:
        """Return the shares of one core that were used, and that were needed."""
        elapsed = max(later.at - self.at, FLUSH_SECONDS)
        used = later.used - self.used
        return used / elapsed, (used + later.waited - self.waited) / elapsed


class Plan(NamedTuple):
    """The run as requested when it was prepared; the web UI's form may have changed since."""

    name: str
    scenario: Scenario | None
    """None for users in plain Python."""
    seconds: float | None
    """The duration; `None`: until it is stopped, or until its own load shape ends it."""
    thresholds: list[Threshold]
    host: str
    target: Target
    folder: Path
    journal: Path | None


class Session:
    """The current run in this process, if any, and the result of the last one.

    A single process generates the load and judges it. With several processes, the workers generate the load and report
    to the master, which judges.
    """

    def __init__(self, environment: Environment, runner: Any, *, headless: bool) -> None:
        assert environment.parsed_options is not None  # noqa: S101  Locust's command line always sets it
        self.options = environment.parsed_options
        # Read them now, before Locust replaces missing options by its own defaults.
        self._users: int | None = self.options.num_users
        self._seconds: float | None = self.options.run_time
        self.spawn_rate: float = self.options.spawn_rate or AT_ONCE
        self.recorder = Recorder()
        self.plan: Plan | None = None
        """The current or last plan; None if it was invalid."""
        self.parts = 1
        """How many processes generate load."""
        self.interrupted = False
        """Set when the user ends the run early."""
        self.is_over = False
        """Set when the run's time is up, or a threshold has ended it; any other end cuts the run off."""
        self.page = "<p>No run has ended yet.</p>"
        """The last run's report, or why there was no run."""
        self.outcome: tuple[str, list[str]] = ("", [])
        """The last run's verdict and its reasons; empty if no run has ended."""
        self.runner = runner
        self._environment = environment
        self._headless = headless
        self._run: Run | PythonRun | None = None
        self._ending: gevent.Greenlet | None = None
        self._problems: list[str] = []
        self._reported: set[str] = set()
        self._verdict: report.Verdict | None = None
        self.has_shape = ScenarioUser in environment.user_classes
        """Whether the scenarios' load shape controls the start and the end of a run."""
        self._was_refused = False

    def prepare(self) -> None:
        """Reset the state and read the next run's plan; raise a `ValueError` with a message of one line."""
        self.recorder, self._problems, self._reported, self._verdict = Recorder(), [], set(), None
        self.plan, self.is_over = None, False
        try:
            self.plan = self._read_plan()
        except ValueError as error:
            self._was_refused = True
            self.page = f"<p>There was no run: {escape(str(error))}</p>"
            self.outcome = ("invalid", [f"there was no run: {error}"])
            raise
        self._was_refused = False

    def _prepare_or_say_why(self) -> None:
        try:
            self.prepare()
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")

    def _read_plan(self) -> Plan:
        host = str(self._environment.host or "")
        target = Target.parse(host)
        classes = self._environment.user_classes
        python = [user for user in classes if issubclass(user, GoalsUser)]
        scenario = None
        if ScenarioUser in classes:
            if python:
                raise ValueError(
                    f"a scenario and users in plain Python ({python[0].__name__}) cannot run together: give -f only one"
                )
            scenario = read_scenario(self.options.scenario, users=self._users, seconds=self._seconds)
        objectives: list[Threshold] = []
        wanted = (scenario is None or scenario.objectives) and self.options.slo != "none"
        if wanted and not isinstance(self.runner, WorkerRunner):  # a worker does not judge
            objectives = read_objectives(Path(self.options.slo) if self.options.slo else None)
        journal = Path(self.options.journal) if self.options.journal else None
        if journal:
            try:
                Journal(journal).close()
            except OSError as error:
                raise ValueError(f"the journal cannot be written: {error}") from None
        name = Path(self.options.scenario if scenario else self._environment.locustfile or "locustfile").stem
        chosen = (
            scenario.parse_thresholds() if scenario else parse_conditions({user: user.thresholds for user in python})
        )
        seconds: float | None
        if scenario:
            seconds = scenario.load.seconds
        else:
            seconds = None if self._environment.shape_class else self.options.run_time
        folder = Path(self.options.out or f"out/load/{name}")
        thresholds = complete(chosen, objectives)
        return Plan(name, scenario, seconds, thresholds, host, target, folder, journal)

    def await_workers(self, seconds: float) -> None:
        """Wait for the workers that a master expects: after a run, they need a while to be ready for the next one."""
        end = time.monotonic() + seconds
        while isinstance(self.runner, MasterRunner) and time.monotonic() < end:
            self.parts = self.runner.worker_count
            if self.parts >= self.options.expect_workers:
                break
            gevent.sleep(0.1)

    # Locust's events.

    def on_test_start(self, **_: Any) -> None:
        """Create what this process's users need, if it generates load."""
        if isinstance(self.runner, MasterRunner):
            # These are sent to the workers with all options.
            if not self.has_shape:
                self._prepare_or_say_why()
                self.parts = self.runner.worker_count
            self.options.parts = self.parts
            self.options.asked = [self._users, self._seconds]
            return
        is_worker = isinstance(self.runner, WorkerRunner)
        if is_worker:
            self._users, self._seconds = self.options.asked
            self._prepare_or_say_why()
        elif not self.has_shape:
            self._prepare_or_say_why()
        plan = self.plan
        if plan is None:
            ScenarioUser.current = GoalsUser.current = None
            return
        # Locust and this module listen to every request. Fire the event only if there is another listener.
        listeners = len(self._environment.events.request._handlers)  # noqa: SLF001  there is no public count
        fire = (
            self._environment.events.request.fire if self.options.request_events or listeners > _OWN_LISTENERS else None
        )
        gc.collect()
        gc.freeze()  # existing objects stay: later collections need not scan them
        if plan.scenario is None:
            self._run = GoalsUser.current = PythonRun(self.recorder, fire)
            self.recorder.adjust_active_users(0)  # the run starts, although there may be no users yet
            gevent.spawn(self._flush_regularly, self._run)
            return
        self._run = ScenarioUser.current = Run(
            plan.scenario,
            plan.target,
            self.recorder,
            journal=Journal(plan.journal) if plan.journal else None,
            fire=fire,
            part=self.runner.worker_index % self.options.parts if is_worker else 0,
            parts=self.options.parts if is_worker else 1,
        )
        load = plan.scenario.load
        if isinstance(load, Closed) and not load.count_users(0):
            self.recorder.adjust_active_users(0)  # the run starts, although there is no user yet
        gevent.spawn(self._flush_regularly, self._run)

    def on_request(self, request_type: str, name: str, response_time: float, **event: Any) -> None:
        """Record requests that other clients report through Locust's event, for example for another protocol."""
        if isinstance(event.get("response"), Response) or self._run is None:
            return
        series = self.recorder.add_series(name, request_type)
        series.is_foreign = True
        self.recorder.foreign += 1
        error = event.get("exception")
        series.add(
            (response_time or 0) / 1000, None if error is None else str(error), event.get("response_length") or 0
        )

    def on_test_stop(self, **_: Any) -> None:
        # In a separate greenlet: if a user's task has ended the run, that user is killed during this.
        self._ending = gevent.spawn(self._end)
        self._ending.join()

    def _end(self) -> None:
        if isinstance(self.runner, MasterRunner):
            if self.plan is not None:
                self._collect(self.runner)
        else:
            run, self._run = self._run, None
            self._flush(run)
            if run is not None:
                run.close()
            gevent.sleep(2 * FLUSH_SECONDS)  # lets `_flush_regularly` finish and record the CPU usage
        if isinstance(self.runner, WorkerRunner):
            # The last measurements must arrive before the message that we stopped.
            self.runner._send_stats()  # noqa: SLF001  there is no public way
            self.recorder = Recorder()  # reports from now on, while idle, are empty
        elif self.plan is not None:
            self._conclude(self.plan)

    def on_report_to_master(self, data: dict[str, Any], **_: Any) -> None:
        self._flush(self._run)
        data["loadtest"] = self.recorder.drain()
        data["loadtest_final"] = self.runner.state == STATE_STOPPED

    def on_worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        self.recorder.merge(data["loadtest"], client_id)
        if data["loadtest_final"]:
            self._reported.add(client_id)

    def on_quitting(self, **_: Any) -> None:
        if isinstance(self.runner, WorkerRunner):
            self._environment.process_exit_code = 0  # the master's exit code counts
            return
        if self._verdict is None and self.runner.state in {STATE_SPAWNING, STATE_RUNNING}:
            self.runner.quit()  # a signal has cut the run off: judge the measurements so far
        if not self._headless:
            # Workers that are idle after a run would miss the message to quit, and keep running.
            self.await_workers(self._environment.stop_timeout + _REPORT_WAIT)
        if self._ending is not None:
            self._ending.join()
        if getattr(self._environment.parsed_options, "csv_prefix", None):
            # Locust's writer writes the last second to its files only in its next interval.
            gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.1)
        if self._environment.process_exit_code:
            return  # another listener has set it
        if self._verdict is not None:
            self._environment.process_exit_code = self._verdict.exit_code
        elif self._was_refused:
            self._environment.process_exit_code = USAGE
        elif self._headless:
            sys.stderr.write("error: the run ended before it started; nothing was measured\n")
            self._environment.process_exit_code = ERROR

    def _flush_regularly(self, run: Run | PythonRun) -> None:
        """Flush the measurements during the run, and record the highest CPU usage of this process."""
        recorder = self.recorder
        samples = deque([Usage.read()])
        while self._run is run:
            gevent.sleep(FLUSH_SECONDS)
            if self._run is run:
                self._flush(run)
            samples.append(Usage.read())
            while samples[-1].at - samples[0].at > _CPU_SPAN:
                recorder.note_usage(*samples.popleft().until(samples[-1]))
        if not recorder.busy:
            recorder.note_usage(*samples[0].until(samples[-1]))

    def _flush(self, run: Run | PythonRun | None) -> None:
        """Move new measurements into the trends, and into Locust's own statistics for its web UI and files."""
        for fresh in self.recorder.flush():
            if not fresh.series.is_foreign and (run is None or run.fire is None):
                add_to_locust(self._environment.stats, fresh)

    def _collect(self, master: MasterRunner) -> None:
        """Ask headless workers to quit, and wait until each has sent its last measurements."""
        workers = {client.id for client in master.clients.all}
        if self._headless:
            master.send_message("quit")
        end = time.monotonic() + self._environment.stop_timeout + _REPORT_WAIT
        while workers - self._reported and time.monotonic() < end:
            gevent.sleep(0.05)
        if missing := self.parts - len(self._reported):
            self._problems.append(f"{missing} of {self.parts} workers did not report their measurements")

    def _conclude(self, plan: Plan) -> None:
        """Judge the run, and write the results to the terminal and to files."""
        if plan.scenario is None:
            self.is_over = plan.seconds is None or self.recorder.age > plan.seconds - 1
        if not self.is_over and plan.seconds is not None:
            done, whole = self.recorder.seconds, plan.seconds
            self._problems.append(f"the run was cut off after {done:.0f} of {whole:.0f} s")
        outcomes = evaluate(plan.thresholds, self.recorder)
        verdict = report.judge(self.recorder, outcomes, self._problems, waits=plan.scenario is None)
        summary = report.summarize(self.recorder, verdict, scenario=plan.name, target=plan.host)
        self.page = report.write_html(summary, verdict, self.recorder)
        sys.stdout.write(report.write_text(summary, verdict))
        try:
            report.write_files(plan.folder, summary, self.page)
            sys.stdout.write(f"  {plan.folder / 'report.html'}  {plan.folder / 'summary.json'}\n")
        except OSError as error:
            sys.stderr.write(f"error: the reports cannot be written: {error}\n")
            verdict = report.judge(self.recorder, verdict.outcomes, [*self._problems, "the reports cannot be written"])
        sys.stdout.flush()
        self._verdict = verdict
        self.outcome = (verdict.text, verdict.reasons)

    def draw_progress(self) -> str:
        """Return the progress of the run in one line."""
        before = Counter(0, 0.0)
        seconds = self.plan.seconds if self.plan else None
        return report.draw_progress(self.recorder, self.recorder.age, seconds, self.runner.user_count, before)


def add_to_locust(target: stats.RequestStats, fresh: Fresh) -> None:
    """Add many requests to Locust's statistics in one step; its own method takes one at a time."""
    name, method = fresh.series.name, fresh.series.method
    for error, times in fresh.errors.items():
        key = stats.StatsError.create_key(method, name, error)
        failure = target.errors.setdefault(key, stats.StatsError(method, name, error))
        failure.occurred()
        failure.occurrences += times - 1
    now = time.time()
    second = int(now)
    response_counts: dict[float, int] = {}
    for bucket, count in fresh.trend.counts.items():
        bucketed = round_milliseconds(1000 * middle(bucket))
        response_counts[bucketed] = response_counts.get(bucketed, 0) + count
    for entry in (target.total, target.entries[name, method]):
        last = entry.last_request_timestamp
        if entry.use_response_times_cache and last and second > int(last):
            entry._cache_response_times(second - 1)  # noqa: SLF001  what its own `log` does
        response_times: dict[Any, int] = entry.response_times
        entry.num_requests += fresh.trend.count
        entry.num_failures += fresh.failed
        entry.num_reqs_per_sec[second] += fresh.trend.count
        if fresh.failed:
            entry.num_fail_per_sec[second] += fresh.failed
        entry.total_content_length += fresh.size
        entry.last_request_timestamp = now
        figures: Any = entry  # declared as whole milliseconds, used as any number
        figures.total_response_time += 1000 * fresh.trend.sum
        low = figures.min_response_time
        figures.min_response_time = 1000 * fresh.trend.min if low is None else min(low, 1000 * fresh.trend.min)
        figures.max_response_time = max(figures.max_response_time, 1000 * fresh.trend.max)
        for response_time, count in response_counts.items():
            response_times[response_time] = response_times.get(response_time, 0) + count
