"""The executors as plain arithmetic: users at a time, and arrivals that add up to the area under the rate."""

from itertools import pairwise
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from loadtest.executors import Closed, Load, Open, parse_duration

LOAD: TypeAdapter[Closed | Open] = TypeAdapter(Load)


def parse(executor: str, **fields: Any) -> Any:
    return LOAD.validate_python({"executor": executor, **fields})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("1d", 86400),
        ("1d2h", 93600),
        (".5s", 0.5),
        ("250us", 0.00025),
        ("2µs", 2e-6),
        ("5ns", 5e-9),
        ("0s", 0),
    ],
)
def test_durations_are_written_as_in_k6(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1w", "1s ", 31, None, True, ".s"])
def test_other_durations_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a duration is text such as"):
        parse_duration(text)


def test_constant_users_stay_constant() -> None:
    load = parse("constant-vus", vus=7, duration="10s")
    assert load.seconds == 10
    assert {load.count_users(at) for at in (0, 5, 9.9)} == {7}


def test_a_bare_number_is_refused_with_what_k6_takes_it_for() -> None:
    with pytest.raises(ValueError, match='k6 takes a bare number as milliseconds: write "500ms" for that'):
        parse_duration(500)


def test_ramping_users_go_in_straight_lines() -> None:
    stages = [{"duration": "10s", "target": 21}, {"duration": "5s", "target": 21}, {"duration": "5s", "target": 0}]
    load = parse("ramping-vus", stages=stages)
    assert load.seconds == 20
    assert [load.count_users(at) for at in (0, 5, 10, 12, 17.5, 20, 99)] == [1, 11, 21, 21, 10, 0, 0]


def test_a_stage_of_no_time_is_a_jump() -> None:
    stages = [{"duration": "2s", "target": 4}, {"duration": "0s", "target": 20}, {"duration": "2s", "target": 10}]
    load = parse("ramping-vus", startVUs=0, stages=stages)
    assert load.seconds == 4
    assert [load.count_users(at) for at in (0, 1, 1.99, 2, 3, 4)] == [0, 2, 4, 20, 15, 10]
    load = parse("ramping-arrival-rate", startRate=10, stages=[{"duration": "0s", "target": 50}, *stages[1:]])
    assert len(list(load.arrivals())) == 30


@pytest.mark.parametrize(("unit", "seconds"), [("1s", 1), ("1m", 60), ("500ms", 0.5)])
def test_rates_are_by_time_unit(unit: str, seconds: float) -> None:
    load = parse("constant-arrival-rate", rate=120, timeUnit=unit, duration="1m")
    assert len(list(load.arrivals())) == 120 * 60 / seconds
    stages = [{"duration": "1m", "target": 120}]
    load = parse("ramping-arrival-rate", startRate=120, timeUnit=unit, stages=stages)
    assert len(list(load.arrivals())) == 120 * 60 / seconds


def test_users_of_an_open_model_are_bounded_as_in_k6() -> None:
    load = {"rate": 1, "duration": "1s"}
    assert parse("constant-arrival-rate", **load).most_users == 1000
    assert parse("constant-arrival-rate", preAllocatedVUs=20, **load).most_users == 20
    assert parse("constant-arrival-rate", preAllocatedVUs=20, maxVUs=30, **load).most_users == 30
    assert parse("constant-arrival-rate", max_vus=30, **load).most_users == 30


@pytest.mark.parametrize("executor", ["constant-vus", "ramping-vus", "constant-arrival-rate", "ramping-arrival-rate"])
@pytest.mark.parametrize(
    "option",
    ["gracefulStop", "gracefulRampDown", "startTime", "exec", "env", "tags", "options", "iterations", "maxDuration"],
)
def test_what_of_k6_is_not_played_is_named(executor: str, option: str) -> None:
    with pytest.raises(ValidationError, match=f"k6's `{option}` is not supported: "):
        parse(executor, **{option: "1s"})


def test_constant_arrivals_are_evenly_spaced() -> None:
    arrivals = list(parse("constant-arrival-rate", rate=200, duration="2s").arrivals())
    assert len(arrivals) == 400
    assert [later - earlier for earlier, later in pairwise(arrivals)] == pytest.approx([0.005] * 399)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_parts_of_several_processes_make_the_whole(parts: int) -> None:
    stages = [{"duration": "2s", "target": 50}, {"duration": "1s", "target": 50}, {"duration": "2s", "target": 0}]
    load = parse("ramping-arrival-rate", start_rate=10, stages=stages)
    whole = list(load.arrivals())
    # The area: 2 s at 30 on average, 1 s at 50, 2 s at 25 on average.
    assert len(whole) == 60 + 50 + 50
    assert whole == sorted(whole)
    assert whole[-1] < load.seconds == 5
    assert sorted(at for part in range(parts) for at in load.arrivals(part, parts)) == pytest.approx(whole)


def test_a_ramp_from_nothing_has_arrivals_where_its_area_reaches_them() -> None:
    load = parse("ramping-arrival-rate", stages=[{"duration": "2s", "target": 10}])
    # The area after t seconds is 2.5 t^2.
    assert list(load.arrivals()) == pytest.approx([(number / 2.5) ** 0.5 for number in range(10)])


def test_no_rate_means_no_arrivals() -> None:
    assert list(parse("ramping-arrival-rate", stages=[{"duration": "2s", "target": 0}]).arrivals()) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"executor": "shared-iterations"},
        {"executor": "constant-vus", "vus": 0, "duration": "1s"},
        {"executor": "constant-vus", "vus": "5", "duration": "1s"},
        {"executor": "constant-vus", "vus": 5, "duration": "0s"},
        {"executor": "constant-vus", "vus": 5, "duration": "1s", "rate": 5},
        {"executor": "ramping-vus", "stages": []},
        {"executor": "constant-arrival-rate", "rate": 0, "duration": "1s"},
        {"executor": "constant-arrival-rate", "rate": 1, "timeUnit": "0s", "duration": "1s"},
        {"executor": "constant-arrival-rate", "rate": 1, "max_vus": 1, "maxVUs": 1, "duration": "1s"},
        {"executor": 5},
    ],
)
def test_impossible_loads_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LOAD.validate_python(fields)
