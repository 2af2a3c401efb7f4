"""Users in plain Python: what Locust's documentation promises of them, measured and judged as scenarios are."""

import csv
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.loadtest.live.conftest import LOCUST, ROOT, Played
from tests.loadtest.live.scripted import Server

Python = Callable[..., Played]

HEAD = "from locust import constant, events, tag, task, TaskSet\nfrom loadtest.plugin import GoalsUser\n"
TWO = (
    HEAD
    + """
class Reader(GoalsUser):
    weight = 3
    wait_time = constant(0.05)
    thresholds = {"http_req_duration{name:page}": ["p(95)<5000"], "checks": ["rate==1"]}

    @task(3)
    def read(self):
        self.check("is a page", self.client.get("/", name="page").text == "OK")

    @task
    @tag("odd")
    def measure(self):
        self.client.post("/measure", data={"a": "b"})

class Writer(GoalsUser):
    wait_time = constant(0.05)

    @task
    class Visit(TaskSet):
        @task
        def write(self):
            with self.client.rename_request("/goals/[id]"):
                self.client.post("/echo", json={"a": 1})
            self.interrupt(reschedule=False)
"""
)


@pytest.fixture
def python(tmp_path: Path, server: Server) -> Python:
    """Run users given as Python text; more options may follow."""

    def run(text: str, *options: str, url: str = "", seconds: str = "3s") -> Played:
        file, out = tmp_path / "users.py", tmp_path / "out"
        file.write_text(text)
        arguments = ["--headless", "-f", str(file), "--host", url or server.url, "--out", str(out), "--slo", "none"]
        arguments += ["-u", "4", "-r", "100", "-t", seconds]
        done = subprocess.run(
            [*LOCUST, *arguments, *options],
            cwd=ROOT,
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        summary = out / "summary.json"
        content = json.loads(summary.read_text()) if summary.exists() else {}
        return Played(done.returncode, done.stdout, done.stderr, content, [])

    return run


def names(played: Played) -> set[str]:
    return set(played.summary["loadtest"]["steps"])


@pytest.mark.parametrize("many", [False, True])
def test_several_classes_are_judged_as_one_run(
    python: Python,
    server: Server,
    tmp_path: Path,
    many: bool,  # noqa: FBT001  a parameter of the test
    processes: tuple[str, ...],
) -> None:
    options = ("--csv", str(tmp_path / "c"), "--html", str(tmp_path / "locust.html"), *(processes if many else ()))
    played = python(TWO, *options)
    assert played.code == 0, played.out + played.err
    assert played.requests == server.count
    # A wait ends an iteration, and the last one of each of the four users may have ended without one.
    assert played.requests - 4 <= played.values("iterations")["count"] <= played.requests
    assert names(played) == {"page", "/measure", "/goals/[id]"}
    assert server.requests["/"] + server.requests["/measure"] > server.requests["/echo"] > 0
    assert played.values("checks")["passes"] == server.requests["/"]
    assert played.summary["metrics"]["http_req_duration{name:page}"]["thresholds"] == {"p(95)<5000": {"ok": True}}
    assert played.values("vus_max")["value"] == 4
    assert played.summary["loadtest"]["warnings"] == []
    rows = {
        row["Name"]: int(row["Request Count"])
        for row in csv.DictReader((tmp_path / "c_stats.csv").read_text().splitlines())
    }
    assert rows["Aggregated"] == played.requests
    assert rows["page"] == server.requests["/"]
    assert "/goals/[id]" in (tmp_path / "locust.html").read_text()


def test_tags_choose_the_tasks(python: Python, server: Server) -> None:
    text = TWO.partition("class Writer")[0]
    assert names(python(text, "--tags", "odd", seconds="2s")) == {"/measure"}
    assert set(server.requests) == {"/measure"}
    assert names(python(text, "--exclude-tags", "odd", seconds="2s")) == {"page"}


def test_a_threshold_and_a_check_of_a_class_fail_the_run(python: Python) -> None:
    text = TWO.replace('"OK"', '"NO"')
    played = python(text, seconds="2s")
    assert played.code == 99
    assert played.summary["loadtest"]["reasons"] == ["checks 0 %, required == 100 %"]
    played = python(text.replace(', "checks": ["rate==1"]', ""), seconds="2s")
    assert played.code == 1
    assert "the check `is a page` failed every time" in played.out


def test_what_makes_no_sense_is_refused(python: Python) -> None:
    played = python(TWO.replace("p(95)<5000", "p95<5000"))
    assert played.code == 2
    assert "error: Reader.thresholds: `p95<5000` is not a threshold" not in played.out
    assert "Reader.thresholds: `http_req_duration` has no `p95`" in played.err
    played = python(
        TWO, "-f", f"{ROOT / 'loadtest' / 'locustfile.py'},{ROOT / 'loadtest' / 'scenarios' / 'shoppers.py'}"
    )
    assert played.code == 2
    assert "cannot run together: give -f only one" in played.err


CLIENT = (
    HEAD
    + """
import json
from locust.exception import StopUser
class One(GoalsUser):
    wait_time = constant(0)

    @task
    def work(self):
        seen = {}
        get = self.client.get
        stay = get("/redirect", allow_redirects=False, name="stay")
        seen["redirect"] = [get("/redirect").status_code, stay.status_code]
        seen["loop"] = get("/loop").error
        seen["cookie"] = get("/cookie/set").ok and get("/cookie/show").text
        seen["head"] = [self.client.head("/").status_code, get("/").text]
        with get("/500", catch_response=True, name="forgiven") as response:
            response.success()
        with get("/", catch_response=True, name="blamed") as response:
            response.failure("not what it seems")
        seen["json"] = self.client.put("/echo", json={"a": [1]}).text
        seen["form"] = self.client.post("/echo", {"a": "b c"}).text
        seen["params"] = self.client.get("/echo", params={"q": "\\u00fc x"}).request_meta["name"]
        seen["headers"] = get("/").headers["content-LENGTH"]
        seen["auth"] = get("/auth", auth=("a", "b")).text
        seen["hang"] = get("/hang", timeout=0.3).error
        print("SEEN", json.dumps(seen))
        self.environment.runner.quit()
        raise StopUser
"""
)


def test_the_client_does_what_locusts_does(python: Python, server: Server) -> None:
    played = python(CLIENT, "-u", "1", seconds="30s")
    line = next(line for line in played.out.splitlines() if line.startswith("SEEN "))
    seen: dict[str, Any] = json.loads(line.removeprefix("SEEN "))
    assert seen == {
        "redirect": [200, 302],
        "loop": "more than 30 redirects",
        "cookie": "a=b",
        "head": [200, "OK"],
        "json": 'PUT {"a": [1]}',
        "form": "POST a=b+c",
        "params": "/echo?q=%C3%BC+x",
        "headers": "2",
        "auth": "Basic YTpi",
        "hang": "no response within 0.3 s",
    }
    assert set(played.summary["loadtest"]["errors"]) == {
        "/loop: more than 30 redirects",
        "blamed: not what it seems",
        "/hang: no response within 0.3 s",
    }
    assert server.count == played.requests + 1 + 30, "a request and its redirects are measured as one"


EVENTS = (
    HEAD
    + """
counts = {"request": 0, "start": 0, "stop": 0}

@events.request.add_listener
def on_request(request_type, name, response_time, response_length, exception, **more):
    # What Locust's own client adds to what `measure` gives.
    counts["request"] += name != "/" or {"response", "context", "url", "start_time"} <= more.keys()
    if exception:
        print("failed", name, exception)

@events.test_start.add_listener
def on_start(**_): counts["start"] += 1

@events.test_stop.add_listener
def on_stop(**_): counts["stop"] += 1

@events.quit.add_listener
def on_quit(**_): print("COUNTS", counts)

class One(GoalsUser):
    wait_time = constant(0.05)

    @task
    def work(self):
        self.client.get("/")
        with self.environment.events.request.measure("other", "protocol"):
            pass
"""
)


def test_events_reach_whoever_listens_and_other_protocols_are_measured(python: Python, server: Server) -> None:
    played = python(EVENTS, seconds="2s")
    assert played.code == 0, played.out
    assert played.requests == 2 * server.count
    assert f"COUNTS {{'request': {2 * server.count}, 'start': 1, 'stop': 1}}" in played.out
    assert names(played) == {"/", "protocol"}


def test_a_reason_of_the_users_own_to_fail_stays(python: Python) -> None:
    own = "\n@events.quitting.add_listener\ndef end(environment, **_): environment.process_exit_code = 7\n"
    assert python(TWO + own, seconds="1s").code == 7


def test_refused_connections_are_said_first(python: Python) -> None:
    played = python(TWO, url="http://127.0.0.1:9", seconds="2s")
    assert played.code == 1
    assert "  invalid: no connection was made, so nothing is judged: connection refused" in played.out
