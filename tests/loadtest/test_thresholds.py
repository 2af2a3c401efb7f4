"""Thresholds: their grammar, what they compare, and where their defaults come from."""

import re
from pathlib import Path

import pytest

from loadtest.recorder import Recorder
from loadtest.thresholds import complete, evaluate, parse_threshold, read_objectives


def measured() -> Recorder:
    recorder = Recorder()
    for name, seconds in (("page", 0.01), ("api", 0.1)):
        series = recorder.add_series(name, "GET")
        for _ in range(100):
            series.add(seconds, None, 0)
    recorder.add_check("good").passes += 99
    recorder.add_check("good").fails += 1
    recorder.adjust_active_users(1)
    list(recorder.flush())
    recorder.adjust_active_users(-1)
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
        ("http_req_duration{expected_response:true}", "p(95)<500", True),
        ("http_reqs{name:api,method:GET,expected_response:true}", "count==100", True),
        ("http_reqs{name:api,method:POST}", "count==100", False),
        ("dropped_iterations", "count==0", True),
        ("dropped_iterations", "count === 0", True),
        ("dropped_iterations", "count!==0", False),
        ("checks", "rate>.98", True),
        ("checks", "rate>.999", False),
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
        ("http_req_time", "p(95)<1", "there is no metric `http_req_time`; choose one of http_req_duration"),
        ("http_reqs{", "count>1", "there is no metric"),
        ("checks{name:a}", "rate>1", "`checks` cannot be filtered by the tag `name`; its tags are: `check`"),
        ("iterations{name:a}", "count>1", "`iterations` cannot be filtered by the tag `name`; its tags are: none"),
        (
            "http_req_duration{status:200}",
            "max<1",
            "cannot be filtered by the tag `status`; its tags are: `name`",
        ),
        ("http_req_duration{name}", "max<1", "`http_req_duration{name}` is not a selector; write one such as"),
        ("http_req_duration{name:a,name:b}", "max<1", "is not a selector"),
        ("http_reqs{expected_response:yes}", "count>1", "`expected_response` is `true` or `false`, not `yes`"),
        ("checks", "rate", "is not a threshold"),
        ("checks", "rate>0.9 && rate<1", "is not a threshold"),
        ("checks", "p(95)<1", "`checks` has no `p\\(95\\)`; it has rate"),
        ("http_reqs", "avg<1", "`http_reqs` has no `avg`; it has count, rate"),
        ("http_req_duration", "p(101)<1", "`p\\(101\\)` is above 100 %"),
        ("http_reqs", "count=1", "is not a threshold"),
        ("http_reqs", "count<1.", "is not a threshold"),
    ],
)
def test_other_thresholds_are_refused(selector: str, expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_threshold(selector, expression)


def test_a_comma_may_be_part_of_a_name() -> None:
    threshold = parse_threshold("http_reqs{name:a, b,method:GET}", "count>1")
    assert threshold.tags == {"name": "a, b", "method": "GET"}


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
    assert read_objectives(default=tmp_path / "slo.toml") == []
    (tmp_path / "slo.toml").write_text(SLO.format(0.99, 0.9, 0.1))
    assert [o.expression for o in read_objectives(default=tmp_path / "slo.toml")] == ["rate<=0.01", "p(90)<100"]


SLO = "[availability]\nobjective = {}\n[latency]\nobjective = {}\nthreshold_seconds = {}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "slo.toml: "),
        ("latency = []", "slo.toml: availability: Field required"),
        ("availability = 1", "slo.toml: availability: Input should be"),
        ("[availability]\nobjective = 0.999", "slo.toml: latency: Field required"),
        (SLO.format(1, 0.95, 0.25), "availability.objective: Input should be less than 1"),
        (SLO.format(0, 0.95, 0.25), "availability.objective: Input should be greater than 0"),
        (SLO.format(0.999, 95, 0.25), "latency.objective: Input should be less than 1"),
        (SLO.format(0.999, "nan", 0.25), "latency.objective: Input should be"),
        (SLO.format("true", 0.95, 0.25), "availability.objective: Input should be a valid number"),
        (SLO.format(0.999, 0.95, "'1s'"), "latency.threshold_seconds: Input should be a valid number"),
        (SLO.format(0.999, 0.95, "inf"), "latency.threshold_seconds: Input should be a finite number"),
        (SLO.format(0.999, 0.95, -1), "latency.threshold_seconds: Input should be greater than 0"),
    ],
)
def test_a_file_of_objectives_without_them_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "slo.toml"
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        read_objectives(file)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_named_file_of_objectives_must_be_there_and_be_a_file(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "absent.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=f"the objectives in {re.escape(str(path))} cannot be read: {why}"):
            read_objectives(path)


def test_objectives_close_to_one_are_written_as_a_threshold_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "slo.toml"
    file.write_text("\ufeff" + SLO.format("0.99999999", "0.999999", "2_000_000.5"), encoding="utf-8")
    failed, duration = read_objectives(file)
    assert (failed.expression, failed.limit) == ("rate<=0.00000001", 1e-8)
    assert (duration.expression, duration.limit) == ("p(99.9999)<2000000500", 2_000_000_500)
