"""What the service measures of itself, read as Prometheus reads it."""

import asyncio
from dataclasses import replace

import asyncpg
import httpx2
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from sqlalchemy import func, literal, select, text
from starlette.types import Receive, Scope, Send

from goals.database import Database
from goals.errors import OverloadedError, StatementRefusedError
from goals.middleware import Record
from goals.reads import SharedReads
from goals.settings import Settings
from goals.telemetry import Telemetry
from tests.conftest import WAIT_FOR_THE_LOCK, WIDE, serving, speaking_to
from tools.polling import until

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(exposition: str, metric: str) -> dict[frozenset[tuple[str, str]], float]:
    """The samples of one name, by their labels; an empty label is none."""
    return {
        frozenset((name, value) for name, value in sample.labels.items() if value): sample.value
        for family in parse_text(exposition)
        for sample in family.samples
        if sample.name == metric
    }


def labels(**pairs: str) -> frozenset[tuple[str, str]]:
    return frozenset(pairs.items())


def describe(method: str, status: int, **more: str) -> frozenset[tuple[str, str]]:
    return labels(
        http_request_method=method,
        http_response_status_code=str(status),
        network_protocol_version="1.1",
        url_scheme="http",
        **more,
    )


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry("test")


def read(telemetry: Telemetry) -> str:
    return telemetry.expose("")[0].decode()


# part adoption
async def test_the_seeds_counters_keep_names_labels_and_meaning(
    client: httpx2.AsyncClient, operator: httpx2.AsyncClient
) -> None:
    async def count() -> tuple[float, float, dict[str, float]]:
        page = (await operator.get("/metrics")).text
        by_path = {dict(pairs)["path"]: value for pairs, value in samples(page, "http_requests_total").items()}
        added, removed = (samples(page, f"{verb}_goal_requests_total")[labels()] for verb in ("add", "remove"))
        return added, removed, by_path

    added, removed, paths = await count()
    assert set(paths) == {"/", "/add_goal", "/remove_goal", "/health"}
    await client.get("/")
    await client.get("/health")
    await client.post("/add_goal", data={"goal_name": "run"})
    await client.post("/add_goal", data={"goal_name": ""})  # refused: does not count
    await client.post("/remove_goal", data={"goal_id": "1"})
    await client.post("/remove_goal", data={"goal_id": "one"})  # refused: does not count
    after = await count()
    assert after == (added + 1, removed + 1, {path: value + 1 for path, value in paths.items()})


# end adoption
async def test_every_counter_is_zero_before_its_first_event(telemetry: Telemetry, settings: Settings) -> None:
    database = Database(settings, WIDE, telemetry.database)
    telemetry.observe_reads({"page": SharedReads(asyncio.sleep)})
    page = read(telemetry)
    for metric, number in (
        # part adoption
        ("http_requests_total", 4),
        ("add_goal_requests_total", 1),
        ("remove_goal_requests_total", 1),
        # end adoption
        ("goals_gate_rejections_total", 3),
        ("db_client_connection_timeouts_total", 1),
        ("goals_reads_total", 1),
        ("goals_read_queries_total", 1),
    ):
        assert [*samples(page, metric).values()] == [0.0] * number, metric
    await database.close()


async def test_requests_are_recorded_by_route_and_never_by_what_a_client_makes_up(
    client: httpx2.AsyncClient, operator: httpx2.AsyncClient
) -> None:
    await client.get("/api/v1/goals/42")
    await client.get("/no/such/page")
    await client.request("BREW", "/")
    await client.delete("/")
    count = samples((await operator.get("/metrics")).text, "http_server_request_duration_seconds_count")
    assert describe("GET", 404, http_route="/api/v1/goals/{goal_id}") in count
    assert describe("GET", 404) in count
    assert describe("_OTHER", 405) in count
    assert describe("DELETE", 405) in count
    assert {dict(pairs).get("http_route") for pairs in count} <= {
        None,
        "/",
        "/add_goal",
        "/remove_goal",
        "/goals/{goal_id}",
        "/health",
        "/openapi.json",
        "/api/v1/openapi.json",
        "/api/v1/goals",
        "/api/v1/goals/{goal_id}",
        "/static/{name}",
    }


