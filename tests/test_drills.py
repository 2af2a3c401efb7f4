"""The oracle of the drills must see every kind of damage, and what was not run must show, or all is worth nothing."""

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4
from xml.etree import ElementTree as ET

import psutil
import pytest

from drills import report
from drills.drill import LONGEST_READ, Case, Control, Drill, observe
from drills.history import History, HistoryError, list_revisions
from drills.journal import PAGE, Attempt, Verdict, cut, find_stale, longest_gap, read_journal, reconcile
from drills.report import summarize, write_html, write_tables, write_text, write_total
from drills.stage import clean_environment
from drills.timeline import Mark, Timeline, draw
from loadtest.charts import stack
from tests.conftest import ROOT
from tools.checkout import copy_tree

SVG = "http://www.w3.org/2000/svg"
UUID = str(uuid4())
NAME = f"drill {UUID}"


def attempt(
    step: str = "add by the form", status: int = 303, *, ended: float = 1.0, error: str | None = None
) -> Attempt:
    return Attempt(ended=ended, seconds=0.5, step=step, uuid=UUID, status=status, error=error)


ADDED, RENAMED, REMOVED = attempt(), attempt("rename by the API", 200), attempt("remove by the form")
UNKNOWN = attempt(status=0, error="connection reset by peer")


@pytest.mark.parametrize(
    ("attempts", "names", "expected"),
    [
        ([ADDED], [NAME], Verdict(acknowledged=1)),
        ([ADDED], [], Verdict(acknowledged=1, lost=1)),
        ([ADDED, ADDED], [NAME], Verdict(acknowledged=1)),
        ([ADDED], [NAME, NAME], Verdict(acknowledged=1, duplicated=1)),
        ([], [NAME], Verdict(phantom=1)),
        ([ADDED], [NAME, "somebody else's"], Verdict(acknowledged=1, phantom=1)),
        ([UNKNOWN], [NAME], Verdict()),
        ([UNKNOWN], [], Verdict()),
        ([attempt(status=503), ADDED], [NAME], Verdict(acknowledged=1)),
        ([attempt(status=422)], [NAME], Verdict(phantom=1)),
        ([ADDED, RENAMED], [f"{NAME} renamed"], Verdict(acknowledged=2)),
        ([ADDED, RENAMED], [NAME], Verdict(acknowledged=2, lost=1)),
        ([ADDED], [f"{NAME} renamed"], Verdict(acknowledged=1, phantom=1)),
        ([ADDED, attempt("rename by the API", 503)], [NAME], Verdict(acknowledged=1)),
        ([ADDED, REMOVED], [], Verdict(acknowledged=2)),
        ([ADDED, REMOVED], [NAME], Verdict(acknowledged=2, lost=1)),
        ([ADDED, attempt("remove by the form", 503)], [], Verdict(acknowledged=1)),
        ([ADDED, attempt("remove by the form", 503)], [NAME], Verdict(acknowledged=1)),
        ([attempt("page", 200)], [], Verdict()),
    ],
)
def test_what_was_acknowledged_is_held_against_what_is_stored(
    attempts: list[Attempt], names: list[str], expected: Verdict
) -> None:
    assert reconcile(attempts, names) == expected


def test_a_journal_that_is_cut_at_a_moment_tells_what_a_restore_to_it_must_hold() -> None:
    before, under_way, after = (attempt(ended=ended)._replace(uuid=str(uuid4())) for ended in (10.0, 10.6, 12.0))
    known = cut([before, under_way, after], 10.2, 10.3)
    assert [(a.uuid, a.is_done) for a in known] == [(before.uuid, True), (under_way.uuid, False)]
    names = [f"drill {a.uuid}" for a in (before, under_way, after)]
    assert reconcile(known, names[:1]) == Verdict(acknowledged=1)
    assert reconcile(known, names[:2]) == Verdict(acknowledged=1)
    assert reconcile(known, names[1:2]) == Verdict(acknowledged=1, lost=1)
    assert reconcile(known, names) == Verdict(acknowledged=1, phantom=1)
    # A change of an older goal that came later shows as well.
    renamed = attempt("rename by the API", 200, ended=13.0)._replace(uuid=before.uuid)
    assert reconcile(cut([before, renamed], 10.2, 10.3), [f"{names[0]} renamed"]) == Verdict(acknowledged=1, phantom=1)


def test_the_longest_gap_counts_the_borders_and_only_what_was_acknowledged() -> None:
    attempts = [attempt(ended=11), attempt(ended=12, status=503), attempt(ended=15), attempt("page", 200, ended=18)]
    assert longest_gap(attempts, 10, 20) == 5
    assert longest_gap(attempts, 10, 16) == 4


