"""What a drill leaves behind: a summary in the terminal, JSON, and one HTML page with its timelines as pictures."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from drills.drill import Check, Drill
from drills.timeline import draw
from loadtest.charts import stack
from loadtest.pages import write_markdown, write_page, write_table


def summarize(drill: Drill) -> dict[str, Any]:
    """The whole drill as plain data."""
    figures = [case.figures for case in drill.cases if case.figures is not None]
    return {
        "drill": drill.name,
        "passed": drill.passed,
        "attempts": 1 if drill.first_attempt is None else 2,
        "broken_off": drill.broken_off,
        "not_run": drill.not_run,
        "short": drill.short,
        "seed": drill.seed,
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
    """The summary for a terminal."""
    lines = ["", f"{drill.name}: {drill.outcome} in {drill.seconds:.0f} s (seed {drill.seed})"]
    lines += [f"  warning: {drill.warning}"] if drill.warning else []
    for case in drill.cases:
        lines.append(f"  {case.name}" + (f": not run: {case.not_run}" if case.not_run else ""))
        lines += [_tell(check) for check in case.checks]
    if not drill.held:
        return "\n".join([*lines, "", ""])
    lines.append("  altogether")
    lines += [_tell(check) for check in drill.whole]
    lines.append("  controls, which must show damage")
    for control in drill.controls:
        lines.append(f"    {'ok ' if control.shown else 'BAD'} {control.name}: {control.measured:g} {control.damage}")
    return "\n".join([*lines, "", ""])


def write_total(drills: Sequence[Drill]) -> str:
    """One line that counts the drills, and names what was not run: none of that has passed."""
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
    """One page that needs no other file."""
    result = "passed" if drill.passed and not drill.not_run else f'<span class="bad">{escape(drill.outcome)}</span>'
    parts = [f"<h1>{escape(drill.name)}: {result}</h1>"]
    parts.append(
        f"<p>{datetime.fromtimestamp(drill.started, UTC):%Y-%m-%d %H:%M} UTC, {drill.seconds:.0f} seconds, "
        f"{drill.requests:,} requests, {drill.verdict.acknowledged:,} acknowledged writes, seed {drill.seed}"
        f"{', short form' if drill.short else ''}.</p>"
    )
    parts += [f"<p>{escape(drill.warning.capitalize())}.</p>"] if drill.warning else []
    parts += [f'<p class="bad">Broken off: {escape(drill.broken_off)}.</p>'] if drill.broken_off else []
    if drill.first_attempt is not None:
        parts.append(f'<p>A second attempt: <a href="{drill.name}-first.html">the first</a> failed.</p>')
    drawn = {timeline.title: "\n".join(draw(timeline)) for timeline in drill.timelines}
    for case in drill.cases:
        parts += [f"<h2>{escape(case.name)}</h2>", f"<p>{escape(case.explanation)}.</p>", drawn.get(case.name, "")]
        parts += [f'<p class="bad">Not run: {escape(case.not_run)}.</p>'] if case.not_run else []
        parts.append(_table("What must hold", case.checks))
    parts += _write_whole(drill) if drill.held else []
    return write_page(f"Drill: {drill.name}", "\n".join(parts))


def _write_whole(drill: Drill) -> list[str]:
    rows = [
        [
            f"{control.name}: {control.explanation}",
            f"{control.measured:,g} {control.damage}",
            f"more than {control.limit:g}",
            "pass" if control.shown else "FAIL",
        ]
        for control in drill.controls
    ]
    return [
        _table("Altogether", drill.whole),
        write_table("Controls: one safety taken away, which must show damage", ["", "Damage", "Limit", ""], rows),
    ]


def _table(title: str, checks: list[Check]) -> str:
    rows = [
        [
            check.what,
            check.kind,
            f"{check.measured:,g}",
            f"{check.comparison} {check.limit:,g}",
            "pass" if check.holds else "FAIL",
        ]
        for check in checks
    ]
    return write_table(title, ["Check", "Kind", "Measured", "Limit", ""], rows)


def write_tables(reports: Sequence[dict[str, Any]]) -> str:
    """All drills of a run as tables in Markdown, from their summaries."""
    acknowledged = sum(report["acknowledged"] for report in reports)
    broken = {name: sum(report[name] for report in reports) for name in ("lost", "duplicated", "phantom", "failed")}
    machine = reports[0]["machine"]
    conditions = (
        f"{reports[0]['started'][:10]}, {machine['cores']} cores for everything, Python {machine['python']}: "
        f"{sum(report['requests'] for report in reports):,} requests, {acknowledged:,} acknowledged writes, "
        f"{broken['lost']} lost, {broken['duplicated']} duplicated; {broken['phantom']} writes that no client sent; "
        f"{broken['failed']} requests failed otherwise than by `503`."
    )
    cases = [[report["drill"], *_write_cells(case)] for report in reports for case in report["cases"]]
    controls = [
        [f"**{one['name']}**: {one['explanation']}", f"{one['measured']:,g} {one['damage']}"]
        for report in reports
        for one in report["controls"]
    ]
    heads = ["drill", "what happens", "requests", "errors shown", "longest answer, s", "longest pause of writes, s"]
    return "\n".join(
        [
            conditions,
            "",
            *write_markdown(heads, cases),
            "",
            *write_markdown(["control: the same without a safety", "damage it shows"], controls),
            "",
        ]
    )


def _write_cells(case: dict[str, Any]) -> list[str]:
    what = f"**{case['name']}**: {case['explanation']}"
    if case.get("not_run"):
        return [what, f"not run: {case['not_run']}", "", "", ""]
    if "requests" not in case:
        return [what, "", "", "", ""]  # there were no requests meanwhile
    figures = [f"{case['longest_answer_s']:.2f}", f"{case['write_gap_s']:.2f}"]
    return [what, f"{case['requests']:,}", f"{case['errors']:,}", *figures]


def remove_files(drill: Drill, folder: Path) -> None:
    """Remove what an earlier run left, but not the report of this one's first attempt."""
    for kind in ("json", "html"):
        (folder / f"{drill.name}.{kind}").unlink(missing_ok=True)
        if drill.first_attempt is None:
            (folder / f"{drill.name}-first.{kind}").unlink(missing_ok=True)


def keep_files(drill: Drill, folder: Path) -> None:
    """Keep the report of a first attempt beside that of the second."""
    for kind in ("json", "html"):
        (folder / f"{drill.name}.{kind}").rename(folder / f"{drill.name}-first.{kind}")


def write_files(drill: Drill, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{drill.name}.json").write_text(json.dumps(summarize(drill), indent=1) + "\n", encoding="utf-8")
    (folder / f"{drill.name}.html").write_text(write_html(drill), encoding="utf-8")
    for timeline in drill.timelines:
        name = f"{drill.name}-{timeline.title.replace(' ', '-')}.svg"
        (folder / name).write_text(stack(*draw(timeline)), encoding="utf-8")
