"""What a run says: one line while it goes on, and at its end a terminal summary, k6-shaped JSON and an HTML page."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from loadtest import charts
from loadtest.pages import write_page, write_table
from loadtest.recorder import GROWTH, Counter, Metric, Rate, Recorder, Series, Trend, middle
from loadtest.thresholds import AGGREGATES, ERROR, FAILED, PASSED, Outcome

BUSIEST = 0.90
"""Above this share of a core, the generator itself may have set the pace: such a run proves nothing."""

LITTLE = (0.95, 1.05)
"""Within these bounds the latencies account for the users' time."""

_STATISTICS = ("avg", "min", "med", "max", "p(90)", "p(95)", "p(99)")
_TREND_NAMES = {name for name, aggregates in AGGREGATES.items() if "p(N)" in aggregates}
_RATE_NAMES = {name for name, aggregates in AGGREGATES.items() if aggregates == ("rate",)}
_ON_FAILURE = frozenset({"http_req_failed", "checks"})
_BUCKETS_DRAWN = 80


@dataclass(frozen=True)
class Verdict:
    """How a run ended; `problems` make it invalid, the most telling first, `warnings` want to be known."""

    outcomes: Sequence[Outcome]
    problems: Sequence[str]
    warnings: Sequence[str]

    @property
    def exit_code(self) -> int:
        if self.problems:
            return ERROR
        return PASSED if all(outcome.ok for outcome in self.outcomes) else FAILED

    @property
    def text(self) -> str:
        return {PASSED: "passed", ERROR: "invalid", FAILED: "failed"}[self.exit_code]

    @property
    def reasons(self) -> list[str]:
        """Why the run did not pass, such as `p95 383 ms, limit 250 ms`."""
        return [*self.problems, *(_give_reason(outcome) for outcome in self.outcomes if not outcome.ok)]


def find_no_connection(recorder: Recorder) -> str | None:
    """Why nothing was reached, where no request of the whole run had a connection."""
    failed = recorder.metric("http_req_failed")
    if recorder.connecting.count or recorder.foreign or not failed.count or failed.aggregate("rate") != 1:
        return None
    causes: dict[str, int] = {}
    names = tuple(f"{name}: " for name, _ in recorder.series)
    for error, count in recorder.errors.items():
        cause = next(error.removeprefix(name) for name in names if error.startswith(name))
        causes[cause] = causes.get(cause, 0) + count
    causes_text = ", ".join(f"{cause} ({count:,} times)" for cause, count in sorted(causes.items()))
    return f"no connection was made, so nothing is judged: {causes_text}"


def judge(
    recorder: Recorder, outcomes: Sequence[Outcome], problems: Sequence[str] = (), *, waits: bool = False
) -> Verdict:
    """Weigh what was measured; `problems` are those that the run itself has met.

    `waits` says that users may pause between their requests, which Little's law does not account for.
    """
    if cause := find_no_connection(recorder):
        return Verdict([], [cause, *problems], [])
    found, warnings = list(problems), []
    failed = recorder.metric("http_req_failed")
    if not failed.count:
        tried = f"{recorder.interrupted:,} were cut off unanswered" if recorder.interrupted else "none was even tried"
        found.append(f"no request came to an end, {tried}: nothing was measured")
    elif failed.aggregate("rate") == 1 and not any(outcome.threshold.metric in _ON_FAILURE for outcome in outcomes):
        found.append(
            f"every request failed ({failed.count:,}), and no threshold is about that: "
            "set one on http_req_failed or checks"
        )
    elif all(outcome.ok for outcome in outcomes):
        found += [
            f"the check `{name}` failed every time ({check.fails:,}), and no threshold is about that"
            for name, check in recorder.checks.items()
            if check.fails and not check.passes
        ]
    if recorder.busy > BUSIEST:
        found.append(
            f"the load generator was busy {recorder.busy:.0%} of the time (limit {BUSIEST:.0%}; it used "
            f"{recorder.cpu:.0%} of a core and waited for one the rest): the figures are its own, not the service's; "
            "use --processes, fewer users or a machine with more to spare"
        )
    ratio = recorder.littles_law_ratio
    if ratio is not None and not waits and not LITTLE[0] <= ratio <= LITTLE[1]:
        warnings.append(
            f"Little's law: latencies account for {ratio:.2f} of the users' time "
            f"(expected {LITTLE[0]}-{LITTLE[1]}): the generator adds waits of its own"
        )
    if recorder.dropped:
        warnings.append(f"{recorder.dropped:,} iterations were dropped: all users were busy when they were due")
    if recorder.interrupted:
        warnings.append(
            f"{recorder.interrupted:,} requests were cut off by the end of the run; their outcome is unknown"
        )
    return Verdict(outcomes, found, warnings)