def test_what_clients_were_shown_leaves_out_what_the_end_of_the_load_cut_off() -> None:
    attempts = [attempt(ended=11), attempt(ended=12, status=503), attempt(ended=13, status=0, error="interrupted")]
    figures = observe(attempts, 10, 20)
    assert (figures.requests, figures.acknowledged, figures.errors, figures.longest_answer_s) == (2, 1, 1, 0.5)


def goal(number: int) -> str:
    """The UUID of a goal whose id is `number`."""
    return f"00000000-0000-4000-8000-{number:012d}"


def write(number: int, step: str = "add by the API", *, begun: float, ended: float, status: int = 201) -> Attempt:
    known = number if step.startswith("remove") else None
    return Attempt(ended, ended - begun, step, goal(number), status, None, goal_id=known)


def page(*goals: str, begun: float = 10.0, ended: float = 11.0) -> Attempt:
    return Attempt(ended, ended - begun, "page", None, 200, None, shown=goals)


def shown(*numbers: int) -> list[str]:
    return [f"{number:012d}" for number in numbers]


FULL = shown(*range(100, 100 - PAGE, -1))


@pytest.mark.parametrize(
    ("writes", "read", "stale"),
    [
        ([write(1, begun=1, ended=2)], page(*shown(1)), 0),
        ([write(1, begun=1, ended=2)], page(), 1),
        # Acknowledged while the page was under way: it may be there or not.
        ([write(1, begun=1, ended=10.5)], page(), 0),
        ([write(1, begun=1, ended=2, status=503)], page(), 0),
        # Pushed off the page by fifty newer goals, or missing from between them.
        ([write(50, begun=1, ended=2)], page(*FULL), 0),
        ([write(51, begun=1, ended=2)], page(*FULL), 0),
        ([write(101, begun=1, ended=2)], page(*FULL), 1),
        ([write(50, begun=1, ended=2), write(101, begun=3, ended=4)], page(*FULL), 1),
        # A page that is not full has all there are.
        ([write(50, begun=1, ended=2)], page(*FULL[:-1]), 1),
        ([write(1, begun=1, ended=2), write(1, "rename", begun=3, ended=4)], page(*shown(1)), 1),
        ([write(1, begun=1, ended=2), write(1, "rename", begun=3, ended=4)], page("000000000001 renamed"), 0),
        ([write(1, begun=1, ended=2), write(1, "rename", begun=3, ended=10.5)], page(*shown(1)), 0),
        ([write(1, begun=1, ended=2), write(1, "remove", begun=3, ended=4)], page(*shown(1)), 1),
        ([write(1, begun=1, ended=2), write(1, "remove", begun=3, ended=4)], page(), 0),
        ([write(1, begun=1, ended=2), write(1, "remove", begun=3, ended=12)], page(), 0),
        ([write(1, begun=1, ended=2), write(1, "remove", begun=3, ended=12)], page(*shown(1)), 0),
        ([write(1, begun=1, ended=2), write(1, "remove", begun=11.5, ended=12)], page(), 1),
        # Somebody else's goal, or one whose add nobody was answered.
        ([], page(*shown(1)), 0),
    ],
)
def test_a_page_lacks_what_was_acknowledged_before_it_was_requested(
    writes: list[Attempt], read: Attempt, stale: int
) -> None:
    ids = {goal(number): number for number in range(50, 102)} | {goal(1): 1}
    assert find_stale([*writes, read], ids) == stale * [read]


def test_a_page_that_was_refused_shows_nothing_old() -> None:
    refused = page()._replace(status=503)
    assert find_stale([write(1, begun=1, ended=2), refused], {goal(1): 1}) == []


def test_the_journal_tells_what_a_read_showed_and_which_goal_was_changed(tmp_path: Path) -> None:
    line = {"time": 12.0, "begun": 10.0, "seconds": 1.9, "step": "page", "uuid": None, "status": 200, "error": None}
    entries = [
        {**line, "path": "/", "sent": "", "answer": {"shown": ["1", "2"], "cache": "goals-standby; hit"}},
        {**line, "path": "/remove_goal", "sent": "goal_id=7", "time": 11.0, "step": "remove by the form"},
        {**line, "path": "/api/v1/goals/8", "sent": "{}", "time": 13.0, "answer": {"retry_after": "4"}},
    ]
    journal = tmp_path / "journal.jsonl"
    journal.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    removal, read, change = read_journal(journal)
    assert (read.shown, read.is_read, read.is_from_standby, read.begun, read.goal_id) == (
        ("1", "2"),
        True,
        True,
        10,
        None,
    )
    assert (removal.goal_id, removal.is_read, removal.is_from_standby) == (7, False, False)
    assert (change.goal_id, change.retry_after) == (8, 4)


