"""Scenarios: those that are there, what is refused and with which words, and what requests become of steps."""

import ast
from pathlib import Path
from typing import Any

import pytest

from loadtest.executors import ConstantVus
from loadtest.scenario import (
    FOLDER,
    ScenarioError,
    Step,
    Target,
    list_scenarios,
    parse_conditions,
    parse_source,
    read_scenario,
)

TARGET = Target.parse("http://host:8080")
SMALL = """
description = "small"
[load]
executor = "constant-vus"
vus = 1
duration = "1s"
[[task]]
[[task.step]]
path = "/"
checks = { "answers" = "status == 200" }
[thresholds]
"""


def refuse(tmp_path: Path, text: str) -> str:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ScenarioError) as refusal:
        read_scenario(str(file))
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_every_scenario_in_the_folder_is_one() -> None:
    assert set(list_scenarios()) >= {"original", "smoke", "browse", "ramp", "spike", "soak", "breakpoint"}
    for name in list_scenarios():
        assert read_scenario(name).parse_thresholds(), f"{name} would pass when everything fails"


def test_the_original_scenario_is_that_of_k6() -> None:
    original = read_scenario("original")
    assert original.load == ConstantVus(executor="constant-vus", vus=100, duration="30s")  # type: ignore[arg-type]  # as a file has it
    assert (original.pause, len(original.task), len(original.task[0].step)) == (None, 1, 1)
    (step,) = original.task[0].step
    assert step.render(Target.parse("http://a/base"), {}).path == "/base", "the base URL itself"
    assert step.render(TARGET, {}) == ("GET", "/", {}, b"")
    assert step.checks == {"endpoint was successful": "status == 200"}


def test_numbers_on_the_command_line_replace_the_scenarios_own() -> None:
    load = read_scenario("original", users=5, seconds=2.5).load
    assert isinstance(load, ConstantVus)
    assert (load.vus, load.duration) == (5, 2.5)
    with pytest.raises(ScenarioError, match="-u cannot be used with `spike`"):
        read_scenario("spike", users=5)
    with pytest.raises(ScenarioError, match="-t cannot be used with `ramp`"):
        read_scenario("ramp", seconds=5)
    with pytest.raises(ScenarioError, match=r"original\.toml: load\.constant-vus\.vus: Input should be greater than"):
        read_scenario("original", users=0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vus = 1", "vuz = 1", "load.constant-vus.vuz: unknown key (and 1 more)"),
        ("vus = 1", "vus = 1\nrate = 3", "load.constant-vus.rate: unknown key"),
        ("vus = 1", "vus = 0", "load.constant-vus.vus: Input should be greater than or equal to 1"),
        ('"1s"', '"1 s"', "load.constant-vus.duration: a duration is text such as"),
        ('"1s"', '"500ms"', "the load lasts less than a second"),
        ("constant-vus", "constant", "load: Input tag 'constant'"),
        ("[load]", "[laod]", "laod: unknown key (and 1 more)"),
        ("[load]", "load = 1\n[x]", "x: unknown key (and 1 more)"),
        ('path = "/"', 'path = "page"', "task.0.step.0.path: String should match pattern"),
        ('path = "/"', 'path = "/"\nmethod = "PUT"', "task.0.step.0.method: Input should be 'GET', 'POST'"),
        ('path = "/"', 'path = "/${id}"', "`${id}` in step `GET /${id}` is not saved by an earlier step"),
        ('path = "/"', 'path = "/"\nbody = "x"', "task.0.step.0: a GET cannot have a body"),
        ('path = "/"', 'path = "/"\nmethod = "POST"\nbody = "x"\njson = {}', "a step may only have one of `form`"),
        ("status == 200", "status = 200", "`status = 200` is not a check"),
        ('path = "/"', 'path = "/"\nsave = { a = "cookie b" }', "`cookie b` is not a source"),
        ('path = "/"', 'path = "/"\njournal = { a = "cookie b" }', "`cookie b` is not a source"),
        ("[thresholds]", '[thresholds]\nchecks = ["rate"]', "`rate` is not a threshold"),
        ("[thresholds]", "[thresholds]\n'checks{check:x}' = ['rate>0']", "no step of this scenario has the check `x`"),
        ("[thresholds]", '[thresholds]\nchecks = [{ threshold = "rate>0", abort = true }]', "abort: unknown key"),
        ("[[task]]", "[[task]]\n[[task.step]]\npath = '/'\nname = 'GET /'\nmethod = 'POST'\n", "different methods"),
        ("[load]", 'pause = "1s"\n[load]\nrate = 1', "load.constant-vus.rate: unknown key"),
        ("description", "description = 1\nx", "x: unknown key (and 1 more)"),
        (
            'path = "/"',
            'path = "/"\nmethod = "POST"\njson = { at = 2026-01-01 }',
            "step.0.json: JSON has no dates, times",
        ),
        ('path = "/"', 'path = "/"\nmethod = "POST"\njson = { at = [nan] }', "step.0.json: JSON has no dates, times"),
        (
            'path = "/"',
            'path = "/"\nheaders = { content-length = "3" }',
            "`content-length` cannot be set: it is derived",
        ),
        ('path = "/"', 'path = "/"\nheaders = { Transfer-Encoding = "x" }', "`Transfer-Encoding` cannot be set"),
        (
            'path = "/"',
            'path = "/"\nheaders = { x-a = "1", X-A = "2" }',
            "`x-a` and `X-A` are the same header: header names are case-insensitive",
        ),
        ("vus = 1", 'vus = 1\ngracefulStop = "1s"', "load.constant-vus: k6's `gracefulStop` is not supported"),
        ("[thresholds]", "[thresholds]\n'http_reqs{method:PUT}' = ['rate>0']", "has the method `PUT`"),
        ('path = "/"', 'path = "/"\nsave = { uuid = "header x" }', "`uuid` is built into every iteration"),
        ("[load]", "[load", "bad.toml: "),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in refuse(tmp_path, SMALL.replace(old, new, 1))


def test_a_byte_order_mark_is_no_part_of_a_scenario(tmp_path: Path) -> None:
    file = tmp_path / "marked.toml"
    file.write_text(SMALL, encoding="utf-8-sig")
    assert read_scenario(str(file)).description == "small"


def test_a_pause_belongs_to_closed_loops(tmp_path: Path) -> None:
    arrivals = SMALL.replace("constant-vus", "constant-arrival-rate").replace("vus = 1", "rate = 1")
    assert "`pause` is only for closed loops" in refuse(tmp_path, 'pause = "1s"\n' + arrivals)


def test_a_scenario_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="there is no scenario `sead`; choose one of breakpoint, browse"):
        read_scenario("sead")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ScenarioError, match="Is a directory"):
        read_scenario(str(tmp_path / "folder.toml"))
    assert read_scenario(str(FOLDER / "original.toml")) == read_scenario("original")


