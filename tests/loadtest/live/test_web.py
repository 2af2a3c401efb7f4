"""The web UI's guard against other sites, its base path and its login, asked by plain HTTP."""

import http.client
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loadtest.live.conftest import web_ui
from tests.loadtest.live.scripted import Server
from tools.polling import wait_until

FORM = {"Content-Type": "application/x-www-form-urlencoded"}

LOGIN = """
from flask import Blueprint, redirect, request
from flask_login import UserMixin, login_user
from locust import events
import loadtest.locustfile
from loadtest.locustfile import ScenarioShape, ScenarioUser

class Person(UserMixin):
    def get_id(self): return "ann"

@events.init.add_listener
def set_up(environment, web_ui, **_):
    web_ui.app.secret_key = "of this test"
    web_ui.login_manager.user_loader(lambda _: Person())
    web_ui.auth_args = {"username_password_callback": "/enter"}
    auth = Blueprint("auth", "auth")
    @auth.route("/enter", methods=["POST"])
    def enter():
        if request.form["password"] == "right":
            login_user(Person())
        return redirect("/")
    web_ui.app.register_blueprint(auth)
"""


def ask(url: str, method: str, path: str, headers: dict[str, str], body: str = "") -> tuple[int, str, str, str]:
    """Status, `Location`, `Set-Cookie` and text of an answer."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(str(address.netloc), timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body.encode())
        answer = connection.getresponse()
        return (
            answer.status,
            answer.getheader("Location") or "",
            answer.getheader("Set-Cookie") or "",
            answer.read().decode(),
        )
    finally:
        connection.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with web_ui("--web-allowed-hosts", "load.test, Other.Test", "--out", "/proc/none") as (url, _):
        yield url


FOREIGN = {
    "Host": {"Host": "evil.test"},
    "Host with Origin": {"Host": "evil.test:8089", "Origin": "http://evil.test:8089"},
    "rebound Host": {"Host": "evil.test", "Sec-Fetch-Site": "same-origin"},
    "no Host": {"Host": ""},
    "Origin": {"Origin": "http://evil.test"},
    "Origin of another port": {"Origin": "http://127.0.0.1:1"},
    "Origin null": {"Origin": "null"},
    "Origin null from here": {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "cross-site navigation": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "Referer": {"Referer": "http://evil.test/form.html"},
    "Referer that is none": {"Referer": "about:blank"},
}


@pytest.mark.parametrize("shape", FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/swarm"),
        ("POST", "/stop"),
        ("POST", "/user"),
        ("GET", "/stats/requests"),
        ("GET", "/"),
        ("GET", "/none"),
    ],
)
def test_another_site_is_refused_before_any_route(url: str, server: Server, shape: str, method: str, path: str) -> None:
    body = urllib.parse.urlencode({"host": server.url, "scenario": "smoke", "user_count": 1, "spawn_rate": 1})
    status, _, _, text = ask(url, method, path, {**FORM, **FOREIGN[shape]}, body if method == "POST" else "")
    assert status == 403
    assert text.startswith("This request comes from another site: ")
    assert server.count == 0


def test_a_form_of_another_site_starts_nothing_even_where_it_may_show_a_page(url: str) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ask(url, "GET", "/", link)[0] == 200
    assert ask(url, "POST", "/swarm", {**FORM, **link}, "user_count=1")[0] == 403
    assert ask(url, "GET", "/", {**link, "Origin": "null"})[0] == 403


def test_this_site_is_let_through_by_each_of_its_names(url: str) -> None:
    port = urllib.parse.urlsplit(url).port
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "load.test", "other.test:80", "LOAD.TEST"):
        for headers in ({}, {"Origin": f"http://{host}"}, {"Referer": f"http://{host}/"}, {"Sec-Fetch-Site": "none"}):
            assert ask(url, "GET", "/stats/requests", {"Host": host, **headers})[0] == 200, (host, headers)
    assert ask(url, "GET", "/", {"Host": "load.test:80", "Origin": "http://load.test"})[0] == 200, (
        "the scheme's own port"
    )
    assert ask(url, "GET", "/", {"Host": "load.test", "Origin": "https://load.test:443"})[0] == 200, (
        "TLS ends before us"
    )


def test_all_of_it_is_under_the_base_path() -> None:
    with web_ui("--web-base-path", "/load") as (url, process):
        for path in ("/load/", "/load/locust", "/load/verdict", "/load/status", "/load/stats/requests"):
            assert ask(url, "GET", path, {})[0] == 200, path
            assert ask(url, "GET", path, {"Host": "evil.test"})[0] == 403, path
            assert ask(url, "GET", path.removeprefix("/load"), {})[0] in {403, 404}, path
        process.terminate()


def test_the_login_is_locusts(tmp_path: Path) -> None:
    file = tmp_path / "with_login.py"
    file.write_text(LOGIN)
    with web_ui("--web-login", "--locustfile", str(file)) as (url, _):
        wait_until(lambda: ask(url, "GET", "/login", {})[0] == 200)
        for path in ("/", "/locust", "/verdict", "/status", "/stats/requests"):
            status, place, _, _ = ask(url, "GET", path, {})
            assert (status, place.partition("?")[0]) == (302, "/login"), path
        assert ask(url, "POST", "/swarm", FORM, "user_count=1")[0] == 302
        assert ask(url, "POST", "/swarm", {**FORM, "Origin": "http://evil.test"}, "user_count=1")[0] == 403
        assert ask(url, "POST", "/enter", {**FORM, "Sec-Fetch-Site": "cross-site"}, "password=right")[0] == 403
        status, _, cookie, _ = ask(url, "POST", "/enter", FORM, "password=right")
        assert status == 302
        for path in ("/", "/locust", "/verdict", "/status", "/stats/requests"):
            assert ask(url, "GET", path, {"Cookie": cookie.partition(";")[0]})[0] == 200, path
