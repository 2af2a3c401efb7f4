"""A scripted server behind a gateway: it answers with what it was sent, and misbehaves where a request asks it to."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Upstream:
    """One of two replicas on a port of its own; `seen` has each request as (method, target, headers)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(self.seen))
        self.port = self._server.server_port

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def make_handler(seen: list[tuple[str, str, dict[str, str]]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = {name.lower(): value for name, value in self.headers.items()}
            seen.append((self.command, self.path, sent))
            match sent.get("x-do", "").split("="):
                case ["die"]:  # as an application that ends in the middle of a request
                    self.close_connection = True
                    return
                case ["status", code]:
                    status = int(code)
                case ["wait", seconds]:  # an answer that is late is what this is here for
                    time.sleep(float(seconds))
                    status = 200
                case _:
                    status = 200
            text = json.dumps(
                {"method": self.command, "target": self.path, "headers": sent, "bytes": len(body)}
            ).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 503:
                self.send_header("Retry-After", "7")
            if sent.get("x-do") == "large-head":
                self.send_header("X-Large", "x" * 12_000)
            if status != 304:
                self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if status != 304 and self.command != "HEAD":
                self.wfile.write(text)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_FOO = answer  # noqa: N815  http.server finds them by these names

        def log_message(self, *_: Any) -> None:
            """Say nothing: the tests read what was seen."""

    return Handler