def test_conditions_take_the_options_of_k6(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    conditions = '[{ threshold = "rate>0.9", abortOnFail = true, delayAbortEval = "5s" }, "rate>0.5"]'
    file.write_text(f"{SMALL}checks = {conditions}\n'http_req_duration{{name:GET /}}' = ['p(95)<5']\n")
    first, second, third = read_scenario(str(file)).parse_thresholds()
    assert (first.abort_on_fail, first.delay_abort, first.limit) == (True, 5, 0.9)
    assert (second.abort_on_fail, second.delay_abort) == (False, 0)
    assert (third.tags, third.selector) == ({"name": "GET /"}, "http_req_duration{name:GET /}")


def test_conditions_of_classes_are_read_as_a_scenarios() -> None:
    class Reader: ...

    class Keen(Reader): ...

    slow, rate = "p(95)<250", {"threshold": "rate>0.9", "abortOnFail": True}
    first, second = parse_conditions(
        {Reader: {"http_req_duration": [slow]}, Keen: {"http_req_duration": [slow], "checks": [rate]}}
    )
    assert (first.selector, second.selector, second.abort_on_fail) == ("http_req_duration", "checks", True)
    with pytest.raises(ScenarioError, match=r"^Keen\.thresholds: .*abortOften"):
        parse_conditions({Keen: {"checks": [{"threshold": "rate>0.9", "abortOften": True}]}})
    with pytest.raises(ScenarioError, match=r"^Keen\.thresholds: .*`p\(95\)"):
        parse_conditions({Keen: {"checks": ["p(95)"]}})


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://a", ("http", "a", 80, "a", "")),
        ("https://a/b/", ("https", "a", 443, "a", "/b/")),
        ("http://[::1]:81", ("http", "::1", 81, "[::1]:81", "")),
    ],
)
def test_a_target_is_taken_apart(url: str, target: tuple[Any, ...]) -> None:
    assert Target.parse(url) == target


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "there is no target; set it with --host"),
        ("", "there is no target"),
        ("127.0.0.1:80", "is not a base URL"),
        ("ftp://a", "is not a base URL"),
        ("http://", "is not a base URL"),
        ("http://a?b", "is not a base URL"),
        ("http://me:secret@a", "is not a base URL"),
        ("http://a:port", "is not a URL"),
        ("http://[::1", "is not a URL"),
        ("http://a:0", "is not a base URL"),
        ("ftp://a:21", "is not a base URL"),
        ("http://@a", "is not a base URL"),
        ("http://a/b c", "contains ' '; a URL may only contain visible ASCII"),
        ("http://a/\tb", r"contains '\\t'"),
        ("http://a\n", r"contains '\\n'"),
        (" http://a", "contains ' '"),
        ("http://b\u00fccher", "contains 'ü'"),
        ("http://a/\u00fc", "contains 'ü'"),
        ("http://a/\x7f", r"contains '\\x7f'"),
    ],
)
def test_other_targets_are_refused(url: str | None, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        Target.parse(url)


def step(**fields: Any) -> Step:
    return Step.model_validate({"method": "POST", "path": "/", **fields})


def test_values_are_encoded_as_their_place_demands() -> None:
    values = {"id": "a/b &ü"}
    form = step(path="/${id}", form={"name": "${id}!"}, headers={"X-Id": "id ${uuid}"}).render(
        TARGET, {**values, "uuid": "u"}
    )
    assert form.path == "/a%2Fb%20%26%C3%BC"
    assert form.body == b"name=a%2Fb+%26%C3%BC%21"
    assert form.headers == {"X-Id": "id u", "Content-Type": "application/x-www-form-urlencoded"}
    body = step(json={"a": ["${id}", 1, None], "b": {"c": "${id}"}}).render(TARGET, {"id": 'say "x"'})
    assert body.body == b'{"a": ["say \\"x\\"", 1, null], "b": {"c": "say \\"x\\""}}'
    assert body.headers == {"Content-Type": "application/json"}
    for name in ("content-type", "CONTENT-TYPE"):
        assert step(json={}, headers={name: "a/b"}).render(TARGET, {}).headers == {name: "a/b"}
    raw = step(body="${id}", headers={"Content-Type": "text/plain"}).render(Target.parse("http://a/base/"), values)
    assert (raw.path, raw.body, raw.headers) == ("/base/", "a/b &ü".encode(), {"Content-Type": "text/plain"})


def test_a_step_knows_what_it_needs_and_how_it_is_called() -> None:
    full = step(path="/${a}", headers={"X": "${b}"}, json={"x": ["${c}"]})
    assert full.variables == {"a", "b", "c"}
    assert step(form={"x": "${d}"}, name="named").variables == {"d"}
    assert step(body="${e}").variables == {"e"}
    assert (full.label, step(name="named").label, step(path="").label) == ("POST /${a}", "named", "POST /")


def test_a_step_notes_parts_of_its_answer_in_the_journal() -> None:
    assert step(path="/", journal={"cache": "header Cache-Status"}).journal == {"cache": "header Cache-Status"}


def test_sources_are_a_header_or_a_pattern_with_one_group() -> None:
    assert parse_source("header ETag").header == "ETag"
    pattern = parse_source(r"body id=(\d+)").pattern
    assert pattern is not None
    assert pattern.findall("id=1 id=22") == ["1", "22"]
    for text, message in (
        ("body (", "is not a regular expression"),
        ("body a", "needs exactly one group"),
        ("body (a)(b)", "needs exactly one group"),
        ("status", "is not a source"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_source(text)


def test_browse_removes_only_what_load_tests_have_added() -> None:
    source = next(
        step.save["goal_id"] for task in read_scenario("browse").task for step in task.step if "goal_id" in step.save
    )
    pattern = parse_source(source).pattern
    assert pattern is not None
    row = '<li>Edit <bdi>{0}</bdi><button name="goal_id" value="{1}">Remove<span> {0}</span></button>'
    page = row.format("Learn to swim", 1) + row.format("Load test form 42", 2)
    assert pattern.findall(page) == ["2"]


def test_the_load_test_imports_nothing_from_the_service() -> None:
    for file in FOLDER.parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.split(".")[0] == "goals"], file
