"""Traces go to a collector that is there, and trouble nobody where it is not."""

import asyncio
import contextlib
import json
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from pydantic import HttpUrl
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.testing import capture_logs

from goals import __version__, app, logs, traces
from goals.database import Database
from goals.errors import ConfigurationError
from goals.settings import Settings
from tests.conftest import LIMITS, WIDE, holding, serving, speaking_to, until_blocked, until_pending, until_ready

pytestmark = pytest.mark.usefixtures("restored_logs")

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@contextlib.contextmanager
def collecting() -> Iterator[tuple[str, "queue.SimpleQueue[Span]"]]:
    """A collector: its URL, and the spans that come."""
    spans: queue.SimpleQueue[Span] = queue.SimpleQueue()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        spans.put(span)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's own name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", spans
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, str | int]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


async def test_requests_and_their_statements_are_spans_of_the_callers_trace(
    settings: Settings, schema: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with collecting() as (endpoint, spans):
        traced = settings.model_copy(update={"otel_exporter_otlp_endpoint": HttpUrl(endpoint)})
        logs.configure("json")
        async with serving(traced) as service:
            await until_ready(service)
            async with speaking_to(service.port) as client:
                answer = await client.get("/?utm=my-query", headers=TRACEPARENT)
        received = [spans.get_nowait() for _ in range(spans.qsize())]
    mine = {span.name: span for span in received if span.trace_id.hex() == TRACE}
    assert mine.keys() == {"GET /", "SELECT goals"}
    request, statement = mine["GET /"], mine["SELECT goals"]
    assert request.parent_span_id.hex() == PARENT
    assert attributes(request) == {
        "http.request.method": "GET",
        "http.route": "/",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "url.path": "/",
        "url.scheme": "http",
    }
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    assert statement.parent_span_id == request.span_id
    assert request.start_time_unix_nano < statement.start_time_unix_nano < statement.end_time_unix_nano
    assert attributes(statement)["db.system.name"] == "postgresql"
    assert "goals.goal_name" in str(attributes(statement)["db.query.text"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (request_line,) = [line for line in lines if line["event"] == "request"]
    assert request_line["trace_id"] == TRACE


async def test_adds_that_share_a_statement_each_have_a_span_linked_to_it(
    settings: Settings, database: Database, administrator: asyncpg.Connection
) -> None:
    with collecting() as (endpoint, spans):
        traced = settings.model_copy(update={"otel_exporter_otlp_endpoint": HttpUrl(endpoint)})
        held = UUID(int=0)
        async with (
            serving(traced, replace(WIDE, groups=1, group_turn=60)) as service,
            speaking_to(service.port) as client,
        ):
            await until_ready(service)

            def post(key: UUID) -> asyncio.Task[httpx2.Response]:
                headers = {"Idempotency-Key": str(key), "traceparent": f"00-{key.hex[:-1]}1-{PARENT}-01"}
                return asyncio.create_task(client.post("/api/v1/goals", json={"goal_name": "a"}, headers=headers))

            for _ in range(2):  # the second time a group may have two
                async with holding(settings, held):
                    first = post(held)
                    await until_blocked(administrator, "INSERT INTO goal_keys")
                    adds = [post(uuid4()) for _ in range(2)]
                    await until_pending(service, 2)
                assert [answer.status_code for answer in await asyncio.gather(first, *adds)] == [201] * 3
                await database.fetch(text("DELETE FROM goal_keys RETURNING 1"))
        received = [spans.get_nowait() for _ in range(spans.qsize())]
    spans_by_id = {(span.trace_id, span.span_id): span for span in received}
    linked: dict[bytes, list[Span]] = {}
    for span in received:
        for link in span.links:
            assert spans_by_id[link.trace_id, link.span_id].name == "BATCH INSERT goals"
            linked.setdefault(link.span_id, []).append(span)
    one, other = max(linked.values(), key=len)
    assert one.name == other.name == "add goal"
    assert one.trace_id != other.trace_id
    (link,) = one.links
    assert spans_by_id[link.trace_id, link.span_id].parent_span_id in {one.parent_span_id, other.parent_span_id}
    for span in (one, other):
        assert spans_by_id[span.trace_id, span.parent_span_id].name == "POST /api/v1/goals"


async def test_a_failure_is_on_its_span(settings: Settings, schema: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(_request: Request) -> Response:
        raise LookupError("the reason")

    async def refuse(_request: Request) -> Response:
        return Response(status_code=503)

    routes = [*app.PUBLIC_ROUTES, Route("/crash", crash), Route("/refuse", refuse)]
    monkeypatch.setattr(app, "PUBLIC_ROUTES", routes)
    with collecting() as (endpoint, spans):
        traced = settings.model_copy(update={"otel_exporter_otlp_endpoint": HttpUrl(endpoint)})
        async with serving(traced) as service:
            await until_ready(service)
            async with speaking_to(service.port) as client:
                await client.get("/crash")
                await client.get("/refuse")
                await client.get("/nowhere")
                await client.request("BREW" * 10, "/")
        received = {span.name: span for span in (spans.get_nowait() for _ in range(spans.qsize()))}
    assert attributes(received["GET /crash"])["error.type"] == "LookupError"
    assert received["GET /crash"].events[0].name == "exception"
    assert attributes(received["GET /refuse"])["error.type"] == "503"
    assert "http.route" not in attributes(received["GET"])
    unknown = attributes(received["HTTP /"])
    assert (unknown["http.request.method"], unknown["http.request.method_original"]) == ("_OTHER", "BREW" * 8)


async def test_the_environment_names_the_service(
    settings: Settings, schema: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "tracker")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test%20bench,service.name=lesser")
    with collecting() as (endpoint, spans):
        traced = settings.model_copy(update={"otel_exporter_otlp_endpoint": HttpUrl(endpoint)})
        async with serving(traced) as service:
            await until_ready(service)
            async with speaking_to(service.port) as client, speaking_to(service.ops_port) as operator:
                exposition = (await operator.get("/metrics")).text
                await client.get("/")
        spans.get_nowait()
    (target,) = [line for line in exposition.splitlines() if line.startswith("target_info{")]
    for label in ('service_name="tracker"', f'service_version="{__version__}"', 'name="test bench"'):
        assert label in target


@pytest.mark.parametrize(("variable", "value"), [("OTEL_SDK_DISABLED", " TRUE "), ("OTEL_TRACES_EXPORTER", "none")])
async def test_no_traces_are_sent_where_the_environment_forbids_it(
    settings: Settings, schema: None, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with collecting() as (endpoint, spans), capture_logs() as events:
        traced = settings.model_copy(update={"otel_exporter_otlp_endpoint": HttpUrl(endpoint)})
        async with serving(traced) as service:
            await until_ready(service)
            async with speaking_to(service.port) as client, speaking_to(service.ops_port) as operator:
                answer = await client.get("/")
                metrics = (await operator.get("/metrics")).text
    assert (answer.status_code, "traceresponse" in answer.headers, spans.qsize()) == (200, False, 0)
    disabled = variable == "OTEL_SDK_DISABLED"
    assert [variable in event["event"] for event in events].count(True) == disabled
    assert ("http_server_request_duration" in metrics) != disabled
    assert "process_cpu_seconds_total" in metrics


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_collector_that_hangs_does_not_hold_the_stop() -> None:
    with hanging() as endpoint:
        sender = traces.Traces(endpoint, Resource.create(), "test", replace(LIMITS, traces_flush=0.05))
        sender.record_statement("goals_database", "SELECT", None, "57P01", 0.1, "SELECT 1")
        sender.close()
        (worker,) = [thread for thread in threading.enumerate() if thread.name == "OtelBatchSpanRecordProcessor"]
        assert worker.is_alive()  # it still waits for the answer, and nobody waits for it
    worker.join()


async def test_a_collector_that_is_away_changes_no_answer(settings: Settings, schema: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    traced = settings.model_copy(update={"otel_exporter_otlp_endpoint": HttpUrl(f"http://127.0.0.1:{port}")})
    async with serving(traced, replace(WIDE, traces_flush=0.1)) as service:
        await until_ready(service)
        async with speaking_to(service.port) as client:
            answers = [await client.get("/") for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}


def test_without_a_collector_nothing_of_it_is_loaded() -> None:
    script = "import goals.app, sys; print([name for name in sys.modules if 'otlp' in name or name == 'goals.traces'])"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"


def test_a_missing_exporter_is_told_with_its_remedy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "goals.traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    traced = settings.model_copy(update={"otel_exporter_otlp_endpoint": HttpUrl("http://127.0.0.1:4318")})
    with pytest.raises(
        ConfigurationError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT needs .*: install requirements/goals\.txt"
    ):
        app.Application(traced, LIMITS)
