"""What is measured is what was put in, within the promised 1.5 %, however many processes it came from."""

import json
import math
import random
import time
from itertools import pairwise

import pytest

from loadtest import recorder as module
from loadtest.recorder import Counter, Rate, Recorder, Trend, middle


@pytest.mark.parametrize("scale", [0.0001, 0.001, 0.02, 1.5, 60])
def test_percentiles_are_within_one_and_a_half_per_cent(scale: float) -> None:
    source = random.Random(1)  # noqa: S311  the same numbers each time
    values = sorted(scale * source.lognormvariate(0, 0.5) for _ in range(20_000))
    trend = Trend()
    for value in values:
        trend.add(value)
    for percent in (0.1, 1, 25, 50, 90, 95, 99, 99.9, 100):
        exact = values[max(math.ceil(len(values) * percent / 100), 1) - 1]
        assert trend.percentile(percent) == pytest.approx(exact, rel=0.015)
    assert trend.aggregate("avg") == pytest.approx(1000 * sum(values) / len(values))
    assert trend.aggregate("med") == trend.aggregate("p(50)") == 1000 * trend.percentile(50)
    assert (trend.aggregate("min"), trend.aggregate("max")) == (1000 * values[0], 1000 * values[-1])
    assert trend.aggregate("count") == 20_000


def test_every_value_from_a_tenth_of_a_millisecond_to_a_minute_finds_a_bucket_near() -> None:
    value = 0.0001
    while value < 60:
        trend = Trend()
        trend.add(value)
        assert middle(next(iter(trend.counts))) == pytest.approx(value, rel=0.015)
        value *= 1.003


def test_an_empty_trend_has_zeros_and_nothing_is_too_short() -> None:
    trend = Trend()
    assert {trend.aggregate(name) for name in ("avg", "min", "med", "max", "count", "p(99)")} == {0}
    trend.add(0.0)
    assert trend.percentile(50) == 0


def test_a_rate_and_a_counter_of_nothing_are_zero() -> None:
    assert Rate().aggregate("rate") == Counter(0, 0).aggregate("rate") == 0
    assert Counter(10, 4).aggregate("rate") == 2.5


def fill(recorder: Recorder, *seconds: float, failed: int = 0) -> None:
    series = recorder.add_series("page", "GET")
    for value in seconds:
        series.add(value, None, 3)
        series.received += 10
        recorder.iterations += 1
        recorder.add_check("good").passes += 1
        recorder.sent_seconds += value
    for _ in range(failed):
        series.add(0.1, "status 500", 5)
        series.received += 10
        recorder.sent_seconds += 0.1
    recorder.add_check("good").fails += failed
    list(recorder.flush())


def test_two_processes_are_merged_as_if_they_were_one() -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    for recorder, seconds in ((first, (0.01, 0.02)), (second, (0.03, 0.5, 0.7))):
        recorder.add_users(2)
        recorder.adjust_active_users(1)
        fill(recorder, *seconds, failed=1)
        recorder.service.add(0.01)
        recorder.add_connection(0.002)
        recorder.note_usage(0.5, 0.6)
        recorder.adjust_active_users(-1)
        # In two pieces, as workers report while they run; through JSON, as what is sent is plain data.
        report = json.loads(json.dumps(recorder.drain()), object_pairs_hook=with_numbers)
        whole.merge(report, str(id(recorder)))
        fill(recorder, 0.04)
        whole.merge(recorder.drain(), str(id(recorder)))
    assert list(whole.flush()) == [], "what is merged is not fresh"
    duration = whole.metric("http_req_duration")
    assert isinstance(duration, Trend)
    assert duration.count == 9
    assert (duration.min, duration.max) == (0.01, 0.7)
    assert duration.sum == pytest.approx(0.01 + 0.02 + 0.03 + 0.5 + 0.7 + 2 * 0.04 + 2 * 0.1)
    assert whole.metric("http_req_failed") == whole.metric("http_req_failed", {"name": "page"}) == Rate(2, 7)
    assert whole.metric("checks") == whole.metric("checks", {"check": "good"}) == Rate(7, 2)
    counts = {
        "http_reqs": 9,
        "iterations": 7,
        "connections": 2,
        "dropped_iterations": 0,
        "interrupted_requests": 0,
        "data_received": 90,
    }
    assert {name: whole.metric(name).count for name in counts} == counts
    assert whole.metric("http_req_service").count == whole.metric("http_req_connecting").count == 2
    assert whole.errors == {"page: status 500": 2}
    assert (whole.vus_max, whole.cpu, whole.busy) == (4, 0.5, 0.6)
    assert whole.littles_law_ratio == pytest.approx(whole.sent_seconds / whole.user_seconds)
    assert sum(slot.trend.count for slot in whole.timeline.values()) == 9
    assert whole.age > 0
    nowhere = {"name": "nowhere", "check": "nowhere"}
    assert [whole.metric(name, nowhere).count for name in ("http_reqs", "checks", "http_req_duration")] == [0, 0, 0]
    with pytest.raises(KeyError):
        whole.metric("nothing")