def summarize(recorder: Recorder, verdict: Verdict, *, scenario: str, target: str) -> dict[str, Any]:
    """The summary in the shape that k6 hands to `handleSummary`, with what only we have under `loadtest`."""
    metrics: dict[str, Any] = {}
    selectors = dict.fromkeys([*AGGREGATES, *(outcome.threshold.selector for outcome in verdict.outcomes)])
    tags = {outcome.threshold.selector: outcome.threshold for outcome in verdict.outcomes}
    for selector in selectors:
        name = tags[selector].metric if selector in tags else selector
        metric = recorder.metric(name, tags[selector].tags if selector in tags else {})
        if metric.count or selector in tags or name in {"http_reqs", "checks", "iterations"}:
            metrics[selector] = _describe(metric)
    for outcome in verdict.outcomes:
        held = metrics[outcome.threshold.selector].setdefault("thresholds", {})
        held[outcome.threshold.expression] = {"ok": outcome.ok}
    metrics["vus_max"] = {"type": "gauge", "contains": "default", "values": {"value": recorder.vus_max}}
    checks = [
        {"name": name, "path": f"::{name}", "passes": check.passes, "fails": check.fails}
        for name, check in recorder.checks.items()
    ]
    return {
        "metrics": metrics,
        "root_group": {"name": "", "path": "", "groups": [], "checks": checks},
        "state": {"testRunDurationMs": 1000 * recorder.seconds},
        "loadtest": {
            "scenario": scenario,
            "target": target,
            "started": _iso(recorder.date),
            "verdict": verdict.text,
            "exit_code": verdict.exit_code,
            "problems": list(verdict.problems),
            "warnings": list(verdict.warnings),
            "reasons": verdict.reasons,
            "littles_law_ratio": recorder.littles_law_ratio,
            "users": recorder.user_seconds / recorder.seconds if recorder.seconds else 0.0,
            "cpu": recorder.cpu,
            "busy": recorder.busy,
            "errors": dict(sorted(recorder.errors.items())),
            "steps": {label: _describe(series.trend)["values"] for label, series in label_series(recorder).items()},
        },
    }


def draw_progress(recorder: Recorder, at: float, total: float | None, users: int, before: Counter) -> str:
    """One line on how the run goes; `before` is `http_reqs` as the last line knew it."""
    when = f"{at:4.0f} s" if total is None else f"{at:4.0f} of {total:.0f} s"
    if cause := find_no_connection(recorder):
        return f"{when}  {users} users  {cause}"
    requests, checks, failed = (recorder.metric(name) for name in ("http_reqs", "checks", "http_req_failed"))
    span = max(at - before.seconds, 0.001)
    latest = max(recorder.timeline, default=0)
    recent = Trend()
    for second in (latest, latest - recorder.width):
        if second in recorder.timeline:
            recent.merge(recorder.timeline[second].trend)
    share = f"{checks.aggregate('rate'):.2%}" if checks.count else "none"
    return (
        f"{when}  {users} users  {(requests.count - before.count) / span:,.0f} requests/s  "
        f"p95 {recent.aggregate('p(95)'):.2f} ms  failed {failed.aggregate('rate'):.2%}  checks {share}"
    )


def write_text(summary: dict[str, Any], verdict: Verdict) -> str:
    """The summary for a terminal."""
    own, metrics = summary["loadtest"], summary["metrics"]
    lines = ["", f"{own['scenario']} on {own['target']}", ""]
    lines += [f"  {verdict.text}: {reason}" for reason in verdict.reasons[:1]]
    lines += [
        f"  {_mark(check)}  {check['name']}: {check['passes']:,} of {check['passes'] + check['fails']:,}"
        for check in summary["root_group"]["checks"]
    ]
    lines.append("")
    lines += [f"  {name:.<38} {_show(metric)}" for name, metric in metrics.items()]
    steps = own["steps"].items() if len(own["steps"]) > 1 else ()
    lines += [f"    {name:.<36} {_show({'type': 'trend', 'values': values})}" for name, values in steps]
    ratio = "none" if own["littles_law_ratio"] is None else f"{own['littles_law_ratio']:.3f}"
    lines.append(
        f"  users at work {own['users']:.1f} on average, {metrics['vus_max']['values']['value']} at most; "
        f"connections {_connections(summary)}; Little's law {ratio}; "
        f"generator used {own['cpu']:.0%} of a core and wanted {own['busy']:.0%}"
    )
    lines.append("")
    for outcome in verdict.outcomes:
        lines.append(f"  {'pass' if outcome.ok else 'FAIL'}  {_tell(outcome)}")
    lines += [f"  error: {error}, {count:,} times" for error, count in own["errors"].items()]
    lines += [f"  warning: {warning}" for warning in verdict.warnings]
    because = f": {'; '.join(verdict.reasons)}" if verdict.reasons else ""
    lines += ["", f"  {verdict.text} (exit {verdict.exit_code}){because}", ""]
    return "\n".join(lines)


