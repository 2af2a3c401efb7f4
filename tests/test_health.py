"""Probes and the ops port."""

import httpx2
import pytest

from goals import __version__
from goals.models import SCHEMA_REVISION


async def test_health_is_public_and_answers_ok(client: httpx2.AsyncClient) -> None:
    response = await client.get("/health")
    assert (response.status_code, response.text) == (200, "OK")


async def test_probes_answer_on_the_ops_port(operator: httpx2.AsyncClient) -> None:
    assert (await operator.get("/livez")).text == "live"
    assert (await operator.get("/readyz")).text == "ready"


async def test_the_version_names_build_and_schema(operator: httpx2.AsyncClient) -> None:
    assert (await operator.get("/version")).json() == {
        "version": __version__,
        "revision": "unknown",
        "schema": SCHEMA_REVISION,
    }


async def test_nothing_of_the_operators_is_public(client: httpx2.AsyncClient) -> None:
    for path in ("/livez", "/readyz", "/version", "/metrics"):
        assert (await client.get(path, headers={"host": "127.0.0.1:9464"})).status_code == 404


async def test_nothing_public_is_on_the_ops_port(operator: httpx2.AsyncClient) -> None:
    for path in ("/", "/health", "/api/v1/goals"):
        assert (await operator.get(path)).status_code == 404


async def test_metrics_come_as_text_or_as_openmetrics(operator: httpx2.AsyncClient) -> None:
    text = await operator.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    assert "# TYPE goals_reads_total counter" in text.text
    openmetrics = await operator.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


@pytest.mark.parametrize("version", ["abc", "1.x.0", "", "999"])
async def test_an_odd_version_of_openmetrics_breaks_nothing(operator: httpx2.AsyncClient, version: str) -> None:
    response = await operator.get("/metrics", headers={"accept": f"application/openmetrics-text; version={version}"})
    assert response.status_code == 200
    assert "goals_reads_total" in response.text
