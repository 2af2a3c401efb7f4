"""Whole runs: their length, their figures beside the server's, their verdicts; in one process, in many, by the UI."""

import csv
import json
import os
import re
import signal
import subprocess
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.loadtest.live.conftest import LOCUST, ROOT, Play, read, web_ui
from tests.loadtest.live.scripted import OK, Server, closed_port
from tools.polling import wait_until

CLOSED = 'executor = "constant-vus"\nvus = {vus}\nduration = "{duration}"'
OBJECTIVES = "objectives = true"
OPEN = 'executor = "constant-arrival-rate"\nrate = 200\nduration = "{duration}"\nmax_vus = {max_vus}'


def write_scenario(load: str, step: str = 'path = "/"', thresholds: str = "", head: str = "objectives = false") -> str:
    check = 'checks = { "answered" = "status == 200" }'
    return (
        f'description = "run"\n{head}\n[load]\n{load}\n[[task]]\n[[task.step]]\n{step}\n{check}\n'
        f"[thresholds]\n{thresholds}\n"
    )


def closed(vus: int = 10, duration: str = "3s") -> str:
    return CLOSED.format(vus=vus, duration=duration)


def opened(duration: str = "3s", max_vus: int = 500) -> str:
    return OPEN.format(duration=duration, max_vus=max_vus)


def test_a_run_lasts_as_long_as_it_says_and_counts_what_the_server_counts(play: Play, server: Server) -> None:
    server.answer_after = 0.02
    played = play(
        write_scenario(closed(vus=10, duration="9s"), thresholds='checks = ["rate==1"]'), server.url, "-t", "3s"
    )
    assert played.code == 0, played.err
    assert played.requests == server.count == played.values("checks")["passes"]
    assert played.values("data_received")["count"] == len(OK) * server.count
    # Of the seconds that were asked for, the server saw all but start and end of the first and last request.
    assert (server.times[-1] - server.times[0]) / 3 == pytest.approx(1, abs=0.05)
    assert played.summary["state"]["testRunDurationMs"] / 3000 == pytest.approx(1, abs=0.05)
    assert 0.95 <= played.summary["loadtest"]["littles_law_ratio"] <= 1.05
    assert played.values("connections")["count"] == server.connections == 10
    assert played.values("http_req_duration")["min"] >= 20
    assert played.summary["loadtest"]["warnings"] == []


@pytest.mark.parametrize(("thresholds", "code"), [('checks = ["rate==1"]', 99), ("", 1)])
def test_a_failed_check_fails_the_run_where_a_threshold_says_so(
    play: Play, server: Server, thresholds: str, code: int
) -> None:
    played = play(write_scenario(closed(1, "1s"), 'path = "/500"', thresholds), server.url)
    assert played.code == code
    assert played.values("http_req_failed")["rate"] == 1
    assert "status 500" in json.dumps(played.summary["loadtest"]["errors"])


def test_a_threshold_may_end_the_run(play: Play, server: Server) -> None:
    thresholds = 'http_req_failed = [{ threshold = "rate<0.5", abortOnFail = true, delayAbortEval = "500ms" }]'
    played = play(write_scenario(closed(2, "60s"), 'path = "/500"', thresholds), server.url)
    assert played.code == 99
    assert played.summary["state"]["testRunDurationMs"] < 10_000


def test_objectives_are_the_default_thresholds(play: Play, server: Server, tmp_path: Path) -> None:
    slo = tmp_path / "slo.toml"
    slo.write_text("[availability]\nobjective = 0.999\n[latency]\nobjective = 0.95\nthreshold_seconds = 0.001\n")
    server.answer_after = 0.02
    scenario = write_scenario(closed(2, "1s"), head=OBJECTIVES)
    played = play(scenario, server.url, "--slo", str(slo))
    assert played.code == 99
    assert played.summary["metrics"]["http_req_duration"]["thresholds"] == {"p(95)<1": {"ok": False}}
    assert played.summary["metrics"]["http_req_failed"]["thresholds"] == {"rate<=0.001": {"ok": True}}
    played = play(scenario, server.url, "--slo", "none")
    assert played.code == 0
    assert "thresholds" not in played.summary["metrics"]["http_req_duration"]


