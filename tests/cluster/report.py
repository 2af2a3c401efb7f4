"""What each case has shown, as the table at the end and as out/cluster.json."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "out" / "cluster.json"
CASES = {
    "test_accepted": "Accepted",
    "test_oracle": "Oracle",
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
