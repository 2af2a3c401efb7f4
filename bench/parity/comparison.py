"""The results of a comparison of tools: medians over rounds, ratios, verdicts, and their report and chart."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from loadtest import pages
from loadtest.charts import draw_bars, stack

MOST_USERS = 100
"""Users of each run, and thus the maximum number of requests that are pending when it ends."""

QUIET = 0.25
"""The load average per core up to which a machine counts as quiet."""


@dataclass(frozen=True)
class Measurement:
    """One tool's run, or the medians of several.

    `cpu_us` is the CPU time in microseconds that the whole tool used per request; `checks` is the ratio of passed
    checks; `count` and `server_count` are the requests that the tool and the server counted; `exit_code` is the tool's.
    """

    rps: float
    cpu_us: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    checks: float
    count: float
    server_count: float
    seconds: float
    exit_code: float = 0

    @property
    def cores(self) -> float:
        return self.rps * self.cpu_us / 1e6


def take_medians(rounds: Sequence[Measurement]) -> Measurement:
    rows = [asdict(measurement) for measurement in rounds]
    return Measurement(**{name: median(row[name] for row in rows) for name in rows[0]})


def compare(rounds: Mapping[str, Sequence[Measurement]], cores: int, load: float = 0.0) -> dict[str, Any]:
    """Return the document `parity.json`: medians by tool, ratios of ours to k6's, and verdicts.

    The tools are `k6`, `fast`, `python`, `fast-events` and `fasthttp` against a server that is faster than they are;
    with `-tls`, the same over TLS; with `-slow`, against a server that responds after a delay. `load` is the load
    average before the first run, from other work on the machine.
    """
    medians = {name: take_medians(measured) for name, measured in rounds.items()}
    ratios: dict[str, float] = {}
    verdicts: dict[str, bool] = {}
    limits: dict[str, str] = {}

    def judge(name: str, limit: str, ratio: float, *, holds: bool) -> None:
        ratios[name], limits[name], verdicts[name] = ratio, limit, holds

    if {"k6", "fast"} <= medians.keys():
        k6, fast = medians["k6"], medians["fast"]
        cpu, rps = fast.cpu_us / k6.cpu_us, fast.rps / k6.rps
        judge("cpu", "at most 0.25", cpu, holds=cpu <= 0.25)
        judge("rps", "at least 2.5", rps, holds=rps >= 2.5)
    if {"k6", "fast-events"} <= medians.keys():
        cpu = medians["fast-events"].cpu_us / medians["k6"].cpu_us
        judge("cpu_events", "at most 0.333", cpu, holds=cpu <= 1 / 3)
    if {"fast", "python"} <= medians.keys():
        cpu = medians["python"].cpu_us / medians["fast"].cpu_us
        judge("cpu_python", "at most 1.3, relative to fast", cpu, holds=cpu <= 1.3)
    if {"k6-tls", "fast-tls"} <= medians.keys():
        cpu = medians["fast-tls"].cpu_us / medians["k6-tls"].cpu_us
        judge("cpu_tls", "below 1", cpu, holds=cpu < 1)
    if {"k6-slow", "fast-slow"} <= medians.keys():
        _agree(medians["k6-slow"], medians["fast-slow"], judge)
    for name, measured in rounds.items():
        if name.endswith("-slow"):
            # If a tool is not the bottleneck, it must exit with 0. If it is, ours reports its own run as invalid, as it
            # should, so the exit code is not checked there.
            verdicts[f"exit_{name}"] = all(measurement.exit_code == 0 for measurement in measured)
        verdicts[f"count_{name}"] = all(_counts_agree(name, measurement) for measurement in measured)
    return {
        "tools": {name: {**asdict(measured), "rounds": len(rounds[name])} for name, measured in medians.items()},
        "ratios": ratios,
        "limits": limits,
        "verdicts": verdicts,
        "notes": _explain(medians, cores, load),
    }


def _agree(k6: Measurement, ours: Measurement, judge: Any) -> None:
    rps = ours.rps / k6.rps
    judge("slow_rps", "within 5%", rps, holds=abs(rps - 1) <= 0.05)
    for name, share, least in (("p50_ms", 0.05, 1.0), ("p95_ms", 0.10, 2.0)):
        theirs, own = getattr(k6, name), getattr(ours, name)
        limit = f"within {share:.0%} or {least:g} ms"
        judge(f"slow_{name}", limit, own / theirs, holds=abs(own - theirs) <= max(share * theirs, least))
    checks = ours.checks / k6.checks if k6.checks else 0.0
    judge("slow_checks", "equal", checks, holds=ours.checks == k6.checks)


def _counts_agree(name: str, measured: Measurement) -> bool:
    """Ours must equal the server's count; k6 does not count requests cut off at the end, at most one per user."""
    missing = measured.server_count - measured.count
    return 0 <= missing <= MOST_USERS if name.startswith("k6") else missing == 0


