"""The reports of a load test, a drill and a benchmark in a browser: for everyone, in light, in dark and on a phone."""

import contextlib
import re
import time
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from bench import databases, report as bench_report
from drills import report as drill_report
from drills.drill import Drill, observe
from drills.journal import Attempt, Verdict
from drills.timeline import Mark
from loadtest import report as load_report
from loadtest.recorder import Recorder
from loadtest.thresholds import evaluate, parse_threshold


def load() -> str:
    recorder = Recorder()
    recorder.adjust_active_users(1)
    series = recorder.add_series("a step with a rather long name", "GET")
    for number in range(100):
        series.add(0.004 * number, "status 503, and more about it than there is room for" if number > 97 else None, 3)
    recorder.add_check("endpoint was successful").passes += 98
    recorder.add_check("endpoint was successful").fails += 2
    recorder.add_check("never made")
    list(recorder.flush())
    limits = {"http_req_duration{name:a step with a rather long name}": "p(95)<250", "http_req_failed": "rate<=0.1"}
    outcomes = evaluate([parse_threshold(*limit) for limit in limits.items()], recorder)
    verdict = load_report.judge(recorder, outcomes)
    summary = load_report.summarize(recorder, verdict, scenario="example", target="http://127.0.0.1:8080")
    return load_report.write_html(summary, verdict, recorder)


def drill() -> str:
    example = Drill("example", short=True, seed=1)
    case = example.begin("kill", "SIGKILL to the primary and all its children, the best standby promoted")
    case.marks.append(Mark(case.began + 1, "pg1 killed", case.began + 2))
    attempts = [Attempt(case.began + 0.1 * n, 0.02 * n, "add by the form", str(n), 303, None) for n in range(100)]
    case.ended = case.began + 10
    case.figures = observe(attempts, case.began, case.ended)
    case.check("longest response, s", case.figures.longest_answer_s, "<", 1.5)
    case.check("errors shown", 0, "=", 0)
    example.draw(case, attempts)
    example.leave_out("disk full", "the disk of the primary's data is full", "only root may mount one")
    example.account(Verdict(acknowledged=100), attempts)
    example.control("asynchronous replication", "commits wait for no standby", "acknowledged writes lost", 3)
    example.seconds = time.time() - example.started
    return drill_report.write_html(example)


def bench() -> str:
    def run(rate: float) -> bench_report.Run:
        return bench_report.Run(requests=round(rate), seconds=1, p50=0.01, p99=0.02, cpu_seconds=0.5)

    sizes = [name(size) for size in databases.SIZES for name in (bench_report.page_of, bench_report.list_of)]
    names = [bench_report.SERVER, bench_report.HEALTH, *sizes, bench_report.POST]
    pairs = [bench_report.Pair(bare=run(2400), service=run(1600))]
    figures = bench_report.Figures(
        machine=bench_report.Machine(
            processors=2, load=0.1, system="Linux x86_64", python="3.11", hypercorn="0.18", postgresql="18"
        ),
        rounds=1,
        seconds=1,
        connections=64,
        comparisons=[bench_report.Comparison(name=name, pairs=pairs) for name in names],
        seconds_to_first_answer=[0.5],
        memory=[
            bench_report.Memory(requests=10_000, rss=80_000_000),
            bench_report.Memory(requests=100_000, rss=81_000_000),
        ],
    )
    return bench_report.write_html(figures)


REPORTS = {"load": load(), "drill": drill(), "bench": bench()}


@pytest.fixture(params=REPORTS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.html"
    path.write_text(REPORTS[request.param], encoding="utf-8")
    return path


def look(browser: Browser, file: Path, scheme: str = "light", width: int = 1000) -> contextlib.closing[Page]:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})  # type: ignore[arg-type]  # a parameter
    page.goto(file.as_uri())
    return contextlib.closing(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, file: Path, scheme: str) -> None:
    with look(browser, file, scheme) as page:
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert len(found.response["passes"]) > 15, "axe has hardly looked"


@pytest.mark.parametrize("width", [320, 390, 1000])
def test_it_begins_with_the_verdict_and_fits_the_screen(browser: Browser, file: Path, width: int) -> None:
    with look(browser, file, width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        verdict = page.locator("main > :first-child")
        expect(verdict).to_have_class(re.compile(r"\bbanner\b"))
        assert verdict.locator("li").count() >= 1, "it says why"
        figure = page.locator("dd").first
        largest = page.evaluate(
            "Math.max(...[...document.querySelectorAll('dd')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        assert float(figure.evaluate("e => parseFloat(getComputedStyle(e).fontSize)")) == largest
        box = figure.bounding_box()
        assert box is not None
        assert box["y"] < 800, "the figure that matters is on the first screen"


def test_a_result_is_known_without_its_colour(browser: Browser, file: Path) -> None:
    with look(browser, file) as page:
        signs = "e => getComputedStyle(e, '::before').content.slice(0, 2)"
        for name, kind, sign in (("pass", "good", '"✓'), ("FAIL", "bad", '"✕')):
            cells = page.locator(f"td.{kind}").all()
            assert {(cell.inner_text(), cell.evaluate(signs)) for cell in cells} == {(name, sign)}


def test_the_tables_share_their_columns(browser: Browser, file: Path) -> None:
    with look(browser, file) as page:
        where = """tables => tables.map(table =>
            [...table.rows[0].cells].slice(-3).map(cell => Math.round(cell.getBoundingClientRect().x)))"""
        places = page.locator("table.grid:has(th:nth-child(4))").evaluate_all(where)
        assert places
        assert all(place == places[0] for place in places)