def test_expected_and_failed_requests_are_kept_apart() -> None:
    recorder = Recorder()
    fill(recorder, 0.01, 0.02, failed=1)
    recorder.add_series("page", "POST").add(0.5, "status 409", 7)
    (fresh,) = recorder.flush()
    assert (fresh.trend.count, fresh.failed, fresh.errors, fresh.size) == (1, 1, {"status 409": 1}, 7)
    assert recorder.errors == {"page: status 500": 1, "page: status 409": 1}

    def longest(**tags: str) -> float:
        return recorder.metric("http_req_duration", tags).aggregate("max")

    assert (longest(), longest(expected_response="true"), longest(expected_response="false")) == (500, 20, 500)
    assert (longest(method="GET"), longest(method="GET", expected_response="true"), longest(method="PUT")) == (
        100,
        20,
        0,
    )
    assert recorder.metric("http_reqs", {"method": "POST"}).count == 1
    assert recorder.metric("http_req_failed", {"expected_response": "true"}) == Rate(0, 2)


def with_numbers(pairs: list[tuple[str, object]]) -> dict[object, object]:
    """JSON has no numbers as keys; the wire format that Locust uses has."""
    return {int(key) if key.isdigit() else key: value for key, value in pairs}


def test_users_at_work_are_an_integral_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    recorder = Recorder()
    assert (recorder.littles_law_ratio, recorder.age, recorder.seconds) == (None, 0, 0)
    recorder.adjust_active_users(1)
    recorder.adjust_active_users(1)
    now += 3
    recorder.adjust_active_users(-1)
    recorder.adjust_active_users(-1)
    assert (recorder.user_seconds, recorder.seconds) == (6, 3)
    list(recorder.flush())
    assert sum(slot.user_seconds for slot in recorder.timeline.values()) == recorder.user_seconds


def test_the_timeline_of_a_long_run_is_joined_two_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    recorder = Recorder()
    for _ in range(2 * module.SLOTS + 1):
        fill(recorder, 0.01)
        now += 1
    assert recorder.width == 4
    assert len(recorder.timeline) <= module.SLOTS
    assert {later - earlier for earlier, later in pairwise(sorted(recorder.timeline))} == {4}
    assert sum(slot.trend.count for slot in recorder.timeline.values()) == 2 * module.SLOTS + 1
    merged = Recorder()
    fill(merged, 0.01)
    merged.merge(recorder.drain(), "a")
    assert merged.width == 4
    assert all(second % 4 == 0 for second in merged.timeline)


def test_a_clock_that_is_set_changes_nothing_but_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorder.adjust_active_users(1)
    begun = recorder.date
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    fill(recorder, 0.01)
    recorder.adjust_active_users(-1)
    assert recorder.date == begun != 1_000_000.0
    assert 0 < recorder.seconds <= recorder.age < 60
    assert len(recorder.timeline) <= 2


def test_processes_whose_clocks_differ_are_merged_by_how_long_ago_things_were(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.perf_counter
    whole, reports = Recorder(), []
    for number, skew in enumerate((0.0, 5_000_000.0)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "perf_counter", lambda skew=skew: real() + skew)
            patch.setattr(time, "time", lambda skew=skew: 1_000_000.0 - skew)
            recorder = Recorder()
            recorder.adjust_active_users(1)
            fill(recorder, 0.01)
            recorder.adjust_active_users(-1)
            reports.append((recorder.drain(), str(number)))
    for report, source in reports:
        whole.merge(report, source)
    assert 0 < whole.seconds <= whole.age < 60
    assert whole.ended <= real()
    assert max(whole.timeline) - min(whole.timeline) <= 2
    # A report that was long on its way says less than an earlier, quicker one.
    started = whole.started
    late, _ = reports[1]
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: real() + 30)
        whole.merge(late, "1")
    assert whole.started == started
    assert max(whole.timeline) - min(whole.timeline) <= 2