def _explain(medians: Mapping[str, Measurement], cores: int, load: float) -> list[str]:
    notes = []
    if load > QUIET * cores:
        notes.append(
            f"The machine was busy with something else before the start (load average {load:.1f} on {cores} cores): "
            "do not trust rates and latencies; ratios of CPU time are a little more reliable."
        )
    if {"k6", "fast"} <= medians.keys():
        k6, fast = medians["k6"], medians["fast"]
        notes.append(
            "If the server is faster than the tools, the tools are expected to report different figures. "
            f"On {cores} cores, k6 used {k6.cores:.2f} cores for {k6.rps:,.0f} requests/s, and `fast` used "
            f"{fast.cores:.2f} cores for {fast.rps:,.0f} requests/s. The tool and the server share these cores, so the "
            "tool causes most of the measured latency."
        )
    if {"k6-slow", "fast-slow"} <= medians.keys():
        k6, fast = medians["k6-slow"], medians["fast-slow"]
        notes.append(
            f"If the server is the bottleneck, both tools need little CPU time (k6 used {k6.cores:.2f} of {cores} "
            f"cores, and `fast` used {fast.cores:.2f}). In the closed model, they must then report the same figures."
        )
    return notes


def write_markdown(document: Mapping[str, Any]) -> str:
    heads = ["tool", "requests/s", "CPU µs/request", "p50 ms", "p95 ms", "p99 ms", "checks", "rounds"]
    tools = [
        [
            name,
            f"{tool['rps']:,.0f}",
            f"{tool['cpu_us']:.1f}",
            *(f"{tool[key]:.2f}" for key in ("p50_ms", "p95_ms", "p99_ms")),
            f"{tool['checks']:.2%}",
            str(tool["rounds"]),
        ]
        for name, tool in document["tools"].items()
    ]
    ratios = [
        [name, f"{ratio:.3f}", document["limits"][name], "yes" if document["verdicts"][name] else "**no**"]
        for name, ratio in document["ratios"].items()
    ]
    lines = [*pages.write_markdown(heads, tools), ""]
    lines += pages.write_markdown(["ratio, ours to k6's", "measured", "limit", "met"], ratios)
    wrong = [name for name, holds in document["verdicts"].items() if name.startswith("count_") and not holds]
    counts = f"differ for {', '.join(wrong)}" if wrong else "agree for every tool and round"
    lines += ["", f"The request counts of the tool and the server {counts}.", ""]
    lines += [
        f"**{name.removeprefix('exit_')} did not report its own run as passed (its exit code was not 0).**\n"
        for name, holds in document["verdicts"].items()
        if name.startswith("exit_") and not holds
    ]
    return "\n".join([*lines, *document["notes"], ""])


def draw(document: Mapping[str, Any]) -> str:
    bars = [(name, tool["cpu_us"], f"{tool['cpu_us']:.1f} µs") for name, tool in document["tools"].items()]
    return stack(draw_bars("CPU time of the load generator per request", bars, across="shorter is better"))
