"""The list of pins: complete, right where it says a pin stands, and red where one must move."""

import datetime as dt
import http.server
import json
import re
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.conftest import ROOT
from tools import versions

TODAY = dt.date(2026, 11, 28)
PINS = tomllib.loads(versions.LIST.read_text(encoding="utf-8"))["pin"]


def entry(tmp_path: Path, **changed: object) -> dict[str, object]:
    (tmp_path / "file").write_text("image: thing:1.2\n")
    return {
        "name": "thing",
        "version": "1.2",
        "newest": "1.2",
        "support_ends": "never",
        "places": ["file: thing:{version}"],
    } | changed


def test_every_pin_stands_where_its_entry_says() -> None:
    wrong = [one for pin in PINS for one in versions.judge(pin, ROOT, TODAY) if "does not contain" in one]
    assert not wrong


def test_every_image_chart_release_and_action_is_on_the_list() -> None:
    listed = [
        (file, text.format(version=pin["version"]))
        for pin in PINS
        for file, _, text in (place.partition(": ") for place in pin["places"])
    ]
    pinned: list[tuple[str, str]] = []
    # part compose
    pinned += [
        ("compose.yaml", line.strip())
        for line in (ROOT / "compose.yaml").read_text(encoding="utf-8").splitlines()
        if re.match(r" +image: (?!goals)", line)
    ]
    # end compose
    # part k8s
    pinned += [
        ("k8s/platform/charts.txt", line)
        for line in (ROOT / "k8s/platform/charts.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    for file in sorted((ROOT / "k8s/platform").rglob("kustomization.yaml")):
        found = re.findall(r"https://\S+", file.read_text(encoding="utf-8"))
        pinned += [(str(file.relative_to(ROOT)), address) for address in found]
    # end k8s
    for where, line in pinned:
        assert any(file == where and text in line for file, text in listed), f"{where}: {line}"
    actions = {
        found
        for file in (ROOT / ".github/workflows").glob("*.yaml")
        for found in re.findall(r"uses: ([\w.-]+/[\w.-]+)", file.read_text(encoding="utf-8"))
    }
    assert actions <= {pin["name"] for pin in PINS}
    machines = {
        found
        for file in (ROOT / ".github/workflows").glob("*.yaml")
        for found in re.findall(r"runs-on: (.*)", file.read_text(encoding="utf-8"))
    }
    assert machines == {f"ubuntu-{pin['version']}" for pin in PINS if pin["name"] == "Ubuntu of the workflows"}
    assert not [pin["name"] for pin in PINS if not pin.get("support_ends")]


def test_a_pin_within_its_support_is_green(tmp_path: Path) -> None:
    assert not list(versions.judge(entry(tmp_path), tmp_path, TODAY))
    assert not list(versions.judge(entry(tmp_path, support_ends=TODAY), tmp_path, TODAY))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"support_ends": dt.date(2026, 11, 27)}, "support of thing 1.2 ended on 2026-11-27"),
        ({"support_ends": dt.date(2026, 11, 27), "held": "of that"}, "move the pin (it stays because of that)"),
        ({"vulnerable": ["CVE-2026-1"]}, "has known vulnerabilities (CVE-2026-1)"),
        ({"version": "1.3"}, "file does not contain 'thing:1.3'"),
    ],
)
def test_a_pin_that_must_move_is_red(tmp_path: Path, changed: dict[str, object], reason: str) -> None:
    (problem,) = versions.judge(entry(tmp_path, **changed), tmp_path, TODAY)
    assert reason in problem


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "file").write_text("thing:1.2 other:7\n")
    path = tmp_path / "list.toml"
    path.write_text(text)
    return path


LISTED = """looked_up = 2026-01-01

[[pin]]
name = "thing"
version = "1.2"
released = 2026-01-01
support_ends = 2999-01-01
newest = "1.2.0"
repository = "of/thing"
tags = "thing-"
places = ["file: thing:{version}"]
held = "it is good"

[[pin]]
name = "other"
version = "7"
support_ends = "never"
newest = "7"
repository = "of/other"
places = ["file: other:{version}"]

[[pin]]
name = "unnamed"
version = "7"
support_ends = "never"
newest = "7"
places = ["file: other:{version}"]
"""


class Tags(http.server.BaseHTTPRequestHandler):
    """GitHub's list of a repository's tags, for two repositories."""

    names: ClassVar = {
        "/repos/of/thing/tags?per_page=100": ["thing-1.9.0", "thing-1.10.0", "2.0.0"],
        "/repos/of/other/tags?per_page=100": ["v8.1.0", "v7.9.9"],
        "/repos/of/unversioned/tags?per_page=100": ["latest"],
    }

    def do_GET(self) -> None:
        body = json.dumps([{"name": name} for name in self.names[self.path]]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def host() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tags) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_newest_versions_are_looked_up_and_written_down(
    tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, LISTED)
    assert versions.main(["--list", str(path), "--root", str(tmp_path), "--refresh", "--host", host]) == 0
    shown = capsys.readouterr().out
    assert "1.10.0" in shown
    assert "it is good" in shown
    read = tomllib.loads(path.read_text())
    assert [pin["newest"] for pin in read["pin"]] == ["1.10.0", "8", "7"]
    assert read["looked_up"] == dt.datetime.now(dt.UTC).date()


def test_a_repository_without_a_version_changes_nothing(
    tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = LISTED.replace("of/other", "of/unversioned")
    path = write(tmp_path, text)
    assert versions.main(["--list", str(path), "--refresh", "--host", host]) == 2
    assert "of/unversioned has no tag that is a version; nothing was written" in capsys.readouterr().err
    assert path.read_text() == text


def test_nothing_is_written_where_the_versions_cannot_be_looked_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, LISTED)
    assert versions.main(["--refresh", "--list", str(path), "--host", (tmp_path / "nowhere").as_uri()]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert path.read_text() == LISTED


def test_a_red_pin_ends_the_command_with_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, LISTED.replace("2999-01-01", "2020-01-01"))
    assert versions.main(["--list", str(path), "--root", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "2020-01-01 (ended)" in shown.out
    assert "error: support of thing 1.2 ended on 2020-01-01: move the pin" in shown.err
