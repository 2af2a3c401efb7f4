"""What is written, in which form, and what is never written."""

import contextlib
import json
import logging
import os
import re
from http import HTTPStatus
from typing import Any

import httpx2
import pytest
import structlog
from starlette.types import Receive, Scope, Send

from goals import logs
from goals.middleware import Record
from goals.settings import Settings
from goals.telemetry import Telemetry
from tests.conftest import serving, speaking_to, until_ready

pytestmark = pytest.mark.usefixtures("restored_logs")


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_each_request_is_one_line_with_its_route_and_without_its_content(
    settings: Settings, schema: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("json")
    async with serving(settings) as service:
        await until_ready(service)
        async with speaking_to(service.port) as client:
            await client.post("/add_goal", data={"goal_name": "my diary"}, headers={"x-request-id": "from-a-gateway"})
            minted = (await client.get("/?before=my-query", headers={"x-request-id": "no token!"})).headers
    output = capsys.readouterr().out
    added, refused = (line for line in map(json.loads, output.splitlines()) if line["event"] == "request")
    assert added.keys() == {
        "event",
        "level",
        "time",
        "request_id",
        "method",
        "route",
        "status",
        "seconds",
        "bytes",
    }
    assert added["request_id"] == "from-a-gateway"
    assert (added["method"], added["route"], added["status"]) == ("POST", "/add_goal", 303)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", added["time"])
    assert refused["request_id"] == minted["x-request-id"]
    assert refused["bytes"] == int(minted["content-length"])
    assert "my diary" not in output
    assert "my-query" not in output


async def test_a_crash_is_logged_with_the_request_it_belongs_to(capsys: pytest.CaptureFixture[str]) -> None:
    async def crash(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise LookupError("the reason")

    logs.configure("json")
    app = Record(crash, metrics=Telemetry("test").requests, write=logs.request_writer("json"))
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/")
    crashed, request = events(capsys)
    assert crashed["event"] == "request crashed"
    assert crashed["level"] == "error"
    assert "LookupError: the reason" in crashed["exception"]
    assert "the reason" not in answer.text
    assert crashed["request_id"] == request["request_id"] == answer.headers["x-request-id"]


def test_libraries_lines_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logs.context.set({"request_id": "one", "trace_id": "two"})
    logging.getLogger("a.library").warning("it %s", "rains")
    logging.getLogger("a.library").info("it does not matter")
    structlog.get_logger().info("ours", number=1)
    theirs, ours = events(capsys)
    assert theirs | {"time": ""} == {
        "event": "it rains",
        "level": "warning",
        "logger": "a.library",
        "time": "",
        "request_id": "one",
        "trace_id": "two",
    }
    assert ours | {"time": ""} == {
        "event": "ours",
        "level": "info",
        "number": 1,
        "time": "",
        "request_id": "one",
        "trace_id": "two",
    }


def test_people_get_lines_to_read_without_the_values_of_variables(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console")
    goal_name = "my_diary".replace("_", " ")
    try:
        raise LookupError(len(goal_name))
    except LookupError:
        structlog.get_logger().exception("it broke")
    output = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert "it broke" in output.splitlines()[0]
    assert "LookupError: 8" in output
    assert "my diary" not in output


def test_a_person_reads_time_status_method_path_and_duration(capsys: pytest.CaptureFixture[str]) -> None:
    write = logs.request_writer("console")
    write(
        {"method": "GET", "path": "/api/v1/goals/42", "route": "…", "status": HTTPStatus.NOT_FOUND, "seconds": 0.0032}
    )
    write({"method": "_OTHER", "path": "/" + "a" * 2000, "route": None, "status": 0, "seconds": 12.3, "bytes": 0})
    found, cut = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  404  GET     /api/v1/goals/42 +3\.2 ms", found)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  ---  _OTHER  /aaa+…  12300\.0 ms", cut)
    assert (len(found), len(cut)) == (80, 80)


def test_an_output_that_nobody_reads_changes_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "wb", buffering=0) as stream:
        output = logs.Output(stream)
        output.write(b"lost")
        output.flush()
