"""The README's figures and picture of the drills, made from the reports of the last full run."""

import json
import sys
from typing import Any

from drills import ROOT
from drills.catalogue import DRILLS
from drills.timeline import Timeline, draw
from tools.page import fill

REPORTS = ROOT / "out" / "drills"
PICTURE = ROOT / "docs" / "img" / "drill-failover.svg"
_ORDER = list(DRILLS)
_PICTURED = ("failover", "kill")


def main() -> int:
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(REPORTS.glob("*.json"))]
    names = {report["drill"] for report in reports}
    if names != set(DRILLS) or any(report["short"] or not report["passed"] for report in reports):
        sys.stderr.write(f"error: {REPORTS} lacks a full run of some drill that passed: run `make drills` first\n")
        return 1
    reports.sort(key=lambda report: _ORDER.index(report["drill"]))
    try:
        fill(ROOT / "README.md", "drills", write_tables(reports))
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    (timeline,) = (
        Timeline.load(data)
        for report in reports
        for data in report["timelines"]
        if (report["drill"], data["title"]) == _PICTURED
    )
    title = f"{len(timeline.marks)} times the primary is killed while 32 users write"
    PICTURE.write_text(draw(timeline._replace(title=title)) + "\n", encoding="utf-8")
    return 0


def write_tables(reports: list[dict[str, Any]]) -> str:
    first = reports[0]
    acknowledged = sum(report["acknowledged"] for report in reports)
    broken = {name: sum(report[name] for report in reports) for name in ("lost", "duplicated", "phantom", "failed")}
    machine = first["machine"]
    told = (
        f"{first['started'][:10]}, {machine['cores']} cores for everything, Python {machine['python']}: "
        f"{sum(report['requests'] for report in reports):,} requests, {acknowledged:,} acknowledged writes, of which "
        f"{broken['lost']} lost, {broken['duplicated']} done twice; {broken['phantom']} writes that nobody asked for; "
        f"{broken['failed']} requests failed otherwise than by `503`."
    )
    lines = [
        told,
        "",
        "| drill | what happens | requests | errors shown | longest answer, s | longest pause between writes, s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [_write_row(report["drill"], case) for report in reports for case in report["cases"]]
    lines += ["", "| control: the same without a safety | damage it shows |", "|---|---|"]
    lines += [
        f"| **{control['name']}**: {control['explanation']} | {control['measured']:,g} {control['damage']} |"
        for report in reports
        for control in report["controls"]
    ]
    return "\n".join(lines)


def _write_row(drill: str, case: dict[str, Any]) -> str:
    what = f"| {drill} | **{case['name']}**: {case['explanation']} "
    if case.get("not_run"):
        return f"{what}| not run: {case['not_run']} | | | |"
    if "requests" not in case:
        return f"{what}| | | | |"  # nobody asked for anything meanwhile
    figures = (
        f"| {case['requests']:,} | {case['errors']:,} | {case['longest_answer_s']:.2f} | {case['write_gap_s']:.2f} |"
    )
    return what + figures


if __name__ == "__main__":
    sys.exit(main())