async def test_a_crash_is_a_500_with_its_class(telemetry: Telemetry) -> None:
    async def crash(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise LookupError("nothing a client should see")

    lines: list[dict[str, object]] = []
    app = Record(crash, metrics=telemetry.requests, write=lines.append)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/")).status_code == 500
    count = samples(read(telemetry), "http_server_request_duration_seconds_count")
    assert count == {describe("GET", 500, error_type="LookupError"): 1.0}
    assert [line["status"] for line in lines] == [500]


def test_a_request_without_an_answer_has_no_status_and_an_unknown_version_no_label(telemetry: Telemetry) -> None:
    telemetry.requests.end(telemetry.requests.start("GET"), "9.9", "http", None, 0, None, 0.1)
    (recorded,) = samples(read(telemetry), "http_server_request_duration_seconds_count")
    assert recorded == labels(http_request_method="GET", url_scheme="http")


def test_active_requests_are_those_that_have_not_ended(telemetry: Telemetry) -> None:
    label = telemetry.requests.start("GET")
    telemetry.requests.start("BREW")
    telemetry.requests.end(label, "1.1", "http", "/", 200, None, 0.1)
    active = samples(read(telemetry), "http_server_active_requests")
    assert active[labels(http_request_method="GET", url_scheme="http")] == 0
    assert active[labels(http_request_method="_OTHER", url_scheme="http")] == 1


async def test_statements_are_recorded_by_operation_table_and_sqlstate(
    settings: Settings, telemetry: Telemetry, schema: None
) -> None:
    database = Database(settings, WIDE, telemetry.database)
    await database.fetch(select(func.version()))
    with pytest.raises(StatementRefusedError):
        await database.fetch(select(literal(1) / literal(0)))
    await database.fetch(text("SELECT 1"))
    await database.close()
    page = read(telemetry)
    known = {"db_system_name": "postgresql", "db_namespace": settings.db_name}
    assert samples(page, "db_client_operation_duration_seconds_count") == {
        labels(db_operation_name="SELECT", **known): 1.0,
        labels(db_operation_name="SELECT", error_type="22012", **known): 1.0,
        labels(db_operation_name="TEXTCLAUSE", **known): 1.0,
    }
    pool = labels(db_client_connection_pool_name="goals")
    for metric, number in (("wait_time", 3.0), ("use_time", 3.0), ("create_time", 1.0)):
        assert samples(page, f"db_client_connection_{metric}_seconds_count") == {pool: number}


async def test_the_pool_and_the_gate_say_how_full_they_are(
    settings: Settings, telemetry: Telemetry, administrator: asyncpg.Connection
) -> None:
    database = Database(settings, replace(WIDE, gate_queue=2), telemetry.database)
    await administrator.execute("SELECT pg_advisory_lock(1)")
    under_way = [asyncio.create_task(database.fetch(text(WAIT_FOR_THE_LOCK))) for _ in range(database.size + 2)]
    while database._look().used < database.size:
        await asyncio.sleep(0.01)
    page = read(telemetry)
    pool = {"db_client_connection_pool_name": "goals"}
    used = labels(db_client_connection_state="used", **pool)
    assert samples(page, "db_client_connection_count")[used] == database.size
    assert samples(page, "db_client_connection_max") == {labels(**pool): database.size}
    assert samples(page, "db_client_connection_pending_requests") == {labels(**pool): 2}
    for _ in range(2):
        with pytest.raises(OverloadedError):
            await database.fetch(select(1))
    assert samples(read(telemetry), "goals_gate_rejections_total")[labels(reason="full")] == 2
    await administrator.execute("SELECT pg_advisory_unlock(1)")
    await asyncio.gather(*under_way)
    await database.close()


async def test_shared_reads_are_counted_with_the_statements_that_served_them(
    client: httpx2.AsyncClient, operator: httpx2.AsyncClient
) -> None:
    async def count(metric: str) -> float:
        return samples((await operator.get("/metrics")).text, metric)[labels(kind="page")]

    requests, queries = await count("goals_reads_total"), await count("goals_read_queries_total")
    await asyncio.gather(*(client.get("/") for _ in range(20)))
    assert await count("goals_reads_total") == requests + 20
    assert queries < await count("goals_read_queries_total") <= queries + 20


async def test_a_single_add_that_fails_is_counted(
    client: httpx2.AsyncClient, operator: httpx2.AsyncClient, administrator: asyncpg.Connection
) -> None:
    async def count() -> float:
        sizes = samples((await operator.get("/metrics")).text, "goals_add_group_size_count")
        return sizes.get(labels(outcome="failed"), 0.0)

    await administrator.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'not here' USING ERRCODE = 'check_violation'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON goals FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    before = await count()
    try:
        assert (await client.post("/add_goal", data={"goal_name": "refused"})).status_code == 500
    finally:
        await administrator.execute("DROP FUNCTION refuse CASCADE")
    assert await count() == before + 1


async def test_statements_that_add_goals_are_counted_by_size(
    client: httpx2.AsyncClient, operator: httpx2.AsyncClient
) -> None:
    async def count() -> tuple[float, float, float]:
        page = (await operator.get("/metrics")).text
        committed = labels(outcome="committed")
        size, waits = (samples(page, f"goals_add_group_{name}") for name in ("size_sum", "wait_seconds_count"))
        return size[committed], samples(page, "goals_add_group_size_count")[committed], waits[labels()]

    await client.post("/add_goal", data={"goal_name": "the first"})
    adds, commits, waits = await count()
    await asyncio.gather(*(client.post("/add_goal", data={"goal_name": "a goal"}) for _ in range(50)))
    adds_now, commits_now, waits_now = await count()
    assert adds_now == adds + 50
    assert commits < commits_now < commits + 50
    assert waits_now - waits == commits_now - commits


async def test_the_delay_of_the_event_loop_is_measured(operator: httpx2.AsyncClient) -> None:
    async def count() -> float:
        page = (await operator.get("/metrics")).text
        return sum(samples(page, "goals_eventloop_delay_seconds_count").values())

    counted = await count()

    async def has_grown() -> bool:
        return await count() > counted

    await until(has_grown)


async def test_process_collector_and_target_are_named(operator: httpx2.AsyncClient) -> None:
    page = (await operator.get("/metrics")).text
    for metric in ("process_cpu_seconds_total", "process_open_fds", "python_info", "python_gc_collections_total"):
        assert samples(page, metric), metric
    (target,) = samples(page, "target_info")
    assert {("service_name", "goals"), ("telemetry_sdk_language", "python")} <= target
    assert "otel_scope" not in page


async def test_openmetrics_comes_to_who_asks_for_it(client: httpx2.AsyncClient, operator: httpx2.AsyncClient) -> None:
    await client.get("/health")
    plain = await operator.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    answer = await operator.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    families = parse_openmetrics(answer.text)  # type: ignore[no-untyped-call]  # the library's own omission
    assert "http_server_request_duration_seconds" in {family.name for family in families}


async def test_metrics_need_no_database(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"db_host": "/no/such/folder"})
    async with (
        serving(nowhere) as service,
        speaking_to(service.ops_port) as operator,
    ):
        answer = await operator.get("/metrics")
    assert answer.status_code == 200
    assert "http_server_active_requests" in answer.text
