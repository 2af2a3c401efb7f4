"""The cluster test's report, which is written without a cluster here: verdict first, then each case."""

from tests.cluster.report import FAILED, NOT_RUN, PASSED, Check, write_html

CHECKS = [
    Check("Policies", "each cell", PASSED, seconds=61.0, figures={"flows": 3695}),
    Check("Database", "kill", NOT_RUN, reason="there is no CloudNativePG"),
]


def test_it_begins_with_the_verdict_and_shows_what_was_not_run() -> None:
    page = write_html(CHECKS, "kind-goals", "v1.36.3", 120.0)
    assert '<h1>Cluster test: <span class="outcome good">passed</span></h1>' in page
    assert '<td>flows 3695</td><td class="good">pass</td>' in page
    assert '<td>there is no CloudNativePG</td><td class="none">NOT RUN</td>' in page


def test_a_failure_is_the_first_thing_to_read() -> None:
    page = write_html([*CHECKS, Check("Rejections", "mutants", FAILED, reason="11 differ")], "kind-goals", "v1", 1.0)
    assert '<span class="outcome bad">FAILED</span></h1><ul><li>Rejections, mutants: 11 differ</li></ul>' in page