def write_html(summary: dict[str, Any], verdict: Verdict, recorder: Recorder) -> str:
    """The report as one page that needs nothing else."""
    own = summary["loadtest"]
    ratio = "none" if own["littles_law_ratio"] is None else f"{own['littles_law_ratio']:.3f}"
    facts = {
        "Requests": f"{summary['metrics']['http_reqs']['values']['count']:,}",
        "Requests/s": f"{summary['metrics']['http_reqs']['values']['rate']:,.1f}",
        "Duration": f"{recorder.seconds:.1f} s",
        "Users at work": f"{own['users']:.1f}, at most {recorder.vus_max}",
        "Connections opened": _connections(summary),
        "Little's law": ratio,
        "Generator's core": f"{own['cpu']:.0%} used, {own['busy']:.0%} wanted",
    }
    notes = [f'<p class="bad">{escape(reason)}</p>' for reason in verdict.reasons]
    notes += [f'<p class="warn">{escape(warning)}</p>' for warning in verdict.warnings]
    thresholds = [
        [outcome.threshold.selector, outcome.threshold.expression, _measured(outcome), "pass" if outcome.ok else "FAIL"]
        for outcome in verdict.outcomes
    ]
    checks = [
        [check["name"], f"{check['passes']:,}", f"{check['fails']:,}", _mark(check)]
        for check in summary["root_group"]["checks"]
    ]
    steps = [[name, *(f"{values[key]:,.2f}" for key in _STATISTICS)] for name, values in own["steps"].items()]
    errors = [[error, f"{count:,}"] for error, count in own["errors"].items()]
    shade = ' class="bad"' if verdict.exit_code else ""
    body = f"""<h1>{escape(own["scenario"])}: <span{shade}>{verdict.text}</span></h1>
<p>{escape(own["target"])}, {own["started"]}</p>
{"".join(notes)}
<dl>{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())}</dl>
{write_table("Thresholds", ["Metric", "Threshold", "Measured", "Verdict"], thresholds)}
{write_table("Checks", ["Check", "Passed", "Failed", "Verdict"], checks)}
{_pictures(recorder)}
{write_table("Latency by step (ms)", ["Step", *_STATISTICS], steps)}
{write_table("Errors", ["Error", "Times"], errors)}"""
    return write_page(f"{own['scenario']}: {verdict.text}", body)