def drill_with(*, lost: int = 0, damage: float = 1, limit: float = 5) -> Drill:
    drill = Drill("example", short=True, seed=1)
    case = drill.begin("case", "something happens")
    case.marks.append(Mark(case.began, "fault", case.began + 1))
    case.check("a figure", 4, "<", limit)
    attempts = [attempt(ended=case.began + 0.5), attempt(ended=case.began + 1.5, status=503)]
    case.ended = case.began + 2
    case.figures = observe(attempts, case.began, case.ended)
    drill.account(Verdict(acknowledged=1, lost=lost), attempts)
    drill.draw(case, attempts)
    drill.control("broken", "a safety is gone", "writes lost", damage)
    return drill


def test_a_drill_passes_when_everything_holds_and_every_control_shows_damage() -> None:
    assert drill_with().passed


@pytest.mark.parametrize(
    "drill", [drill_with(lost=1), drill_with(damage=0), drill_with(limit=4), Drill("x", short=True, seed=1)]
)
def test_a_drill_fails_by_a_lost_write_a_broken_limit_a_silent_control_or_nothing_at_all(drill: Drill) -> None:
    assert not drill.passed


def test_only_a_drill_that_failed_by_timing_or_a_silent_control_may_be_tried_again() -> None:
    assert not drill_with().may_be_tried_again
    assert drill_with(damage=0).may_be_tried_again
    assert not drill_with(damage=0, lost=1).may_be_tried_again
    assert not drill_with(damage=0, limit=4).may_be_tried_again
    late = drill_with()
    late.cases[0].check("longest response, s", 9, "<", 2, kind="timing")
    assert late.may_be_tried_again
    late.cases[0].check("errors shown", 1, "=", 0)
    assert not late.may_be_tried_again


def test_a_drill_that_is_ended_early_leaves_nothing_behind(tmp_path: Path) -> None:
    # PostgreSQL's socket has to fit into 107 characters of path.
    with tempfile.TemporaryDirectory(prefix="drill-", dir="/tmp") as folder:
        command = [sys.executable, "-m", "drills", "restore", "--short", "--out", str(tmp_path)]
        variables = clean_environment(TMPDIR=folder)
        with subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True) as drill:
            try:
                assert drill.stderr is not None
                assert "base backup" in drill.stderr.readline()  # the first case: all that a drill needs is there
                started = list_processes(folder)
                drill.terminate()
                errors = drill.stderr.read()
                assert drill.wait() == 130
            finally:
                drill.terminate()
        assert errors.splitlines()[-1].startswith("error: ended early, without a result")
        assert "Traceback" not in errors
        assert len(started) > 3
        assert not list_processes(folder)
        assert list(Path(folder).iterdir()) == []


