"""The reports of a drill: a summary for the terminal, JSON, and one HTML page with its timelines as charts."""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from drills.drill import LONGEST_READ, Case, Check, Drill
from drills.timeline import Timeline, draw
from loadtest.charts import stack
from loadtest.pages import Kind, write_banner, write_charts, write_figures, write_markdown, write_page, write_table


def summarize(drill: Drill) -> dict[str, Any]:
    """Return the whole drill as plain data."""
    figures = [case.figures for case in drill.cases if case.figures is not None]
    return {
        "drill": drill.name,
        "passed": drill.passed,
        "attempts": 1 if drill.first_attempt is None else 2,
        "broken_off": drill.broken_off,
        "not_run": drill.not_run,
        "short": drill.short,
        "seed": drill.seed,
        "promotion": drill.promotion,
        "started": datetime.fromtimestamp(drill.started, UTC).isoformat(timespec="seconds"),
        "seconds": round(drill.seconds, 1),
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "load_before": round(drill.load_before, 2),
        **vars(drill.verdict),
        "errors_shown": sum(case.errors for case in figures),
        "longest_answer_s": max((case.longest_answer_s for case in figures), default=0.0),
        "write_gap_s": max((case.write_gap_s for case in figures), default=0.0),
        "requests": drill.requests,
        "failed": drill.failed,
        "checks": [_dump(check) for check in drill.whole],
        "cases": [
            {
                "name": case.name,
                "explanation": case.explanation,
                "passed": case.passed,
                "not_run": case.not_run,
                **(case.figures._asdict() if case.figures else {}),
                "checks": [_dump(check) for check in case.checks],
            }
            for case in drill.cases
        ],
        "controls": [{**control._asdict(), "shown": control.shown} for control in drill.controls],
        "timelines": [timeline.dump() for timeline in drill.timelines],
    }


def _dump(check: Check) -> dict[str, Any]:
    return {**check._asdict(), "holds": check.holds}


def write_text(drill: Drill) -> str:
    """Return the summary for a terminal."""
    lines = ["", f"{drill.name}: {drill.outcome} in {drill.seconds:.0f} s (seed {drill.seed})"]
    lines += [f"  warning: {drill.warning}"] if drill.warning else []
    for case in drill.cases:
        lines.append(f"  {case.name}" + (f": not run: {case.not_run}" if case.not_run else ""))
        lines += [_tell(check) for check in case.checks]
    if not drill.held:
        return "\n".join([*lines, "", ""])
    lines.append("  overall")
    lines += [_tell(check) for check in drill.whole]
    lines.append("  controls, which must show damage")
    for control in drill.controls:
        lines.append(f"    {'ok ' if control.shown else 'BAD'} {control.name}: {control.measured:g} {control.damage}")
    return "\n".join([*lines, "", ""])


def write_total(drills: Sequence[Drill]) -> str:
    """Return the counts of all drills, and the cases that were not run, which do not count as passed."""
    passed = sum(drill.passed for drill in drills)
    not_run = sum(not drill.held for drill in drills)
    left_out = [
        f"{drill.name}/{case.name} ({case.not_run})" for drill in drills for case in drill.cases if case.not_run
    ]
    details = "".join(f"\n  not run: {what}" for what in left_out)
    failed = len(drills) - passed - not_run
    cases = f"{len(left_out)} of {sum(len(drill.cases) for drill in drills)} cases not run"
    again = [drill.name for drill in drills if drill.first_attempt is not None]
    details += (
        f"\n  second attempts: {len(again)} ({', '.join(again)}); the first failed, see NAME-first.html"
        if again
        else ""
    )
    return f"{len(drills)} drills: {passed} passed, {failed} failed, {not_run} not run; {cases}{details}\n"


def _tell(check: Check) -> str:
    mark = "ok " if check.holds else "BAD"
    return f"    {mark} {check.what}: {check.measured:,g} (must be {check.comparison} {check.limit:,g})"


