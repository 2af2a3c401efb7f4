"""The output of a run: a line of progress, and at the end a terminal summary, JSON in k6's format and an HTML page."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from loadtest import charts
from loadtest.pages import Kind, write_banner, write_charts, write_figures, write_page, write_table
from loadtest.recorder import GROWTH, Counter, Metric, Rate, Recorder, Series, Trend, middle
from loadtest.thresholds import AGGREGATES, ERROR, FAILED, PASSED, Outcome, Threshold

BUSIEST = 0.90
"""Above this share of a core, the generator itself may have been the bottleneck: such a run proves nothing."""

LITTLE = (0.95, 1.05)
"""Within these bounds, the latencies account for the users' time."""

_STATISTICS = ("avg", "min", "med", "max", "p(90)", "p(95)", "p(99)")
_TREND_NAMES = {name for name, aggregates in AGGREGATES.items() if "p(N)" in aggregates}
_RATE_NAMES = {name for name, aggregates in AGGREGATES.items() if aggregates == ("rate",)}
_ON_FAILURE = frozenset({"http_req_failed", "checks"})
_BUCKETS_DRAWN = 80


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run; `problems` make it invalid, the most important first; `warnings` do not."""

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
    """Return why no request of the whole run got a connection; None if one did."""
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
    """Judge the measurements; `problems` are those of the run itself.

    `waits`: users may pause between their requests, which Little's law does not account for.
    """
    if cause := find_no_connection(recorder):
        return Verdict([], [cause, *problems], [])
    found, warnings = list(problems), []
    failed = recorder.metric("http_req_failed")
    if not failed.count:
        tried = f"{recorder.interrupted:,} were cut off" if recorder.interrupted else "none was sent"
        found.append(f"no request was completed, {tried}: nothing was measured")
    elif failed.aggregate("rate") == 1 and not any(outcome.threshold.metric in _ON_FAILURE for outcome in outcomes):
        found.append(
            f"every request failed ({failed.count:,}), but no threshold covers that: "
            "set one on http_req_failed or checks"
        )
    elif all(outcome.ok for outcome in outcomes):
        found += [
            f"the check `{name}` failed every time ({check.fails:,}), but no threshold covers that"
            for name, check in recorder.checks.items()
            if check.fails and not check.passes
        ]
    if recorder.busy > BUSIEST:
        found.append(
            f"the load generator was busy {recorder.busy:.0%} of the time (limit {BUSIEST:.0%}; it used "
            f"{recorder.cpu:.0%} of a core, and otherwise waited for one): the figures show its limits, not the "
            "service's; use --processes, fewer users or a machine with more spare capacity"
        )
    ratio = recorder.littles_law_ratio
    if ratio is not None and not waits and not LITTLE[0] <= ratio <= LITTLE[1]:
        warnings.append(
            f"Little's law: latencies account for {ratio:.2f} of the users' time "
            f"(expected {LITTLE[0]}-{LITTLE[1]}): the generator adds its own delays"
        )
    if recorder.dropped:
        warnings.append(f"{recorder.dropped:,} iterations were dropped: all users were busy when they were due")
    if recorder.interrupted:
        warnings.append(
            f"{recorder.interrupted:,} requests were cut off by the end of the run; their outcome is unknown"
        )
    return Verdict(outcomes, found, warnings)


def summarize(recorder: Recorder, verdict: Verdict, *, scenario: str, target: str) -> dict[str, Any]:
    """Return the summary in the format that k6 passes to `handleSummary`, with our additions under `loadtest`."""
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
    """Return one line about the progress of the run; `before` is `http_reqs` at the previous line."""
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
        f"p95 {show_ms(recent.aggregate('p(95)'))}  failed {failed.aggregate('rate'):.2%}  checks {share}"
    )


def write_text(summary: dict[str, Any], verdict: Verdict) -> str:
    """Return the summary for a terminal."""
    own, metrics = summary["loadtest"], summary["metrics"]
    lines = ["", f"{own['scenario']} on {own['target']}", ""]
    lines += [f"  {verdict.text}: {reason}" for reason in verdict.reasons[:1]]
    lines += [
        f"  {_mark(check)}  {check['name']}: {check['passes']:,} of {check['passes'] + check['fails']:,}"
        for check in summary["root_group"]["checks"]
    ]
    lines.append("")
    lines += [f"  {name:.<38} {_show_metric(metric)}" for name, metric in metrics.items()]
    steps = own["steps"].items() if len(own["steps"]) > 1 else ()
    lines += [f"    {name:.<36} {_show_metric({'type': 'trend', 'values': values})}" for name, values in steps]
    ratio = "none" if own["littles_law_ratio"] is None else f"{own['littles_law_ratio']:.3f}"
    lines.append(
        f"  active users {own['users']:.1f} on average, {metrics['vus_max']['values']['value']} at most; "
        f"connections {_connections(summary)}; Little's law {ratio}; "
        f"generator used {own['cpu']:.0%} of a core and needed {own['busy']:.0%}"
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
    """Return the report as one self-contained page."""
    own, metrics = summary["loadtest"], summary["metrics"]
    ratio = "none" if own["littles_law_ratio"] is None else f"{own['littles_law_ratio']:.3f}"
    figures = [
        *_lead(verdict, recorder),
        ("Requests", f"{metrics['http_reqs']['values']['count']:,}", ""),
        ("Throughput", f"{metrics['http_reqs']['values']['rate']:,.1f}", "requests/s"),
        ("Duration", f"{recorder.seconds:.1f} s", ""),
        ("Active users", f"{own['users']:.1f}", f"at most {recorder.vus_max}"),
        ("Connections opened", _connections(summary), ""),
        ("Little's law", ratio, "expected 0.95 to 1.05"),
        ("Generator's core", f"{own['cpu']:.0%}", f"needed {own['busy']:.0%}, limit {BUSIEST:.0%}"),
    ]
    thresholds = [
        [_subject(outcome.threshold), _measured(outcome), _limit(outcome.threshold), "pass" if outcome.ok else "FAIL"]
        for outcome in verdict.outcomes
    ]
    checks = [
        [check["name"], f"{check['passes']:,}", f"{check['fails']:,}", _mark(check)]
        for check in summary["root_group"]["checks"]
    ]
    steps = [[name, *(show_ms(values[key], unit="") for key in _STATISTICS)] for name, values in own["steps"].items()]
    errors = [[error, f"{count:,}"] for error, count in own["errors"].items()]
    started = f"{datetime.fromtimestamp(recorder.date, UTC):%Y-%m-%d %H:%M} UTC" if recorder.date else ""
    about = ", ".join(filter(None, (own["target"], started)))
    warnings = [f'<p class="warn">Warning: {escape(warning)}</p>' for warning in verdict.warnings]
    body = f"""{write_verdict(own["scenario"], verdict.text, verdict.reasons, about=about)}
{"".join(warnings)}
{write_figures(figures)}
{write_table("Thresholds", ["Metric", "Measured", "Limit", "Result"], thresholds)}
{write_table("Checks", ["Check", "Passed", "Failed", "Result"], checks)}
{write_charts(_pictures(recorder, verdict))}
{write_table("Latency by step, ms", ["Step", *_STATISTICS], steps)}
{write_table("Errors", ["Error", "Times"], errors)}"""
    return write_page(f"{own['scenario']}: {verdict.text}", body)


def write_verdict(
    name: str, text: str, reasons: Sequence[str], *, about: str = "", level: int = 1, more: str = ""
) -> str:
    """Return the banner of a finished run, for its report and for the web UI."""
    kind: Kind = "good" if text == "passed" else "bad"
    return write_banner(name, text, kind, reasons=reasons, about=about, level=level, more=more)


def _lead(verdict: Verdict, recorder: Recorder) -> list[tuple[str, str, str]]:
    """Return the most important figure: of the first failed threshold, else of a latency threshold, else p95."""
    failed = [outcome for outcome in verdict.outcomes if not outcome.ok]
    times = [outcome for outcome in verdict.outcomes if outcome.threshold.metric == "http_req_duration"]
    for outcome in [*failed, *times]:
        return [(_subject(outcome.threshold), _measured(outcome), f"must be {_limit(outcome.threshold)}")]
    if not (duration := recorder.metric("http_req_duration")).count:
        return []
    return [(_NAMES["http_req_duration"] + " p95", show_ms(duration.aggregate("p(95)")), "")]


def write_files(folder: Path, summary: dict[str, Any], page: str) -> None:
    """Write `summary.json` and `report.html` into the folder; raise an `OSError` on failure."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")