def list_processes(folder: str) -> list[int]:
    """All that were started with this folder in their command or environment, and have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # a zombie is none any more
            if folder in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(process.pid)
    return found


def test_a_case_without_a_check_has_not_passed() -> None:
    assert not Case("empty", "nothing was looked at").passed


def test_a_case_that_could_not_be_held_is_counted_and_never_passes_for_one() -> None:
    drill = drill_with()
    drill.leave_out("disk full", "a disk is full", "only root may mount one")
    assert drill.passed
    assert summarize(drill)["not_run"] == 1
    text = write_text(drill)
    assert "example: passed, 1 of 2 cases NOT RUN in" in text
    assert "disk full: not run: only root may mount one" in text
    assert "Not run: only root may mount one." in write_html(drill)
    assert "| **disk full**: a disk is full | not run: only root may mount one |  |  |  |  |" in write_tables(
        [summarize(drill)]
    )


def test_a_drill_of_which_nothing_was_run_has_not_passed() -> None:
    drill = Drill("example", short=True, seed=1)
    drill.leave_out("disk full", "a disk is full", "only root may mount one")
    drill.account(Verdict(acknowledged=1), [])
    drill.control("broken", "a safety is gone", "writes lost", 1)
    assert not drill.passed


def test_a_control_at_its_limit_shows_nothing() -> None:
    assert not Control("control", "", "damage", measured=1, limit=1).shown


def test_the_reports_say_what_was_seen() -> None:
    drill = drill_with(damage=0)
    summary = summarize(drill)
    assert (summary["passed"], summary["acknowledged"], summary["requests"], summary["failed"]) == (False, 1, 2, 0)
    assert summary["errors_shown"] == 1
    assert summary["timelines"] == [timeline.dump() for timeline in drill.timelines]
    assert "BAD broken: 0 writes lost" in write_text(drill)
    page = write_html(drill)
    assert "<svg" in page
    assert '<span class="outcome bad">FAILED</span>' in page
    assert "<li>control broken: 0 writes lost, must be &gt; 0</li>" in page
    assert "<dt>Acknowledged writes lost</dt><dd>0 <small>of 1</small></dd>" in page
    assert '<span class="outcome good">passed</span>' in write_html(drill_with())
    failed = write_html(drill_with(limit=4))
    assert "<li>case: a figure 4, must be &lt; 4</li>" in failed
    assert failed.index("must be") < failed.index("<table"), "the reason comes first"


def test_the_limit_of_the_longest_answer_is_in_its_chart() -> None:
    drill = drill_with()
    assert "limit 1.2 s" not in write_html(drill)
    drill.cases[0].check("longest response, s", 0.5, "<", 1.2)
    assert ">limit 1.2 s</text>" in write_html(drill)


def test_what_was_not_run_is_counted_and_has_not_passed() -> None:
    drill = drill_with()
    drill.leave_out("history", "a former version", "there is no git history")
    assert drill.passed
    assert (drill.outcome, summarize(drill)["not_run"]) == ("passed, 1 of 2 cases NOT RUN", 1)
    assert "history: not run: there is no git history" in write_text(drill)
    assert "Not run: there is no git history." in write_html(drill)
    empty = Drill("empty", short=True, seed=1)
    empty.leave_out("history", "a former version", "there is no git history")
    empty.control("broken", "a safety is gone", "writes lost", 1)
    assert not empty.passed
    assert empty.outcome == "NOT RUN"
    for text in (write_text(empty), write_html(empty)):
        assert "not run: there is no git history" in text.replace("Not", "not")
        assert "verall" not in text
    total = write_total([drill_with(), drill, drill_with(lost=1), empty])
    assert total.startswith("4 drills: 2 passed, 1 failed, 1 not run; 2 of 5 cases not run\n")
    assert "  not run: example/history (there is no git history)\n  not run: empty/history (" in total


def test_the_longest_read_has_its_limit_in_the_chart() -> None:
    drill = drill_with()
    drill.cases[0].check(LONGEST_READ, 0.5, "<=", 0.6, kind="timing")
    assert "| 0.50 | 0.50 |" in write_tables([summarize(drill)]), "beside the longest response"
    assert ">limit 1.2 s</text>" in write_html(drill), "a short drill is patient"


def test_a_busy_machine_is_told_of() -> None:
    drill = drill_with()
    drill.load_before = 0.0
    assert "warning" not in write_text(drill)
    drill.load_before = 1000.0
    assert "the machine was already busy (load 1000.0" in write_text(drill)
    assert "Warning: the machine was already busy" in write_html(drill)


def test_a_timeline_counts_every_attempt_once() -> None:
    attempts = [attempt(ended=10 + 0.037 * number, status=303 if number % 3 else 503) for number in range(100)]
    timeline = Timeline.make("example", attempts, [Mark(10.5, "fault", 11)], 10, 14)
    assert (sum(timeline.answered), sum(timeline.refused)) == (66, 34)
    assert timeline.marks == [Mark(0.5, "fault", 1)]
    rates, longest = draw(timeline)
    assert (rates.count("<polyline"), longest.count("<polyline")) == (2, 1)
    assert rates.count('class="band"') == longest.count('class="band"') == 1
    assert ">fault</text>" in rates


def test_a_timeline_tells_reads_from_writes_where_the_journal_does() -> None:
    read = page(begun=1.2, ended=1.3)._replace(cache="goals-standby; hit")
    timeline = Timeline.make("example", [write(1, begun=1, ended=1.5), read], [], 1, 2)
    assert (sum(timeline.answered), sum(timeline.from_standby)) == (2, 1)
    assert (max(timeline.longest), max(timeline.longest_read)) == (0.5, 0.1)
    rates, longest = draw(timeline)
    assert (rates.count("<polyline"), longest.count("<polyline")) == (3, 2)


def test_an_empty_timeline_can_be_drawn() -> None:
    file = stack(*draw(Timeline.make("nothing", [], [], 10, 11)))
    assert [picture.tag for picture in ET.fromstring(file)] == [f"{{{SVG}}}{tag}" for tag in ("style", "svg", "svg")]  # noqa: S314  our own


def test_the_report_of_a_first_attempt_is_kept_and_counted(tmp_path: Path) -> None:
    first, second = drill_with(damage=0), drill_with()
    second.first_attempt = first
    report.write_files(first, tmp_path)
    report.keep_files(first, tmp_path)
    report.remove_files(second, tmp_path)
    report.write_files(second, tmp_path)
    kept, current = (json.loads((tmp_path / f"example{part}.json").read_text()) for part in ("-first", ""))
    assert (kept["passed"], kept["attempts"]) == (False, 1)
    assert (current["passed"], current["attempts"]) == (True, 2)
    assert "example-first.html" in (tmp_path / "example.html").read_text()
    assert "second attempts: 1 (example)" in report.write_total([second])
    report.remove_files(first, tmp_path)  # as the next run begins
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".svg"] == []


def test_a_drill_that_broke_off_says_why_and_has_not_passed(tmp_path: Path) -> None:
    broken = drill_with()
    broken.broken_off = "the service did not listen"
    report.write_files(broken, tmp_path)
    assert "the service did not listen" in (tmp_path / "example.html").read_text()
    assert not broken.passed


def test_a_short_drill_is_patient_with_times_and_not_with_counts() -> None:
    for patience, holds in ((1.0, [False, False, False]), (2.0, [True, False, False])):
        case = Case("short", "", patience=patience)
        case.check("longest response, s", 3.0, "<", 2.0, kind="timing")
        case.check("errors shown", 3, "<", 2)
        case.check("a pause at least, s", 3.0, ">", 4.0)
        assert [check.holds for check in case.checks] == holds


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=Test", "-c", "user.email=test@example.com", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(folder: Path, *files: str) -> str:
    """Write these files, commit them, and give the commit's short name."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Change")
    return git(folder, "rev-parse", "--short", "HEAD")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose two first revisions came together, and a third one with the version after."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet")
    together = [f"alembic/versions/{name}" for name in ("0001_first.py", "0002_second.py")]
    commit(folder, "alembic.ini", "alembic/env.py", "services/goals/__main__.py", "services/.cache/file", *together)
    return folder