def write_html(drill: Drill) -> str:
    """Return the report as one self-contained page."""
    about = (
        f"{datetime.fromtimestamp(drill.started, UTC):%Y-%m-%d %H:%M} UTC, {drill.seconds:.0f} seconds, "
        f"seed {drill.seed}{', short form' if drill.short else ''}"
    )
    first = ""
    if drill.first_attempt is not None:
        first = f'<p>This is a second attempt: <a href="{drill.name}-first.html">the first</a> failed.</p>'
    kind: Kind = "bad" if not drill.passed else "none" if drill.not_run else "good"
    parts = [
        write_banner(
            f"Drill {drill.name}", drill.outcome, kind, reasons=list(_give_reasons(drill)), about=about, more=first
        )
    ]
    parts += [f'<p class="warn">Warning: {escape(drill.warning)}.</p>'] if drill.warning else []
    parts += [write_figures(_choose_figures(drill))] if drill.held else []
    parts += [_write_checks("Overall", drill.whole)] if drill.held else []
    for case in drill.cases:
        parts += [f"<h2>{escape(case.name)}</h2>", f"<p>{escape(case.explanation)}.</p>"]
        parts += [f'<p class="warn">Not run: {escape(case.not_run)}.</p>'] if case.not_run else []
        parts.append(
            write_charts([picture for line in _timelines(drill, case) for picture in draw(line, _limit(case))])
        )
        parts.append(_write_checks("Checks", case.checks, level=3))
    controls = [
        [
            f"{control.name}: {control.explanation}",
            f"{control.measured:,g} {control.damage}",
            f"> {control.limit:g}",
            "pass" if control.shown else "FAIL",
        ]
        for control in drill.controls
    ]
    heads = ["Control", "Damage", "Limit", "Result"]
    title = "Controls: one safeguard removed, which must show damage"
    parts += [write_table(title, heads, controls)] if drill.held else []
    return write_page(f"Drill {drill.name}: {drill.outcome}", "\n".join(parts))


def _give_reasons(drill: Drill) -> Iterator[str]:
    """Yield why a drill has not passed, and which cases were not run."""
    if drill.broken_off:
        yield f"did not finish: {drill.broken_off}"
    for name, checks in (("overall", drill.whole), *((case.name, case.checks) for case in drill.held)):
        for check in checks:
            if not check.holds and drill.held:
                yield f"{name}: {check.what} {check.measured:,g}, must be {_show_limit(check)}"
    for control in drill.controls:
        if not control.shown:
            yield f"control {control.name}: {control.measured:,g} {control.damage}, must be > {control.limit:g}"
    for case in drill.cases:
        if case.not_run:
            yield f"{case.name} was not run: {case.not_run}"


def _choose_figures(drill: Drill) -> list[tuple[str, str, str]]:
    verdict, seen = drill.verdict, [case.figures for case in drill.cases if case.figures is not None]
    return [
        ("Acknowledged writes lost", f"{verdict.lost:,}", f"of {verdict.acknowledged:,}"),
        ("Writes duplicated", f"{verdict.duplicated:,}", ""),
        ("Longest response", f"{max((case.longest_answer_s for case in seen), default=0):.2f} s", ""),
        ("Longest pause between writes", f"{max((case.write_gap_s for case in seen), default=0):.2f} s", ""),
        ("Requests", f"{drill.requests:,}", ""),
        ("Errors shown", f"{sum(case.errors for case in seen):,}", f"{drill.failed:,} of these other than 503"),
    ]


def _timelines(drill: Drill, case: Case) -> list[Timeline]:
    return [timeline for timeline in drill.timelines if timeline.title == case.name]


def _limit(case: Case) -> float | None:
    """Return the limit of a case's longest response or longest read, if there is one."""
    return next((check.limit for check in case.checks if check.what in {"longest response, s", LONGEST_READ}), None)