def _pictures(recorder: Recorder, verdict: Verdict) -> list[str]:
    if not recorder.timeline:
        return []
    first, last = min(recorder.timeline), max(recorder.timeline)
    slots = {second - first: slot for second, slot in sorted(recorder.timeline.items())}
    # The first and the last second are usually incomplete: their rates would show a drop that did not happen.
    whole = {at: slot for at, slot in slots.items() if 0 < at < last - first} or slots
    width = recorder.width
    throughput = [
        ("requests/s", [(at, slot.trend.count / width) for at, slot in whole.items()]),
    ]
    failures = [
        ("failed", [(at, 100 * slot.failed / slot.trend.count) for at, slot in whole.items() if slot.trend.count])
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
    draw = partial(charts.draw_lines, across="seconds", right=last - first)
    limits = {
        metric: [
            (f"limit {_subject(threshold, short=True)} {_limit(threshold)}", threshold.limit * scale)
            for threshold in (outcome.threshold for outcome in verdict.outcomes)
            if threshold.metric == metric and threshold.aggregate != "count"
        ]
        for metric, scale in (("http_reqs", 1), ("http_req_failed", 100), ("http_req_duration", 1))
    }
    return [
        draw("Latency over time, ms", latency, limits=limits["http_req_duration"]),
        draw("Throughput, requests/s", throughput, limits=limits["http_reqs"]),
        draw("Failed requests, %", failures, limits=limits["http_req_failed"]),
        draw("Users", users),
        charts.draw_histogram(
            "Latency of all requests",
            charts.join_buckets(buckets, _BUCKETS_DRAWN),
            across="milliseconds, logarithmic",
            marks=[(f"{name} {show_ms(value)}", value) for name, value in marks],
            limits=limits["http_req_duration"],
        ),
    ]


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


def _show_metric(metric: dict[str, Any]) -> str:
    values = metric["values"]
    match metric["type"]:
        case "trend":
            return "  ".join(f"{name}={show_ms(values[name], unit='')}" for name in _STATISTICS) + " ms"
        case "rate":
            return f"{values['rate']:.2%}  {values['passes']:,} of {values['passes'] + values['fails']:,}"
        case "counter":
            return f"{values['count']:,}  {values['rate']:,.1f}/s"
    return f"{values['value']:,}"


def _mark(check: dict[str, Any]) -> str:
    """Return the mark of a check; a check that was never made has not passed."""
    if check["fails"]:
        return "FAIL"
    return "pass" if check["passes"] else "none"


def _connections(summary: dict[str, Any]) -> str:
    metrics = summary["metrics"]
    return f"{metrics['connections']['values']['count']:,}" if "connections" in metrics else "0"


def label_series(recorder: Recorder) -> dict[str, Series]:
    """Return the series by name, or by method and name if several methods share a name."""
    names = [name for name, _ in recorder.series]
    return {
        name if names.count(name) == 1 else f"{method} {name}": series
        for (name, method), series in recorder.series.items()
    }


_NAMES = {
    "http_req_duration": "Latency",
    "http_req_failed": "Failed requests",
    "checks": "Checks passed",
    "http_reqs": "Requests",
}
"""Display names of the most common metrics in thresholds; other metrics keep their own names."""
_BEYOND = {"<": "limit", "<=": "limit", ">": "required over", ">=": "required at least"}
_SIGNS = {"<=": "≤ ", ">=": "≥ ", "==": "= ", "===": "= ", "!=": "≠ ", "!==": "≠ "}


def show_ms(value: float, *, unit: str = " ms") -> str:
    """Format milliseconds with three significant digits, and without decimals from 100 on."""
    return f"{value:,.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"  # noqa: PLR2004  three digits


def _show(value: float, threshold: Threshold, digits: str = ".6g") -> str:
    """Format a value in the unit of the threshold's metric: a time, a share, a rate or a count."""
    if threshold.metric in _RATE_NAMES:
        return f"{100 * value:{digits}} %"
    if threshold.metric in _TREND_NAMES and threshold.aggregate != "count":
        return show_ms(value)
    return f"{value:,{digits}}{'/s' if threshold.aggregate == 'rate' else ''}"


def _limit(threshold: Threshold) -> str:
    sign = _sign(threshold)
    return f"{_SIGNS.get(sign, f'{sign} ')}{_show(threshold.limit, threshold)}"


def _sign(threshold: Threshold) -> str:
    return re.sub(r"[^<>=!]", "", threshold.expression)


def _subject(threshold: Threshold, *, short: bool = False) -> str:
    """Return the subject of a threshold: `Latency p95`, `Failed requests`, `Latency{name:page} p99`."""
    aggregate = re.sub(r"^p\((.+)\)$", r"p\1", threshold.aggregate)
    tags = threshold.selector.removeprefix(threshold.metric)
    name = tags if short else _NAMES.get(threshold.metric, threshold.metric) + tags
    return f"{name} {'' if threshold.aggregate == 'rate' else aggregate}".strip()


def _give_reason(outcome: Outcome) -> str:
    """Return why a threshold failed: `p95 383 ms, limit 250 ms`, `checks 97.1 %, required over 99.9 %`."""
    threshold = outcome.threshold
    aggregate = re.sub(r"^p\((.+)\)$", r"p\1", threshold.aggregate)
    subject = aggregate if threshold.selector == "http_req_duration" else f"{threshold.selector} {aggregate}"
    if threshold.metric in _RATE_NAMES:
        subject = threshold.selector
    if outcome.measured is None:
        return f"{subject}: nothing was measured"
    measured = _show(outcome.measured, threshold, ".4g" if threshold.metric in _RATE_NAMES else ".6g")
    sign = _sign(threshold)
    return f"{subject} {measured}, {_BEYOND.get(sign, f'required {sign}')} {_show(threshold.limit, threshold)}"


def _tell(outcome: Outcome) -> str:
    threshold = outcome.threshold
    measured = _measured(outcome) if outcome.measured is None else f"measured {_measured(outcome)}"
    return f"{threshold.selector} {threshold.expression}: {measured}"


def _measured(outcome: Outcome) -> str:
    if outcome.measured is None:
        return "nothing was measured"
    return _show(outcome.measured, outcome.threshold)


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
