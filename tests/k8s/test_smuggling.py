"""Through both gateways: no request hides behind another, and no upgrade becomes a tunnel past the limits."""

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from goals.database import Database
from goals.settings import Settings
from tests.conftest import Service, serving, until_ready
from tests.k8s.gateways import HOST, NAMES, Gateway, serve
from tests.smuggling import SHAPES, send_all
from tests.wire import request

TUNNELS = [
    [f"Upgrade: {protocol}", f"Connection: {connection}", *settings]
    for protocol in ("h2c", "H2C", "websocket, h2c", "h2", "websocket")
    for connection in ("Upgrade", "Upgrade, HTTP2-Settings", "keep-alive, upgrade")
    for settings in ([], ["HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"])
]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")


@pytest.fixture
async def behind(settings: Settings, schema: None) -> AsyncIterator[Service]:
    """A service that answers to the gateway's host."""
    async with serving(settings.model_copy(update={"goals_hosts": (HOST,)})) as service:
        await until_ready(service)
        yield service


def trust(gateway: Gateway) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=gateway.authority)


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_carried_out_was_counted_by_the_gateway(
    behind: Service, database: Database, tmp_path: Path, name: str
) -> None:
    with serve(name, tmp_path, [f"127.0.0.1:{behind.port}"]) as gateway:
        outcomes = await send_all(gateway.https, HOST, trust(gateway))
    added = Counter(row.goal_name for row in await database.fetch(text("SELECT goal_name FROM goals")))
    answered = {shape for shape, outcome in outcomes.items() if 303 in outcome.statuses}
    assert "length: two zeros" in added  # its end is one that all agree on, so a second request follows
    assert added == Counter(answered)
    lines = [json.loads(line) for line in gateway.log.read_text(encoding="utf-8", errors="replace").splitlines()]
    assert sum(line["path"] == "/add_goal" and line["status"] == 303 for line in lines) == added.total()
    assert set(outcomes) == set(SHAPES)
    assert {shape for shape, outcome in outcomes.items() if not outcome.closed} == set()


@pytest.mark.parametrize("port", ["public", "operators"])
@pytest.mark.parametrize("name", NAMES)
async def test_no_upgrade_becomes_a_tunnel(behind: Service, tmp_path: Path, name: str, port: str) -> None:
    upstream = behind.port if port == "public" else behind.ops_port
    path = "/health" if port == "public" else "/livez"
    assert len(TUNNELS) == 30
    with serve(name, tmp_path, [f"127.0.0.1:{upstream}"]) as gateway:
        for lines in TUNNELS:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", gateway.https, ssl=trust(gateway), server_hostname=HOST
            )
            writer.write(request("GET", path, *lines, host=HOST))
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"\r\nupgrade:" not in head.lower()
            # What would go through a tunnel is read as a request, by the gateway, which refuses it.
            writer.write(PREFACE)
            rest = await reader.read()
            assert b" 400 " in rest or rest in {b"OK", b"live"}
            writer.close()