def write_files(folder: Path, summary: dict[str, Any], page: str) -> None:
    """Write `summary.json` and `report.html` into the folder; raises an `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")


def _pictures(recorder: Recorder) -> str:
    if not recorder.timeline:
        return ""
    first, last = min(recorder.timeline), max(recorder.timeline)
    slots = {second - first: slot for second, slot in sorted(recorder.timeline.items())}
    # The first and the last second are seldom whole: a rate over them would be a dip that never was.
    whole = {at: slot for at, slot in slots.items() if 0 < at < last - first} or slots
    width = recorder.width
    throughput = [
        ("requests/s", [(at, slot.trend.count / width) for at, slot in whole.items()]),
        ("failed/s", [(at, slot.failed / width) for at, slot in whole.items()]),
    ]
    users = [("at work", [(at, slot.user_seconds / width) for at, slot in whole.items()])]
    measured = {at: slot.trend for at, slot in slots.items() if slot.trend.count}
    latency = [
        (name, [(at, trend.aggregate(name)) for at, trend in measured.items()]) for name in ("med", "p(95)", "p(99)")
    ]
    duration = recorder.metric("http_req_duration")
    assert isinstance(duration, Trend)  # noqa: S101  the metric's kind is fixed
    marks = [(name, value) for name in ("p(50)", "p(95)", "p(99)") if (value := duration.aggregate(name))]
    half = GROWTH**0.5
    counts = duration.counts
    buckets = (
        [
            (1000 * middle(bucket) / half, 1000 * middle(bucket) * half, counts.get(bucket, 0))
            for bucket in range(min(counts), max(counts) + 1)
        ]
        if counts
        else []
    )
    return "\n".join(
        [
            charts.draw_lines("Throughput", throughput, across="seconds", right=last - first),
            charts.draw_lines("Latency over time (ms)", latency, across="seconds", right=last - first),
            charts.draw_lines("Users", users, across="seconds", right=last - first),
            charts.draw_histogram(
                "Latency of all requests",
                charts.join_buckets(buckets, _BUCKETS_DRAWN),
                across="milliseconds, logarithmic",
                marks=[(f"{name} {value:.3g} ms", value) for name, value in marks],
            ),
        ]
    )


def _describe(metric: Metric) -> dict[str, Any]:
    match metric:
        case Trend():
            values = {name: metric.aggregate(name) for name in _STATISTICS}
            return {"type": "trend", "contains": "time", "values": {**values, "count": metric.count}}
        case Rate():
            values = {"rate": metric.aggregate("rate"), "passes": metric.passes, "fails": metric.fails}
            return {"type": "rate", "contains": "default", "values": values}
    return {
        "type": "counter",
        "contains": "default",
        "values": {"count": metric.count, "rate": metric.aggregate("rate")},
    }


def _show(metric: dict[str, Any]) -> str:
    values = metric["values"]
    match metric["type"]:
        case "trend":
            return "  ".join(f"{name}={values[name]:.2f}" for name in _STATISTICS) + " ms"
        case "rate":
            return f"{values['rate']:.2%}  {values['passes']:,} of {values['passes'] + values['fails']:,}"
        case "counter":
            return f"{values['count']:,}  {values['rate']:,.1f}/s"
    return f"{values['value']:,}"


def _mark(check: dict[str, Any]) -> str:
    """What a check's line begins with; one that was never made has not passed."""
    if check["fails"]:
        return "FAIL"
    return "pass" if check["passes"] else "none"


def _connections(summary: dict[str, Any]) -> str:
    metrics = summary["metrics"]
    return f"{metrics['connections']['values']['count']:,}" if "connections" in metrics else "0"


def label_series(recorder: Recorder) -> dict[str, Series]:
    """The series by name, and by method and name where several methods share one."""
    names = [name for name, _ in recorder.series]
    return {
        name if names.count(name) == 1 else f"{method} {name}": series
        for (name, method), series in recorder.series.items()
    }


_BEYOND = {"<": "limit", "<=": "limit", ">": "wanted over", ">=": "at least"}


def _give_reason(outcome: Outcome) -> str:
    """Why a threshold does not hold: `p95 383 ms, limit 250 ms`, `checks 97.1 %, wanted over 99.9 %`."""
    threshold = outcome.threshold
    aggregate = re.sub(r"^p\((.+)\)$", r"p\1", threshold.aggregate)
    subject = aggregate if threshold.selector == "http_req_duration" else f"{threshold.selector} {aggregate}"
    if outcome.measured is None:
        return f"{subject}: nothing was measured"
    if threshold.metric in _RATE_NAMES:
        subject = threshold.selector
        measured, limit = f"{100 * outcome.measured:.4g} %", f"{100 * threshold.limit:.6g} %"
    elif threshold.metric in _TREND_NAMES and threshold.aggregate != "count":
        measured, limit = f"{outcome.measured:.3g} ms", f"{threshold.limit:g} ms"
        if outcome.measured >= 1000:  # noqa: PLR2004  three digits would hide what is measured beyond them
            measured = f"{outcome.measured:,.0f} ms"
    else:
        measured, limit = f"{outcome.measured:,.6g}", f"{threshold.limit:,g}"
    sign = re.sub(r"[^<>=!]", "", threshold.expression)
    return f"{subject} {measured}, {_BEYOND.get(sign, f'wanted {sign}')} {limit}"


def _tell(outcome: Outcome) -> str:
    threshold = outcome.threshold
    measured = _measured(outcome) if outcome.measured is None else f"measured {_measured(outcome)}"
    return f"{threshold.selector} {threshold.expression}: {measured}"


def _measured(outcome: Outcome) -> str:
    if outcome.measured is None:
        return "nothing was measured"
    is_time = outcome.threshold.metric in _TREND_NAMES and outcome.threshold.aggregate != "count"
    return f"{outcome.measured:.6g}{' ms' if is_time else ''}"


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