def _write_checks(title: str, checks: list[Check], *, level: int = 2) -> str:
    rows = [
        [
            check.what + (" (timing)" if check.kind == "timing" else ""),
            f"{check.measured:,g}",
            _show_limit(check),
            "pass" if check.holds else "FAIL",
        ]
        for check in checks
    ]
    return write_table(title, ["Check", "Measured", "Limit", "Result"], rows, level=level)


def _show_limit(check: Check) -> str:
    return f"{check.comparison.replace('<=', '≤').replace('>=', '≥')} {check.limit:,g}"


def write_tables(reports: Sequence[dict[str, Any]]) -> str:
    """Return all drills of a run as Markdown tables, from their summaries."""
    acknowledged = sum(report["acknowledged"] for report in reports)
    broken = {name: sum(report[name] for report in reports) for name in ("lost", "duplicated", "phantom", "failed")}
    machine = reports[0]["machine"]
    conditions = (
        f"The drills ran on {reports[0]['started'][:10]}, with Python {machine['python']}, and all processes shared "
        f"{machine['cores']} cores. The clients sent {sum(report['requests'] for report in reports):,} requests. Of "
        f"{acknowledged:,} acknowledged writes, {broken['lost']} were lost and {broken['duplicated']} were duplicated. "
        f"The table contained {broken['phantom']} unexpected rows (written by no client). Apart from "
        f"requests that got a `503`, {broken['failed']} requests failed."
    )
    cases = [[report["drill"], *_write_cells(case)] for report in reports for case in report["cases"]]
    controls = [
        [f"**{one['name']}**: {one['explanation']}", f"{one['measured']:,g} {one['damage']}"]
        for report in reports
        for one in report["controls"]
    ]
    heads = [
        "drill",
        "what happens",
        "requests",
        "errors",
        "longest response, s",
        LONGEST_READ,
        "longest pause between writes, s",
    ]
    return "\n".join(
        [
            conditions,
            "",
            *write_markdown(heads, cases),
            "",
            *write_markdown(["control: a case without one safeguard", "damage"], controls),
            "",
        ]
    )


def _write_cells(case: dict[str, Any]) -> list[str]:
    what = f"**{case['name']}**: {case['explanation']}"
    if case.get("not_run"):
        return [what, f"not run: {case['not_run']}", "", "", "", ""]
    if "requests" not in case:
        return [what, "", "", "", "", ""]  # there were no requests in this case
    reads = [f"{check['measured']:.2f}" for check in case["checks"] if check["what"] == LONGEST_READ]
    figures = [f"{case['longest_answer_s']:.2f}", *(reads or [""]), f"{case['write_gap_s']:.2f}"]
    return [what, f"{case['requests']:,}", f"{case['errors']:,}", *figures]


def remove_files(drill: Drill, folder: Path) -> None:
    """Remove an earlier run's reports, but not the report of this run's first attempt."""
    for kind in ("json", "html"):
        (folder / f"{drill.name}.{kind}").unlink(missing_ok=True)
        if drill.first_attempt is None:
            (folder / f"{drill.name}-first.{kind}").unlink(missing_ok=True)


def keep_files(drill: Drill, folder: Path) -> None:
    """Keep the report of a first attempt next to that of the second."""
    for kind in ("json", "html"):
        (folder / f"{drill.name}.{kind}").rename(folder / f"{drill.name}-first.{kind}")


def write_files(drill: Drill, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{drill.name}.json").write_text(json.dumps(summarize(drill), indent=1) + "\n", encoding="utf-8")
    (folder / f"{drill.name}.html").write_text(write_html(drill), encoding="utf-8")
    for case in drill.cases:
        for timeline in _timelines(drill, case):
            name = f"{drill.name}-{timeline.title.replace(' ', '-')}.svg"
            (folder / name).write_text(stack(*draw(timeline, _limit(case))), encoding="utf-8")