@pytest.mark.parametrize(
    ("scenario", "options", "message"),
    [
        (write_scenario(closed(), "paht = '/'"), (), "task.0.step.0.paht: unknown key (and 1 more)"),
        (write_scenario(opened()), ("-u", "5"), "-u cannot be used with"),
        (write_scenario(closed()), ("--host", "127.0.0.1:80"), "is not a base URL"),
        (write_scenario(closed()), ("--host", "http://127.0.0.1:0"), "is not a base URL"),
        (write_scenario(closed()), ("--host", "http://127.0.0.1:80/a b"), "a URL may only contain visible ASCII"),
        (write_scenario(closed(), head=OBJECTIVES), ("--slo", "/proc/none.toml"), "the objectives in /proc/none.toml"),
        (write_scenario(closed(), head=OBJECTIVES), ("--slo", "/proc"), "cannot be read: Is a directory"),
        (write_scenario(closed()), ("--journal", "/proc/none/journal"), "the journal cannot be written"),
    ],
)
def test_what_cannot_be_played_is_refused(play: Play, scenario: str, options: tuple[str, ...], message: str) -> None:
    played = play(scenario, "http://127.0.0.1:9", *options)
    assert played.code == 2
    assert message in played.err
    assert "Traceback" not in played.err
    assert played.summary == {}


def test_a_run_without_requests_is_an_error(play: Play, server: Server) -> None:
    load = 'executor = "ramping-arrival-rate"\nstart_rate = 0\nstages = [{ duration = "1s", target = 0 }]'
    played = play(write_scenario(load), server.url)
    assert played.code == 1
    assert "no request" in played.out


def test_a_busy_generator_makes_the_run_invalid(play: Play, server: Server) -> None:
    # A search that goes through every way to split the letters before it fails: the generator works, the server waits.
    step = 'method = "POST"\npath = "/echo"\nbody = "aaaaaaaaaaaaaaaaaab"\nsave = { never = "body ((?:a+)+)c" }'
    played = play(write_scenario(closed(4, "2s"), step), server.url)
    assert played.code == 1, played.out
    assert "the load generator was busy" in played.out
    assert played.requests == server.count


def test_an_open_model_does_not_hide_a_stall(play: Play, server: Server) -> None:
    server.stall = (2.0, 3.0)
    played = play(write_scenario(opened("5s")), server.url)
    assert played.code == 0, played.out
    assert played.values("http_req_duration")["p(99)"] > 800
    assert played.requests == server.count == 1000
    assert "dropped_iterations" not in played.summary["metrics"]


def test_arrivals_that_find_nobody_free_are_dropped_and_told(play: Play, server: Server) -> None:
    server.answer_after = 0.1
    played = play(write_scenario(opened("2s", max_vus=2)), server.url)
    dropped = played.values("dropped_iterations")["count"]
    assert dropped > 0
    assert dropped + played.requests == 400
    assert played.values("vus_max")["value"] == 2
    assert "were dropped" in played.out


def test_users_ramp_up_and_down(play: Play, server: Server) -> None:
    server.answer_after = 0.05
    stages = '[{ duration = "2s", target = 30 }, { duration = "2s", target = 1 }]'
    played = play(write_scenario(f'executor = "ramping-vus"\nstages = {stages}'), server.url)
    assert played.code == 0, played.err
    assert played.requests == server.count
    assert played.values("vus_max")["value"] > 10
    assert played.summary["loadtest"]["users"] < 0.8 * played.values("vus_max")["value"]
    assert 0.95 <= played.summary["loadtest"]["littles_law_ratio"] <= 1.05


