"""Thresholds: their grammar, what they compare, and where their defaults come from."""

from pathlib import Path

import pytest

from recorder import Recorder
from thresholds import complete, evaluate, parse_threshold, read_objectives


def measured() -> Recorder:
    recorder = Recorder()
    for name, seconds in (("page", 0.01), ("api", 0.1)):
        series = recorder.add_series(name, "GET")
        for _ in range(100):
            series.fresh.add(seconds)
    recorder.add_check("good").passes += 99
    recorder.add_check("good").fails += 1
    recorder.shift(1)
    list(recorder.fold())
    recorder.shift(-1)
    return recorder


@pytest.mark.parametrize(
    ("selector", "expression", "ok"),
    [
        ("http_req_duration", "p(95)<250", True),
        ("http_req_duration", "p(99.9) > 250", False),
        ("http_req_duration{name:page}", "max<=10", True),
        ("http_req_duration{name:api}", "max<=10", False),
        ("http_req_duration", "count==200", True),
        ("http_req_failed", "rate<0.001", True),
        ("checks", "rate>0.999", False),
        ("checks{check:good}", "rate>=0.99", True),
        ("http_reqs", "count!=200", False),
        ("http_reqs{name:api}", "count==100", True),
        ("dropped_iterations", "count==0", True),
    ],
)
def test_a_threshold_holds_or_not(selector: str, expression: str, ok: bool) -> None:  # noqa: FBT001  a parameter of the test
    threshold = parse_threshold(selector, expression)
    assert threshold.selector == selector
    (outcome,) = evaluate([threshold], measured())
    assert outcome.ok is ok
    assert outcome.measured is not None


@pytest.mark.parametrize("selector", ["http_req_duration", "http_req_failed", "checks"])
def test_what_was_not_measured_fails(selector: str) -> None:
    expression = "p(95)<250" if selector == "http_req_duration" else "rate<0.5"
    (outcome,) = evaluate([parse_threshold(selector, expression)], Recorder())
    assert (outcome.measured, outcome.ok) == (None, False)


@pytest.mark.parametrize(
    ("selector", "expression", "message"),
    [
        ("http_req_time", "p(95)<1", "there is no metric `http_req_time`; there are http_req_duration"),
        ("http_reqs{", "count>1", "there is no metric"),
        ("checks{name:a}", "rate>1", "`checks` cannot be narrowed by `name`"),
        ("iterations{name:a}", "count>1", "`iterations` cannot be narrowed by `name`"),
        ("checks", "rate", "is no threshold"),
        ("checks", "rate>0.9 && rate<1", "is no threshold"),
        ("checks", "p(95)<1", "`checks` has no `p\\(95\\)`; it has rate"),
        ("http_reqs", "avg<1", "`http_reqs` has no `avg`; it has count, rate"),
        ("http_req_duration", "p(101)<1", "`p\\(101\\)` is beyond 100 %"),
    ],
)
def test_other_thresholds_are_refused(selector: str, expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_threshold(selector, expression)


def test_objectives_give_the_default_thresholds(tmp_path: Path) -> None:
    file = tmp_path / "slo.toml"
    file.write_text("[availability]\nobjective = 0.999\n[latency]\nobjective = 0.95\nthreshold_seconds = 0.25\n")
    objectives = read_objectives(file)
    assert [(o.selector, o.expression) for o in objectives] == [
        ("http_req_failed", "rate<=0.001"),
        ("http_req_duration", "p(95)<250"),
    ]
    chosen = [parse_threshold("http_req_duration", "p(95)<50"), parse_threshold("http_req_failed{name:a}", "rate<1")]
    assert complete(chosen, objectives) == [*chosen, objectives[0]]


def test_no_file_of_objectives_means_no_defaults(tmp_path: Path) -> None:
    assert read_objectives(tmp_path / "slo.toml") == []


@pytest.mark.parametrize("content", ["[", "[availability]\nobjective = 0.999", "availability = 1", "latency = []"])
def test_a_file_of_objectives_without_them_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "slo.toml"
    file.write_text(content)
    with pytest.raises(ValueError, match="it needs `\\[availability\\] objective`"):
        read_objectives(file)
