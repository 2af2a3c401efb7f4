"""The audit, with pip-audit itself, against a source of advisories that knows one vulnerability."""

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import audit

ADVISORY = {
    "id": "PYSEC-0000-1",
    "summary": "Requests are answered twice.",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "h11"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.9"}]}],
        }
    ],
}


class Advisories(http.server.BaseHTTPRequestHandler):
    """OSV's query API, for one vulnerable package."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps({"vulns": [ADVISORY]} if query["package"]["name"] == "h11" else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        server.shutdown()


def lock(folder: Path, *names: str) -> Path:
    path = folder / "lock.txt"
    path.write_text("".join(f"{name} --hash=sha256:{'0' * 64}\n" for name in names))
    return path


def test_a_known_vulnerability_fails_and_is_named(source: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.audit", str(lock(tmp_path, "h11==0.14.0", "h2==4.4.1"))]
    done = subprocess.run([*command, "--source", source], capture_output=True, text=True, check=False)
    assert done.returncode == audit.VULNERABLE
    assert "h11 0.14.0: PYSEC-0000-1, fixed in 9.9: Requests are answered twice." in done.stdout


@pytest.mark.parametrize("text", [None, "h11==0.14.0\n"])
def test_what_is_no_lock_is_refused_and_not_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    path = tmp_path / "lock.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as refusal:
        audit.main([str(path), "--allow-unknown"])
    assert refusal.value.code == 2
    assert f"{path} is not a lock file" in capsys.readouterr().err


def test_nothing_known_but_what_was_accepted_passes(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(audit.ACCEPTED, "PYSEC-0000-1", "h11 parses nothing here")
    assert audit.main([str(lock(tmp_path, "h11==0.14.0", "h2==4.4.1")), "--source", source]) == audit.CLEAN
    assert "no known vulnerability in 2 packages" in capsys.readouterr().out


def test_a_source_out_of_reach_is_never_called_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:  # bound and not listening: a client that connects is refused
        closed.bind(("127.0.0.1", 0))
        source = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        code = audit.main([str(lock(tmp_path, "h2==4.4.1")), "--source", source, "--allow-unknown"])
    output = capsys.readouterr().out
    assert code == audit.CLEAN
    assert f"NOT AUDITED: {source} could not be reached (" in output
    assert "no known vulnerability" not in output


def test_a_package_that_was_skipped_is_not_called_clean(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(f"h2 @ https://example.com/h2.zip --hash=sha256:{'0' * 64}\n")
    assert audit.main([str(path), "--source", source]) == audit.UNKNOWN
    assert "NOT AUDITED: 1 packages were skipped" in capsys.readouterr().out