def test_a_step_is_pressed_again_with_the_same_key(play: Play, server: Server) -> None:
    step = 'method = "POST"\npath = "/500"\njson = { key = "${uuid}" }\nattempts = 3'
    played = play(write_scenario(closed(2, "2s"), step), server.url)
    iterations: dict[tuple[int, int], list[dict[str, object]]] = {}
    for entry in played.journal:
        iterations.setdefault((entry["user"], entry["iteration"]), []).append(entry)
    last = dict(iterations.keys())  # of each user: the journal has them in their order
    for (user, iteration), entries in iterations.items():
        attempts = [entry["attempt"] for entry in entries]
        # Who waits to press again when the run ends does not any more.
        assert attempts == [1, 2, 3] or (iteration == last[user] and attempts == [1, 2, 3][: len(attempts)])
    assert all(len({str(entry["sent"]) for entry in entries}) == 1 for entries in iterations.values())
    assert len({entry["sent"] for entry in played.journal}) == len(iterations) > 2
    assert len(played.journal) == played.requests == server.count


def test_who_waits_to_press_again_stops_when_the_run_does(play: Play, server: Server) -> None:
    # From the fifth pause on each is half a second to a second: a hundred attempts would outlast any run.
    step = 'method = "POST"\npath = "/500"\nattempts = 100'
    played = play(write_scenario(closed(4, "2s"), step), server.url)
    assert played.requests == server.count > 12
    assert server.times[-1] - server.times[0] < 2
    assert "interrupted" not in {entry["error"] for entry in played.journal}
    assert "interrupted_requests" not in played.summary["metrics"]
    assert played.summary["root_group"]["checks"][0]["fails"] == 0, "nothing is checked of what was given up"
    assert "none  answered: 0 of 0" in played.out


def test_who_is_told_when_to_press_again_does_so_then(play: Play, server: Server) -> None:
    columns = """journal = { seen = 'body (\\d+)', after = "header retry-after", other = "header etag" }"""
    played = play(write_scenario(closed(1, "3s"), f'path = "/503"\nattempts = 100\n{columns}'), server.url)
    first, second = played.journal[:2]
    assert first["answer"] == {"seen": ["1", "22"], "after": "1", "other": None}
    # A pause of its own is at most 0.1 s long at first.
    assert 1 <= second["begun"] - first["time"] < 2
    assert first["begun"] + first["seconds"] <= first["time"]


def test_what_was_saved_goes_into_the_next_step(play: Play, server: Server) -> None:
    saving = 'method = "POST"\npath = "/echo"\nbody = "id=${uuid};"\nsave = { id = "body id=([^;]+);" }'
    using = (
        '[[task.step]]\nmethod = "PATCH"\npath = "/${id}"\nheaders = { If-Match = "${id}" }\njson = { id = ["${id}"] }'
    )
    scenario = write_scenario(closed(1, "1s"), saving).replace("[thresholds]", f"{using}\n[thresholds]")
    played = play(scenario, server.url)
    first, second = played.journal[:2]
    assert first["sent"] == f"id={first['uuid']};"
    assert second["path"] == f"/{first['uuid']}"
    assert json.loads(second["sent"]) == {"id": [first["uuid"]]}


@pytest.mark.parametrize("load", [closed(11), opened("2s")])
def test_two_processes_are_measured_as_one(play: Play, server: Server, load: str, processes: tuple[str, ...]) -> None:
    server.answer_after = 0.02
    played = play(write_scenario(load, thresholds='checks = ["rate==1"]'), server.url, *processes)
    assert played.code == 0, played.err + played.out
    assert played.requests == server.count == played.values("checks")["passes"] == len(played.journal)
    assert played.summary["loadtest"]["problems"] == played.summary["loadtest"]["warnings"] == []
    assert {entry["user"] % 2 for entry in played.journal} == {0, 1}
    if "arrival" in load:
        assert played.requests == 400
    else:
        assert played.values("vus_max")["value"] == played.values("connections")["count"] == 11