def test_the_former_version_is_the_last_commit_before_the_next_revision_came(project: Path, tmp_path: Path) -> None:
    former = commit(project, "services/goals/app.py")
    commit(project, "alembic/versions/0003_third.py", "services/goals/later.py")
    head = commit(project, "README.md")
    history = History(project)
    history.check(whole=True)
    assert history.find_last("0001", "0002") is None
    assert history.find_last("0002", "0003") == former
    # A revision that is being written is in no commit yet: what runs before it is the newest one.
    assert history.find_last("0003", "0004") == history.find_last("0003", None) == head
    assert history.find_last("0004", None) is None
    history.unpack(former, tmp_path / "former")
    assert list_revisions(tmp_path / "former") == ["0001", "0002"]
    assert (tmp_path / "former" / "services" / "goals" / "app.py").is_file()
    assert list_revisions(project) == ["0001", "0002", "0003"]
    with pytest.raises(HistoryError, match="commit 0123456"):
        history.unpack("0123456", tmp_path / "nothing")


def test_a_renamed_revision_came_when_it_first_did(project: Path) -> None:
    former = git(project, "rev-parse", "--short", "HEAD")
    commit(project, "alembic/versions/0003_third.py")
    git(project, "mv", "alembic/versions/0003_third.py", "alembic/versions/0003_better_name.py")
    commit(project)
    assert History(project).find_last("0002", "0003") == former


def test_a_history_that_cannot_tell_says_what_to_do(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(project, "README.md")
    git(tmp_path, "clone", "--quiet", "--depth", "1", project.as_uri(), "shallow")
    shallow = History(tmp_path / "shallow")
    shallow.check(whole=False)
    with pytest.raises(HistoryError, match="git fetch --unshallow"):
        shallow.check(whole=True)
    inside = project / "unpacked"
    inside.mkdir()
    for folder in (inside, tmp_path):
        with pytest.raises(HistoryError, match="no git history here"):
            History(folder).check(whole=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HistoryError, match="no git on the PATH"):
        History(project).check(whole=False)


def test_a_copy_of_the_tree_is_what_runs_of_it(project: Path, tmp_path: Path) -> None:
    copy_tree(project, tmp_path / "copy")
    files = sorted(
        str(file.relative_to(tmp_path / "copy")) for file in (tmp_path / "copy").rglob("*") if file.is_file()
    )
    assert files == [
        "alembic.ini",
        "alembic/env.py",
        "alembic/versions/0001_first.py",
        "alembic/versions/0002_second.py",
        "services/goals/__main__.py",
    ]
