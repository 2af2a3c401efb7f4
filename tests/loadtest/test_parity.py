"""What a comparison says of figures: ratios, verdicts, words and a picture."""

import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from bench.parity.comparison import MOST_USERS, Measurement, compare, draw, take_medians, write_markdown

K6 = Measurement(18_000, 74, 4, 12, 20, 1, 144_000, 144_000, 8)
FAST = replace(K6, rps=64_000, cpu_us=12, p50_ms=1.4, count=512_000, server_count=512_000)
EVENTS = replace(FAST, rps=43_000, cpu_us=22)
PYTHON = replace(FAST, rps=50_000, cpu_us=15)
K6_SLOW = Measurement(1_260, 200, 77, 84, 90, 1, 10_080, 10_080, 8)
FAST_SLOW = replace(K6_SLOW, rps=1_265, cpu_us=170, p50_ms=78)
ALL = {
    "k6": [K6],
    "fast": [FAST],
    "python": [PYTHON],
    "fast-events": [EVENTS],
    "k6-tls": [K6],
    "fast-tls": [FAST],
    "k6-slow": [K6_SLOW],
    "fast-slow": [FAST_SLOW],
}


def test_medians_are_taken_value_by_value() -> None:
    rounds = [replace(K6, rps=1, cpu_us=9), replace(K6, rps=5, cpu_us=1), replace(K6, rps=2, cpu_us=5)]
    assert take_medians(rounds) == replace(K6, rps=2, cpu_us=5)


def test_good_figures_hold_everywhere() -> None:
    document = compare(ALL, 2)
    assert all(document["verdicts"].values())
    assert (
        document["ratios"].keys()
        == document["limits"].keys()
        == {
            "cpu",
            "rps",
            "cpu_events",
            "cpu_python",
            "cpu_tls",
            "slow_rps",
            "slow_p50_ms",
            "slow_p95_ms",
            "slow_checks",
        }
    )
    assert document["ratios"]["cpu"] == 12 / 74
    assert document["tools"]["fast"]["server_count"] == 512_000
    assert json.loads(json.dumps(document)) == document
    assert len(document["notes"]) == 2


@pytest.mark.parametrize(
    ("tool", "change", "verdict"),
    [
        ("fast", {"cpu_us": 19}, "cpu"),
        ("fast", {"rps": 44_000}, "rps"),
        ("fast-events", {"cpu_us": 25}, "cpu_events"),
        ("python", {"cpu_us": 16}, "cpu_python"),
        ("fast-tls", {"cpu_us": 74}, "cpu_tls"),
        ("fast-slow", {"rps": 1_190}, "slow_rps"),
        ("fast-slow", {"p50_ms": 82}, "slow_p50_ms"),
        ("fast-slow", {"p95_ms": 75}, "slow_p95_ms"),
        ("fast-slow", {"checks": 0.999}, "slow_checks"),
        ("k6-slow", {"checks": 0}, "slow_checks"),
        ("fast", {"count": 511_999}, "count_fast"),
        ("k6", {"count": 144_000 - MOST_USERS - 1}, "count_k6"),
        ("k6", {"count": 144_001}, "count_k6"),
        ("k6-slow", {"exit_code": 99}, "exit_k6-slow"),
        ("fast-slow", {"exit_code": 1}, "exit_fast-slow"),
    ],
)
def test_each_figure_can_fail(tool: str, change: dict[str, float], verdict: str) -> None:
    document = compare({**ALL, tool: [replace(ALL[tool][0], **change)]}, 2)
    assert [name for name, holds in document["verdicts"].items() if not holds] == [verdict]
    words = write_markdown(document)
    assert ("differ for" in words) is verdict.startswith("count_")
    assert ("**no**" in words) is not verdict.startswith(("count_", "exit_"))
    assert (f"**{tool} did not report its own run as passed" in words) is verdict.startswith("exit_")


def test_a_tool_that_is_the_limit_may_call_its_run_invalid() -> None:
    document = compare({**ALL, "fast": [replace(FAST, exit_code=1)]}, 2)
    assert all(document["verdicts"].values())


def test_small_differences_at_small_latencies_are_no_disagreement() -> None:
    fast, slow = replace(K6_SLOW, p50_ms=2.9, p95_ms=5.9), replace(K6_SLOW, p50_ms=2, p95_ms=4)
    document = compare({"k6-slow": [slow], "fast-slow": [fast]}, 2)
    assert document["verdicts"]["slow_p50_ms"]
    assert document["verdicts"]["slow_p95_ms"]
    assert "cpu" not in document["verdicts"]


def test_words_and_picture_name_every_tool() -> None:
    document = compare(ALL, 2)
    words, picture = write_markdown(document), draw(document)
    ET.fromstring(picture)  # noqa: S314  our own
    for name in ALL:
        assert f"| {name} |" in words
        assert f">{name}</text>" in picture
    assert "agree for every tool and round" in words
    assert compare({}, 2)["notes"] == []
    assert "The machine was busy with something else" in compare({}, 2, load=3.5)["notes"][0]