def test_distributed_over_a_master_and_two_workers(play: Play, server: Server, port: str) -> None:
    server.answer_after = 0.02
    worker = [*LOCUST, "--worker", "--master-host", "127.0.0.1", "--master-port", port]
    workers = [subprocess.Popen(worker, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        master = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2")
        played = play(write_scenario(closed(10, "2s"), thresholds='checks = ["rate==1"]'), server.url, *master)
        assert played.code == 0, played.err
        assert played.requests == server.count == played.values("checks")["passes"]
        assert played.values("vus_max")["value"] == 10
        assert [process.wait(20) for process in workers] == [0, 0]
    finally:
        for process in workers:
            process.kill()
            process.communicate()


def starts(url: str, form: dict[str, str]) -> bool:
    """Press the button; Locust ignores it for a moment after the run before has been judged."""
    read(f"{url}/swarm", form)
    return json.loads(read(f"{url}/stats/requests"))["state"] in {"spawning", "running"}


def shows(url: str, text: str) -> bool:
    return text in read(url)


@pytest.mark.parametrize("many", [False, True])
def test_scenarios_are_chosen_and_judged_in_the_web_ui(
    server: Server,
    tmp_path: Path,
    many: bool,  # noqa: FBT001  a parameter of the test
    processes: tuple[str, ...],
) -> None:
    runs = {"bad": ("/500", 1), "good": ("/", 0)}
    for name, (path, _) in runs.items():
        step = f'path = "{path}"'
        (tmp_path / f"{name}.toml").write_text(write_scenario(closed(3, "3s"), step, 'checks = ["rate==1"]'))
    with web_ui("--out", str(tmp_path / "out"), *(processes if many else ())) as (url, process):
        page = read(url)
        assert "breakpoint" in page, "the scenarios are offered"
        assert "No run has ended" in read(f"{url}/verdict")
        for name, (path, share) in runs.items():
            before = server.count
            scenario = str(tmp_path / f"{name}.toml")
            form = {"scenario": scenario, "host": server.url, "user_count": "1", "spawn_rate": "1"}
            wait_until(partial(starts, url, form))
            wait_until(partial(shows, f"{url}/verdict", f"<h1>{name}: "))
            summary = json.loads((tmp_path / "out" / "summary.json").read_text())
            count = summary["metrics"]["http_reqs"]["values"]["count"]
            assert count == server.count - before == server.requests[path] > 0
            assert summary["metrics"]["vus_max"]["values"]["value"] == 3
            wait_until(
                partial(shows, f"{url}/stats/requests", f'"num_requests": {count}')
            )  # which are cached for two seconds
            total = json.loads(read(f"{url}/stats/requests"))["stats"][-1]
            assert total["num_failures"] == share * count
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
        assert "FAIL  answered" in out
        assert "passed (exit 0)" in out


def test_the_web_ui_tells_what_was_not_played_and_what_was_not_finished(server: Server, tmp_path: Path) -> None:
    long, other = tmp_path / "long.toml", tmp_path / "other.toml"
    for file in (long, other):
        file.write_text(write_scenario(closed(2, "60s"), thresholds='checks = ["rate==1"]'))
    server.answer_after = 0.02
    out = tmp_path / "out"
    good = {"scenario": str(long), "host": server.url, "user_count": "1", "spawn_rate": "1"}
    bad = {**good, "scenario": str(other), "host": "http://127.0.0.1:0"}
    with web_ui("--out", str(out)) as (url, process):
        read(f"{url}/swarm", bad)
        wait_until(partial(shows, f"{url}/verdict", "There was no run: the target `http://127.0.0.1:0`"))
        assert not out.exists()
        wait_until(partial(starts, url, good))
        wait_until(lambda: server.count > 20)
        read(f"{url}/swarm", {**bad, "host": "http://127.0.0.1:1"})  # ignored by Locust, but for what it keeps of it
        read(f"{url}/stop", {"now": "true"})
        wait_until(partial(shows, f"{url}/verdict", "<h1>long: "))
        summary = json.loads((out / "summary.json").read_text())["loadtest"]
        assert (summary["scenario"], summary["target"], summary["verdict"]) == ("long", server.url, "invalid")
        assert re.fullmatch(r"the run was cut off after \d+ of 60 s", summary["problems"][0])
        written = (out / "summary.json").stat().st_mtime_ns
        wait_until(lambda: "There was no run" in read(f"{url}/swarm", bad) + read(f"{url}/verdict"))
        assert (out / "summary.json").stat().st_mtime_ns == written
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 2, "what was pressed last could not be played"
        assert "Traceback" not in err
        assert err.count("error: the target `http://127.0.0.1:0` is not a base URL") >= 2


@pytest.mark.parametrize("listens", [True, False])
def test_request_events_reach_whoever_listens(play: Play, server: Server, tmp_path: Path, listens: bool) -> None:  # noqa: FBT001  a parameter of the test
    plug_in = tmp_path / "plug_in.py"
    plug_in.write_text(
        "from locust import events\nseen = [0]\n"
        "def count(**_): seen[0] += 1\n"
        + ("events.request.add_listener(count)\n" if listens else "")
        + "events.quit.add_listener(lambda **_: print('seen', seen[0]))\n"
    )
    files = f"{ROOT / 'loadtest' / 'locustfile.py'},{plug_in}"
    played = play(write_scenario(closed(2, "1s")), server.url, "-f", files)
    assert f"seen {server.count if listens else 0}\n" in played.out
    assert played.requests == server.count


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("many", [False, True])
def test_an_interrupted_run_still_reports(
    server: Server,
    tmp_path: Path,
    sent: signal.Signals,
    many: bool,  # noqa: FBT001  a parameter of the test
    processes: tuple[str, ...],
) -> None:
    scenario = tmp_path / "long.toml"
    scenario.write_text(write_scenario(closed(2, "60s")))
    command = [*LOCUST, "--headless", "--scenario", str(scenario), "--host", server.url, "--out", str(tmp_path / "out")]
    command += processes if many else ()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: server.count > 100)
        process.send_signal(sent)
        _, err = process.communicate(timeout=30)
        assert "Traceback" not in err
        assert process.returncode == 1, "a run that was cut off proves nothing"
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["metrics"]["http_reqs"]["values"]["count"] == server.count
    finally:
        process.kill()
        process.communicate()


def test_memory_stays_where_it_is_over_a_soak(server: Server, tmp_path: Path) -> None:
    seconds = int(os.environ.get("SOAK", "20"))
    scenario = tmp_path / "soak.toml"
    scenario.write_text(write_scenario(closed(500, f"{seconds}s")))
    command = [*LOCUST, "--headless", "--scenario", str(scenario), "--host", server.url, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        memory = {}
        for line in process.stderr:
            # One line of progress a second; Locust has a say as well where all cores are busy.
            if progress := re.match(r" *(\d+) of ", line):
                memory[int(progress[1])] = psutil.Process(process.pid).memory_info().rss
        begun = min(at for at in memory if at >= seconds / 4)
        first, last = memory[begun], memory[max(memory)]
        print(f"memory after {begun:.0f} s {first / 2**20:.1f} MiB, after {max(memory):.0f} s {last / 2**20:.1f} MiB")  # noqa: T201  the figure
        assert last / first < 1.05
        assert process.wait(20) in {0, 1}, "500 users without a pause may well be more than a core can make"
    finally:
        process.kill()
        process.communicate()


def test_a_check_that_fails_every_time_lets_no_run_pass(play: Play, server: Server) -> None:
    played = play(write_scenario(closed(1, "1s")).replace("status == 200", "status == 201"), server.url)
    assert played.code == 1
    assert played.summary["loadtest"]["problems"][0].startswith("the check `answered` failed every time (")


def test_header_names_have_no_case(play: Play, server: Server) -> None:
    step = 'method = "POST"\npath = "/"\nheaders = { content-type = "a/b", host = "c", user-agent = "d" }\njson = {}'
    played = play(write_scenario(closed(1, "1s"), step), server.url)
    assert played.code == 0, played.out
    head = server.head.lower()
    assert [head.count(name) for name in (b"content-type:", b"host:", b"user-agent:")] == [1, 1, 1]
    assert b"content-type: a/b\r\n" in head


def test_forms_of_k6_are_played(play: Play, server: Server) -> None:
    stages = '[{ duration = "2s", target = 5 }, { duration = "0s", target = 2 }, { duration = "2s", target = 0 }]'
    load = f'executor = "ramping-vus"\nstartVUs = 0\nstages = {stages}'
    selector = '"http_req_duration{expected_response:true}" = ["p(95)<500"]'
    server.answer_after = 0.02
    played = play(write_scenario(load, thresholds=selector), server.url)
    assert played.code == 0, played.out
    assert played.summary["state"]["testRunDurationMs"] / 4000 == pytest.approx(1, abs=0.1)
    assert played.requests == server.count
    assert played.summary["loadtest"]["warnings"] == []


def test_arrivals_by_time_unit(play: Play, server: Server) -> None:
    load = 'executor = "constant-arrival-rate"\nrate = 1200\ntimeUnit = "1m"\nduration = "2s"\npreAllocatedVUs = 5'
    assert play(write_scenario(load), server.url).requests == server.count == 40


@pytest.mark.parametrize("many", [False, True])
def test_locusts_own_files_have_the_failures_and_sizes(
    play: Play,
    server: Server,
    tmp_path: Path,
    many: bool,  # noqa: FBT001  a parameter of the test
    processes: tuple[str, ...],
) -> None:
    options = ("--csv", str(tmp_path / "c"), "--html", str(tmp_path / "locust.html"), *(processes if many else ()))
    played = play(write_scenario(closed(2, "2s"), 'path = "/500"'), server.url, *options)
    assert played.code == 1
    (failure,) = csv.DictReader((tmp_path / "c_failures.csv").read_text().splitlines())
    assert (failure["Method"], failure["Name"], failure["Error"]) == ("GET", "GET /500", "status 500")
    assert int(failure["Occurrences"]) == played.requests == server.count
    row, total = csv.DictReader((tmp_path / "c_stats.csv").read_text().splitlines())
    assert float(row["Average Content Size"]) == float(total["Average Content Size"]) == 1
    assert int(total["Failure Count"]) == server.count
    assert "status 500" in (tmp_path / "locust.html").read_text()


@pytest.mark.parametrize("many", [False, True])
def test_refused_connections_are_reported_first_and_nothing_is_judged(
    play: Play,
    many: bool,  # noqa: FBT001  a parameter of the test
    processes: tuple[str, ...],
) -> None:
    thresholds = 'http_req_duration = ["p(95)<250"]\nhttp_req_failed = ["rate<=1"]'
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}"
        played = play(write_scenario(closed(2, "2s"), thresholds=thresholds), url, *(processes if many else ()))
    assert played.code == 1
    cause = played.summary["loadtest"]["problems"][0]
    assert re.fullmatch(r"no connection was made, so nothing is judged: connection refused \(\d+ times\)", cause)
    assert "thresholds" not in json.dumps(played.summary["metrics"])
    assert played.out.splitlines()[3] == f"  invalid: {cause}"
    assert "failed 100" not in played.err


def test_a_body_without_an_end_is_a_failure(play: Play, server: Server) -> None:
    step = 'path = "/endless"\nname = "endless"'
    played = play(write_scenario(closed(2, "2s"), step, "http_req_failed = ['rate==1']"), server.url)
    assert "a body of more than 8 MiB" in json.dumps(played.summary["loadtest"]["errors"])
    assert played.values("http_req_failed")["rate"] == 1
    # What the kernel had taken already comes on top of it.
    assert played.values("data_received")["count"] / played.requests < 9 * 2**20
