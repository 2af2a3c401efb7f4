"""What each case has shown, as the table at the end, as out/cluster.json and as out/cluster.html."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loadtest.pages import Kind, write_banner, write_figures, write_page, write_table

FILE = Path(__file__).resolve().parents[2] / "out" / "cluster.json"
CASES = {
    "test_accepted": "Accepted",
    "test_oracle": "Rejections",
    "test_comes_up": "Comes up",
    "test_policies": "Policies",
    "test_dropped": "Nothing dropped",
    "test_startup": "Startup and probes",
    "test_autoscaling": "Autoscaling",
    "test_database": "Database",
    "test_gateway": "Gateway and certificates",
    "test_observed": "Observed",
    "test_loadtest": "Load test in the cluster",
}
"""The cases by their modules, in their order."""

PASSED, FAILED, NOT_RUN = "passed", "FAILED", "NOT RUN"


@dataclass
class Check:
    """One test of a case."""

    case: str
    name: str
    result: str
    reason: str = ""
    seconds: float = 0.0
    figures: dict[str, object] = field(default_factory=dict)


def result(checks: Iterable[Check]) -> str:
    """A case's own: it has passed when all that was run has, and something was."""
    results = {check.result for check in checks}
    return next((one for one in (FAILED, PASSED) if one in results), NOT_RUN)


def lines(checks: list[Check]) -> Iterator[str]:
    """The table: a line for each case, below it what each check has measured and why one was not run."""
    for case in CASES.values():
        ours = [check for check in checks if check.case == case]
        if not ours:
            continue
        counts = [f"{sum(check.result == one for check in ours)} {one}" for one in (PASSED, FAILED, NOT_RUN)]
        reported = ", ".join(one for one in counts if not one.startswith("0 "))
        yield f"{result(ours):8} {case:26} {sum(check.seconds for check in ours):5.0f} s  {reported}"
        for check in ours:
            if check.reason:
                yield f"         {check.result} {check.name}: {check.reason}"
            if check.figures:
                yield f"         {check.name}: {', '.join(f'{key} {value}' for key, value in check.figures.items())}"


def write(checks: list[Check], context: str, version: str, seconds: float) -> None:
    FILE.parent.mkdir(exist_ok=True)
    summary = {case: result(ours) for case in CASES.values() if (ours := [one for one in checks if one.case == case])}
    report = {
        "context": context,
        "kubernetes": version,
        "seconds": round(seconds),
        "cases": summary,
        "checks": [asdict(check) for check in checks],
    }
    FILE.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    FILE.with_suffix(".html").write_text(write_html(checks, context, version, seconds), encoding="utf-8")


def write_html(checks: list[Check], context: str, version: str, seconds: float) -> str:
    """The report that people read: how it ended and why, then each case and what its checks have measured."""
    counts = {one: sum(check.result == one for check in checks) for one in (PASSED, FAILED, NOT_RUN)}
    outcome = result(checks)
    kind: Kind = {PASSED: "good", FAILED: "bad"}.get(outcome, "none")  # type: ignore[assignment]  # its values are kinds
    reasons = [f"{check.case}, {check.name}: {check.reason}" for check in checks if check.result == FAILED]
    marks = {PASSED: "pass", FAILED: "FAIL", NOT_RUN: NOT_RUN}
    cases = {case: ours for case in CASES.values() if (ours := [check for check in checks if check.case == case])}
    rows = [
        [case, f"{sum(check.seconds for check in ours):.0f}", str(len(ours)), marks[result(ours)]]
        for case, ours in cases.items()
    ]
    body = [
        write_banner("Cluster test", outcome, kind, reasons=reasons, about=f"Kubernetes {version}, context {context}"),
        write_figures(
            [
                ("checks passed", str(counts[PASSED]), f"of {len(checks)}"),
                ("failed", str(counts[FAILED]), ""),
                ("not run", str(counts[NOT_RUN]), "for want of something in the cluster"),
                ("time", f"{seconds / 60:.0f}", "min"),
            ]
        ),
        write_table("Cases", ["Case", "Seconds", "Checks", "Result"], rows),
        *(
            write_table(
                case,
                ["Check", "Measured", "Result"],
                [
                    [
                        check.name,
                        ", ".join(f"{key} {value}" for key, value in check.figures.items()) or check.reason,
                        marks[check.result],
                    ]
                    for check in ours
                ],
            )
            for case, ours in cases.items()
        ),
    ]
    return write_page(f"Cluster test: {outcome}", "\n".join(body))
