"""The benchmark's tables, and what it says where it cannot measure; its figures are no matter for a test."""

import pytest

from bench import report
from bench.__main__ import main
from bench.databases import SIZES


def run(rate: float, cpu: float) -> report.Run:
    """One second at `rate` requests, each of which takes `cpu` microseconds."""
    return report.Run(requests=round(rate), seconds=1, p50=0.01, p99=0.02, cpu_seconds=rate * cpu / 1e6)


@pytest.fixture
def figures() -> report.Figures:
    names = [report.SERVER, report.HEALTH, report.POST, *map(report.page_of, SIZES), *map(report.list_of, SIZES)]
    pairs = [
        report.Pair(bare=run(6000, 150), service=run(3000, 300)),
        report.Pair(bare=run(5000, 160), service=run(3500, 240)),
        report.Pair(bare=run(5000, 150), service=run(3000, 270)),
    ]
    return report.Figures(
        machine=report.Machine(processors=2, load=0.1, system="Linux", python="3", hypercorn="0", postgresql="18"),
        rounds=3,
        seconds=1,
        connections=64,
        comparisons=[report.Comparison(name=name, pairs=pairs) for name in names],
        seconds_to_first_answer=[0.4, 0.6, 0.5],
        memory=[report.Memory(requests=10_100, rss=80_000_000), report.Memory(requests=100_200, rss=82_000_000)],
    )


def test_each_request_is_compared_with_the_bare_run_before_it(figures: report.Figures) -> None:
    table = report.draw(figures)
    assert (
        "| GET / with 10 rows | 3,000 [3,000-3,500] | 0.60 [0.50-0.70] | 270 [240-300] | 1.80 [1.50-2.00] | 10.0 "
        "| 20.0 |" in table
    )
    assert "| CPU of `GET /` with 10 rows vs. bare | ≤ 1.55 | 1.80 [1.50-2.00] | **no** |" in table
    assert "| time from process start to the first 200 of `GET /`, s | ≤ 0.8 | 0.50 [0.40-0.60] | yes |" in table
    assert "| RSS after 100,200 requests vs. after 10,100 | ≤ 1.05 | 1.025 | yes |" in table


def test_the_page_begins_with_what_misses_its_limit(figures: report.Figures) -> None:
    page = report.write_html(figures)
    assert '<span class="outcome bad">2 of 7 limits missed</span>' in page
    assert "<li>CPU of `GET /` with 10 rows vs. bare: 1.80 [1.50-2.00], must be ≤ 1.55</li>" in page
    assert '<td>≤ 0.8</td><td class="good">pass</td>' in page
    assert "<svg" in page
    for comparison in figures.comparisons:
        comparison.pairs = [report.Pair(bare=run(3000, 300), service=run(4000, 240))]
    assert '<span class="outcome good">within its limits</span>' in report.write_html(figures)


def test_without_wrk_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["--rounds", "1"]) == 1
    assert "apt-get install wrk" in capsys.readouterr().err


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_a_number_of_rounds_that_measures_nothing_is_refused(rounds: str) -> None:
    with pytest.raises(SystemExit):
        main(["--rounds", rounds])
