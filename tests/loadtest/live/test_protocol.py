"""What a server may do to a client on one connection, and what the client makes of it, by HTTP and HTTPS."""

from pathlib import Path
from typing import Any, NamedTuple

import trustme

from tests.loadtest.live.conftest import Play, Played
from tests.loadtest.live.scripted import LARGE, Server, closed_port


class Case(NamedTuple):
    """One request; `status` 0 expects the error instead. Each answers the same on a new and on a used connection."""

    path: str
    status: int
    check: str | None = None
    error: str = ""
    method: str = "GET"
    body: str = ""
    breaks: bool = False
    """Whether the connection is of no use afterwards."""


CASES = [
    Case("/", 200, 'body == "OK"'),
    Case("/split", 200, 'body == "abcde"'),
    Case("/continue", 200, 'body == "OK"'),
    Case("/hints", 200, 'body == "OK"'),
    Case("/close", 200, 'body == "OK"', breaks=True),
    Case("/end", 200, 'body == "until the end"', breaks=True),
    Case("/end-1.0", 200, 'body == ""', breaks=True),
    Case("/500", 500, 'body == "E"'),
    Case("/204", 204, 'body == ""'),
    Case("/304", 304, "header etag == '\"a\"'"),
    Case("/echo", 200, 'body == "POST spoken"', method="POST", body="spoken"),
    Case("/echo", 200, 'body == "PATCH changed"', method="PATCH", body="changed"),
    Case("/echo", 200, 'body == "DELETE "', method="DELETE"),
    Case("/echo", 200, 'body == "POST "', method="POST"),
    Case("/drip", 200, 'body == "drops"'),
    Case("/wait", 200, 'body == "late"'),
    Case("/large", 200, f'header content-length == "{len(LARGE)}"'),
    Case("/measure", 200, 'body == "3000000"', method="POST", body="x" * 3_000_000),
    Case("/refuse-early", 413, None, method="POST", body="x" * 3_000_000, breaks=True),
    Case("/twice", 200, 'body == "OK"', breaks=True),
    Case("/switch", 0, error="not HTTP/1.1", breaks=True),
    Case("/garbage", 0, error="not HTTP/1.1", breaks=True),
    Case("/long-head", 0, error="a head of more than 64 KiB", breaks=True),
    Case("/cut-head", 0, error="closed by the server before", breaks=True),
    Case("/cut-body", 0, error="closed by the server before", breaks=True),
    Case("/cut-chunk", 0, error="closed by the server before", breaks=True),
    Case("/nothing", 0, error="closed by the server before", breaks=True),
    Case("/reset", 0, error="", breaks=True),
    Case("/hang", 0, error="no response within 0.6 s", breaks=True),
    Case("/", 200, 'body == "OK"'),
]


def write_scenario(cases: list[Case]) -> str:
    lines = [
        'description = "cases"',
        'timeout = "600ms"',
        'pause = "10s"',
        "objectives = false",
        "[load]",
        'executor = "constant-vus"',
        "vus = 1",
        'duration = "3s"',
        "[[task]]",
    ]
    for number, case in enumerate(cases):
        lines += ["[[task.step]]", f'name = "{number}"', f'method = "{case.method}"', f'path = "{case.path}"']
        lines += [f"body = '{case.body}'"] if case.body else []
        lines += [f"checks = {{ \"{number}\" = '''{case.check}''' }}"] if case.check else []
    return "\n".join(lines)


def compare(played: Played, cases: list[Case]) -> None:
    """Hold what was journalled against the cases."""
    attempts = [entry for entry in played.journal if entry["iteration"] == 0]
    answers: list[tuple[Any, ...]] = [(case.path, entry["status"]) for case, entry in zip(cases, attempts, strict=True)]
    assert answers == [(case.path, case.status) for case in cases], played.err
    for case, entry in zip(cases, attempts, strict=True):
        assert (entry["error"] is None) == (case.status > 0)
        assert case.error in (entry["error"] or "")
    failing = [check["name"] for check in played.summary["root_group"]["checks"] if check["fails"]]
    assert [cases[int(number)].path for number in failing] == []
    assert played.requests == len(cases)
    assert played.values("http_req_failed")["passes"] == sum(case.status == 0 or case.status >= 400 for case in cases)


def test_it_handles_every_case(play: Play, server: Server) -> None:
    played = play(write_scenario(CASES), server.url)
    compare(played, CASES)
    assert played.values("connections")["count"] == server.connections == 1 + sum(case.breaks for case in CASES)
    assert server.count == len(CASES)
    assert played.values("data_received")["count"] > len(LARGE)


def test_it_handles_every_case_by_tls(play: Play, tls_server: Server, authority: trustme.CA, tmp_path: Path) -> None:
    # A reset looks like any other cut there, and TLS itself reports what was cut off.
    cases = [case if case.status else case._replace(error="") for case in CASES]
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(bundle)
    played = play(write_scenario(cases), tls_server.url, environment={"SSL_CERT_FILE": str(bundle)})
    compare(played, cases)
    assert played.values("connections")["count"] == tls_server.connections


def test_a_certificate_nobody_vouches_for_is_refused(play: Play, tls_server: Server) -> None:
    played = play(write_scenario([CASES[0]]), tls_server.url, "-t", "1s")
    assert [entry["status"] for entry in played.journal] == [0]
    assert "certificate" in played.journal[0]["error"].lower()
    assert tls_server.count == 0


def test_a_connection_closed_while_idle_is_no_failure(play: Play, server: Server) -> None:
    played = play(
        write_scenario([Case("/idle", 200, 'body == "OK"')]).replace('"10s"', '"200ms"'), server.url, "-t", "2s"
    )
    assert {entry["status"] for entry in played.journal} == {200}
    assert played.values("connections")["count"] == server.connections == server.count > 5


def test_refused_connections_are_tried_ever_more_slowly(play: Play) -> None:
    with closed_port() as port:
        scenario = write_scenario([CASES[0]]).replace('pause = "10s"', "")
        played = play(scenario, f"http://127.0.0.1:{port}")
    errors = {entry["error"] for entry in played.journal}
    assert errors == {"connection refused"}
    # 10 ms doubled up to a second leaves room for nine attempts in three seconds; a hot loop makes thousands.
    assert 5 <= len(played.journal) <= 12
    assert played.code == 1, "no threshold was set, but where everything fails nothing was proven"
    assert "no connection was made, so nothing is judged" in played.out


def test_every_request_of_every_user_that_is_not_answered_times_out(play: Play, server: Server) -> None:
    scenario = write_scenario([Case("/hang", 0)]).replace("vus = 1\n", "vus = 5\n").replace('pause = "10s"', "")
    played = play(scenario.replace('"600ms"', '"500ms"').replace('"3s"', '"4s"'), server.url)
    errors = [entry["error"] for entry in played.journal]
    assert errors.count("no response within 0.5 s") >= 5 * 6
    assert errors.count("interrupted") <= 5
    assert {entry["user"] for entry in played.journal} == set(range(5))


def test_more_than_1024_sockets(play: Play, server: Server) -> None:
    scenario = (
        write_scenario([CASES[0]]).replace("vus = 1\n", "vus = 1200\n").replace('"10s"', '"1s"').replace('"3s"', '"2s"')
    )
    played = play(scenario.replace('"600ms"', '"10s"'), server.url)
    assert played.values("vus_max")["value"] == 1200
    assert played.values("connections")["count"] == server.connections == 1200
    assert played.values("http_req_failed")["passes"] == 0
    assert played.requests == server.count > 1200
