"""What is said of a run: verdicts, the summary in k6's shape, the terminal's lines, the page and its pictures."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from loadtest import charts, report
from loadtest.journal import Journal
from loadtest.recorder import Counter, Recorder, Slot
from loadtest.thresholds import evaluate, parse_threshold


def measured(*, failed: int = 0, seconds: float = 0.01) -> Recorder:
    recorder = Recorder()
    recorder.add_users(2)
    recorder.adjust_active_users(1)
    for place, name in enumerate(("page", "a <b> & c")):
        series = recorder.add_series(name, "GET")
        for number in range(100):
            failure = "status 500" if 100 * place + number >= 200 - failed else None
            series.add(seconds * (1 + number / 100), failure, 3)
        recorder.add_check(f"{name} answers").passes += 100
    if failed:
        recorder.add_check("seldom").passes += 1
        recorder.add_check("seldom").fails += failed
    list(recorder.flush())
    recorder.adjust_active_users(-1)
    recorder.sent_seconds = recorder.user_seconds
    recorder.add_connection(0.001)
    return recorder


def conclude(recorder: Recorder, *thresholds: tuple[str, str]) -> tuple[report.Verdict, Any]:
    outcomes = evaluate([parse_threshold(*threshold) for threshold in thresholds], recorder)
    verdict = report.judge(recorder, outcomes)
    return verdict, report.summarize(recorder, verdict, scenario="small", target="http://a")


def test_a_run_passes_fails_or_is_invalid() -> None:
    passed, _ = conclude(measured(), ("http_req_failed", "rate<0.5"))
    failed, _ = conclude(measured(failed=150), ("http_req_failed", "rate<0.5"))
    nothing, summary = conclude(Recorder())
    assert [(verdict.text, verdict.exit_code) for verdict in (passed, failed, nothing)] == [
        ("passed", 0),
        ("failed", 99),
        ("invalid", 1),
    ]
    assert summary["metrics"]["http_reqs"]["values"] == {"count": 0, "rate": 0}
    assert summary["loadtest"]["started"] is None
    assert nothing.problems == ["no request was completed, none was sent: nothing was measured"]
    assert "Little's law none" in report.write_text(summary, nothing)
    assert "<svg" not in report.write_html(summary, nothing, Recorder())


def test_requests_that_were_all_cut_off_were_tried() -> None:
    recorder = Recorder()
    recorder.interrupted = 1200
    verdict, _ = conclude(recorder)
    assert verdict.exit_code == 1
    assert verdict.problems == ["no request was completed, 1,200 were cut off: nothing was measured"]


@pytest.mark.parametrize(
    ("failed", "threshold", "code"),
    [
        (200, ("http_req_duration", "p(95)<1000"), 1),
        (199, ("http_req_duration", "p(95)<1000"), 0),
        (200, ("http_req_failed", "rate<=1"), 0),
        (200, ("http_req_failed", "rate<0.5"), 99),
        (200, ("checks{check:page answers}", "rate==1"), 0),
    ],
)
def test_a_run_of_failures_alone_passes_only_where_a_threshold_allows_it(
    failed: int, threshold: tuple[str, str], code: int
) -> None:
    verdict, _ = conclude(measured(failed=failed), threshold)
    assert verdict.exit_code == code
    assert [problem for problem in verdict.problems if "every request failed (200)" in problem] == list(
        verdict.problems
    )


@pytest.mark.parametrize("threshold", [("http_req_failed", "rate<=1"), ("checks", "rate>0.1")])
def test_a_check_that_failed_every_time_lets_no_run_pass(threshold: tuple[str, str]) -> None:
    recorder = measured()
    recorder.add_check("is a page").fails += 150
    verdict, _ = conclude(recorder, threshold)
    assert verdict.exit_code == 1
    assert verdict.problems == ["the check `is a page` failed every time (150), but no threshold covers that"]
    assert conclude(recorder, ("checks", "rate>0.9"))[0].exit_code == 99
    recorder.add_check("is a page").passes += 1
    assert conclude(recorder, threshold)[0].exit_code == 0


def test_where_nothing_could_be_reached_that_is_said_first_and_nothing_is_judged() -> None:
    recorder = Recorder()
    recorder.adjust_active_users(1)
    for number, error in enumerate(("connection refused", "connection refused", "no route to host")):
        recorder.add_series(f"step {number % 2}: page", "GET").add(0.001, error, 0)
    list(recorder.flush())
    verdict, summary = conclude(recorder, ("http_req_duration", "p(95)<250"), ("http_req_failed", "rate<=1"))
    cause = "no connection was made, so nothing is judged: connection refused (2 times), no route to host (1 times)"
    assert (verdict.exit_code, verdict.outcomes, verdict.warnings) == (1, [], [])
    assert verdict.reasons == [cause]
    assert report.write_text(summary, verdict).split("\n")[3] == f"  invalid: {cause}"
    assert report.draw_progress(recorder, 1, 30, 3, Counter(0, 0)) == f"   1 of 30 s  3 users  {cause}"
    recorder.add_connection(0.001)
    assert conclude(recorder, ("http_req_failed", "rate<0.5"))[0].exit_code == 99


@pytest.mark.parametrize(
    ("threshold", "reason"),
    [
        (("http_req_duration", "p(95)<15"), "p95 19.2 ms, limit 15 ms"),
        (("http_req_duration", "max<=0.5"), "max 19.9 ms, limit 0.5 ms"),
        (("http_req_duration{name:page}", "p(99.9)<15"), "http_req_duration{name:page} p99.9 19.9 ms, limit 15 ms"),
        (("http_req_failed", "rate<=0.001"), "http_req_failed 1.5 %, limit 0.1 %"),
        (("checks", "rate>0.999"), "checks 98.53 %, required over 99.9 %"),
        (("http_reqs", "count==0"), "http_reqs count 200, required == 0"),
        (("http_req_duration{expected_response:false,name:page}", "count>9"), "nothing was measured"),
        (("http_req_duration", "count<100"), "count 200, limit 100"),
    ],
)
def test_what_failed_is_said_with_its_limit(threshold: tuple[str, str], reason: str) -> None:
    verdict, summary = conclude(measured(failed=3), threshold)
    assert verdict.exit_code == 99
    (only,) = verdict.reasons
    assert only.endswith(reason)
    assert summary["loadtest"]["reasons"] == [only]
    assert f"failed (exit 99): {only}\n" in report.write_text(summary, verdict)


def test_longer_times_are_said_to_the_millisecond() -> None:
    verdict, _ = conclude(measured(seconds=1.2), ("http_req_duration", "avg<250"))
    assert verdict.reasons == ["avg 1,794 ms, limit 250 ms"]


def test_one_name_for_two_methods_is_told_apart() -> None:
    recorder = measured()
    recorder.add_series("page", "POST").add(0.01, None, 0)
    assert list(report.label_series(recorder)) == ["GET page", "a <b> & c", "POST page"]


def test_a_check_that_was_never_made_has_not_passed() -> None:
    recorder = measured()
    recorder.add_check("second step")
    verdict, summary = conclude(recorder)
    assert "  none  second step: 0 of 0\n" in report.write_text(summary, verdict)
    page = report.write_html(summary, verdict, recorder)
    assert '<td>second step</td><td>0</td><td>0</td><td class="none">none</td>' in page


def test_a_busy_generator_is_a_problem_whatever_the_thresholds_say() -> None:
    recorder = measured()
    recorder.note_usage(0.5, 0.89)
    assert conclude(recorder)[0].exit_code == 0
    recorder.note_usage(0.5, 0.91)
    verdict, _ = conclude(recorder, ("http_req_failed", "rate<0.5"))
    assert verdict.exit_code == 1
    assert "busy 91% of the time (limit 90%; it used 50% of a core" in verdict.problems[0]


@pytest.mark.parametrize(("share", "warned"), [(0.94, True), (0.96, False), (1.04, False), (1.06, True)])
def test_littles_law_is_held_against_the_latencies(share: float, warned: bool) -> None:  # noqa: FBT001  a parameter of the test
    recorder = measured()
    recorder.sent_seconds = share * recorder.user_seconds
    verdict, summary = conclude(recorder)
    assert any("Little's law" in warning for warning in verdict.warnings) is warned
    assert summary["loadtest"]["littles_law_ratio"] == pytest.approx(share)


def test_what_was_dropped_or_cut_off_is_told() -> None:
    recorder = measured()
    recorder.dropped, recorder.interrupted = 1234, 5
    verdict, summary = conclude(recorder)
    assert [warning.split(" ")[0] for warning in verdict.warnings] == ["1,234", "5"]
    assert summary["metrics"]["dropped_iterations"]["values"]["count"] == 1234


def test_the_summary_has_the_shape_that_k6_hands_to_handle_summary() -> None:
    recorder = measured(failed=3)
    _, summary = conclude(recorder, ("http_req_duration{name:page}", "p(95)<1"), ("checks", "rate>0.9"))
    json.dumps(summary)
    metrics = summary["metrics"]
    assert set(metrics["http_req_duration"]["values"]) == {
        "avg",
        "min",
        "med",
        "max",
        "p(90)",
        "p(95)",
        "p(99)",
        "count",
    }
    assert metrics["http_req_duration"]["type"] == "trend"
    assert metrics["http_req_duration{name:page}"]["thresholds"] == {"p(95)<1": {"ok": False}}
    assert metrics["checks"]["thresholds"] == {"rate>0.9": {"ok": True}}
    assert metrics["http_req_failed"]["values"] == {"rate": 0.015, "passes": 3, "fails": 197}
    assert metrics["vus_max"]["values"]["value"] == 2
    assert summary["root_group"]["checks"][0] == {
        "name": "page answers",
        "path": "::page answers",
        "passes": 100,
        "fails": 0,
    }
    assert summary["state"]["testRunDurationMs"] == 1000 * recorder.seconds


def test_the_terminal_is_told_everything() -> None:
    verdict, summary = conclude(measured(failed=3), ("http_reqs", "count>1000"), ("http_req_duration", "avg>1"))
    text = report.write_text(summary, verdict)
    for part in (
        "small on http://a",
        "pass  page answers: 100 of 100",
        "FAIL  seldom: 1 of 4",
        "FAIL  http_reqs count>1000: measured 200\n",
        "pass  http_req_duration avg>1: measured 15 ms",
        "error: a <b> & c: status 500, 3 times",
        "connections 1;",
        "failed (exit 99)",
    ):
        assert part in text
    verdict, summary = conclude(Recorder(), ("checks", "rate>0.9"))
    assert "FAIL  checks rate>0.9: nothing was measured" in report.write_text(summary, verdict)
    assert "invalid: no request" in report.write_text(summary, verdict)


def test_the_page_is_one_file_with_pictures_and_tables(tmp_path: Path) -> None:
    recorder = measured(failed=3)
    recorder.dropped = 1
    recorder.note_usage(1, 1)
    for second in range(4):  # so that there are whole seconds between the first and the last
        recorder.timeline[int(recorder.started) + 10 + second] = recorder.timeline[max(recorder.timeline)]
    recorder.timeline[int(recorder.started) + 60] = Slot()  # nothing came any more: a line ends, the axis does not
    verdict, summary = conclude(recorder, ("http_reqs", "count>1000"), ("http_req_duration", "p(95)<25"))
    page = report.write_html(summary, verdict, recorder)
    report.write_files(tmp_path / "new" / "folder", summary, page)
    assert (tmp_path / "new" / "folder" / "report.html").read_text() == page
    assert json.loads((tmp_path / "new" / "folder" / "summary.json").read_text()) == summary
    assert "a &lt;b&gt; &amp; c" in page
    assert "<b>" not in page
    assert not re.search(r"<script|<link|src=|url\(|https?://(?!a[,<]|www.w3.org/2000/svg)", page), (
        "it needs nothing else"
    )
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    titles = [ET.fromstring(picture).attrib["aria-label"] for picture in pictures]  # noqa: S314  our own
    assert titles == [
        "Latency over time, ms",
        "Throughput, requests/s",
        "Failed requests, %",
        "Users",
        "Latency of all requests",
    ]
    assert '<tr><td>Requests count</td><td>200</td><td>&gt; 1,000</td><td class="bad">FAIL</td></tr>' in page
    assert "<dt>Requests count</dt><dd>200 <small>must be &gt; 1,000</small></dd>" in page, "what failed comes first"
    for picture in (pictures[0], pictures[4]):
        assert ">limit p95 &lt; 25 ms</text>" in picture, "the line that the run is judged by"
    for part in ("busy 100%", "were dropped"):
        assert part in page
    axes = [re.findall(r'text-anchor="middle">([\d.]+)<', picture) for picture in pictures]
    assert axes[0] == axes[1] == axes[2] == axes[3], "what happened at a moment stands in a column"
    for name in ("p(50) 14.", "p(95) 19.", "p(99) 19."):
        assert f">{name}" in pictures[4]


def shades(scheme: str) -> dict[str, float]:
    """The relative luminance of each colour of the page (WCAG 2.2), in the light or the dark scheme."""
    light, dark = charts.STYLE.split("@media (prefers-color-scheme: dark)")
    found = {}
    for name, colour in re.findall(r"--(\w+): #([0-9a-f]{6})", dark if scheme == "dark" else light):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        found[name] = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_shapes_stand_out_from_the_paper(scheme: str) -> None:
    found = shades(scheme)
    paper = found.pop("paper")
    assert found.keys() == {"text", "title", "grid", "good", "bad", "warn", "first", "second", "third", "fourth"}
    for name, shade in found.items():
        contrast = (max(shade, paper) + 0.05) / (min(shade, paper) + 0.05)
        least = {"grid": 1.0, "text": 4.5, "title": 4.5, "good": 4.5, "bad": 4.5, "warn": 4.5}.get(name, 3.0)
        assert contrast >= least, name


@pytest.mark.parametrize(("most", "top"), [(1.2, 1.5), (2.7, 3), (3.1, 4), (5.5, 6), (6.1, 8), (8.5, 10), (140, 150)])
def test_the_top_of_a_picture_is_close_above_its_lines(most: float, top: float) -> None:
    assert f">{top:g}</text>" in charts.draw_lines("a", [("a", [(0, 0), (1, most)])], across="x")


@pytest.mark.parametrize(
    ("limit", "drawn"), [(250, ">limit</text>"), (900, ">limit</text>"), (901, ">limit: above this chart</text>")]
)
def test_a_limit_is_drawn_unless_it_would_flatten_the_lines(limit: float, drawn: str) -> None:
    picture = charts.draw_lines("a", [("a", [(0, 0), (1, 300)])], across="x", limits=[("limit", limit)])
    assert drawn in picture
    assert ('<line class="limit"' in picture) == (limit <= 900)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.1234, "0.123"), (14.94, "14.9"), (383.4, "383"), (1794.2, "1,794")]
)
def test_milliseconds_above_100_have_no_decimals(value: float, shown: str) -> None:
    assert report.show_ms(value) == f"{shown} ms"


@pytest.mark.parametrize(
    ("threshold", "row"),
    [
        (("http_req_failed", "rate<=0.001"), "<td>Failed requests</td><td>1.5 %</td><td>≤ 0.1 %</td>"),
        (
            ("checks{check:page answers}", "rate==1"),
            "<td>Checks passed{check:page answers}</td><td>100 %</td><td>= 100 %</td>",
        ),
        (("http_reqs", "rate>1"), "/s</td><td>&gt; 1/s</td>"),
    ],
)
def test_a_rate_is_shown_as_one(threshold: tuple[str, str], row: str) -> None:
    recorder = measured(failed=3)
    verdict, summary = conclude(recorder, threshold)
    assert row in report.write_html(summary, verdict, recorder)


def test_the_progress_line_says_how_it_goes() -> None:
    recorder = measured()
    line = report.draw_progress(recorder, 3, 30, 100, Counter(50, 2))
    assert line.startswith("   3 of 30 s  100 users  150 requests/s  p95 19.")
    assert line.endswith("failed 0.00%  checks 100.00%")
    assert "p95 0 ms  failed 0.00%  checks none" in report.draw_progress(Recorder(), 1, 30, 0, Counter(0, 0))


def test_pictures_are_drawn_of_much_of_little_and_of_nothing() -> None:
    pictures = [
        charts.draw_lines("none", [], across="x"),
        charts.draw_lines("flat", [("a", [(0, 0)])], across="x"),
        charts.draw_lines("two", [("a", [(0, 1), (60, 3)]), ("b", [(0, 2), (60, 0)])], across="x"),
        charts.draw_lines(
            "bands", [("a", [(0, 1), (60, 3)])], across="x", bands=[(1, 2, "c"), (3, 4, "d"), (59, 60, "e")]
        ),
        charts.draw_histogram("none", [], across="x"),
        charts.draw_histogram("narrow", [(1, 1.5, 3), (1.5, 2, 4)], across="x"),
        charts.draw_histogram("wide", [(0.01, 0.02, 3), (900, 1000, 4)], across="x"),
        charts.draw_histogram("marked", [(1, 10, 3)], across="x", marks=[("left", 2), ("right", 9)]),
        charts.draw_bars("none", [], across="x"),
        charts.draw_bars("bars", [("a", 10, "10"), ("b", 0, "0")], across="x"),
    ]
    for picture in pictures:
        svg = ET.fromstring(picture)  # noqa: S314  our own
        assert "nan" not in picture
        for shape in svg.iter("{http://www.w3.org/2000/svg}rect"):
            assert float(shape.get("x", "0")) >= 0
            assert float(shape.get("width", "0")) <= charts.WIDTH
        for text in svg.iter("{http://www.w3.org/2000/svg}text"):
            if text.text in {"left", "right"}:
                assert text.get("text-anchor") == ("start" if text.text == "left" else "end")


def test_buckets_are_joined_and_none_is_lost() -> None:
    buckets = [(float(number), number + 1.0, number) for number in range(10)]
    joined = charts.join_buckets(buckets, 4)
    assert joined == [(0, 3, 3), (3, 6, 12), (6, 9, 21), (9, 10, 9)]
    assert charts.join_buckets([], 4) == []


def test_a_journal_is_appended_to_a_line_at_a_time(tmp_path: Path) -> None:
    for number in range(2):
        journal = Journal(tmp_path / "new" / "journal.jsonl")
        journal.write(number=number, text="a\nb")
        journal.close()
    lines = (tmp_path / "new" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"number": number, "text": "a\nb"} for number in range(2)]
