"""What rules and dashboards name is there: a Prometheus that scraped the service under load knows it."""

import asyncio
import http.client
import json
import math
import random
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from goals.settings import Settings
from tests.observability.conftest import Live, serving_faults
from tests.observability.queries import (
    RULES,
    Query,
    annotation_queries,
    groupings,
    panel_queries,
    rule_queries,
    selectors,
    variable_queries,
)
from tools.polling import wait_until

# What Prometheus, the gateway, CloudNativePG and kube-state-metrics expose.
BY_OTHERS = {
    "up": {"job", "instance"},
    "scrape_samples_scraped": {"job", "instance"},
    "ALERTS": {"alertname", "alertstate", "service", "severity", "slo", "long", "short", "kind"},
    "nginx_http_requests_total": {"job", "instance"},  # the gateway's
    # CloudNativePG's, by the default queries in the ConfigMap that its release brings (cnpg-default-monitoring).
    "cnpg_pg_database_xid_age": {"job", "pod", "datname"},
    "cnpg_pg_database_mxid_age": {"job", "pod", "datname"},
    # kube-state-metrics'.
    "kube_cronjob_status_last_successful_time": {"job", "namespace", "cronjob"},
    "kube_cronjob_created": {"job", "namespace", "cronjob"},
}
# The convention's name, which promtool takes for a part of a histogram.
LINT = 'db_client_connection_count non-histogram and non-summary metrics should not have "_count" suffix'

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def loaded(live: Live) -> Live:
    """The live run once the rules have seen its traffic: every kind of request has come by then."""
    wait_until(lambda: bool(live.ask("query", query="goals:http_requests:rate1h > 0.01")["result"]), seconds=120)
    return live


Exposed = dict[str, dict[str, set[str]]]


def exposed(live: Live) -> Exposed:
    """The values of each label of each sample, with what Prometheus adds and what the rules record."""
    known: Exposed = {}
    for family in text_string_to_metric_families(live.metrics()):
        for sample in family.samples:
            labels = known.setdefault(sample.name, {"job": {"goals"}, "instance": set()})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    for metric, names in BY_OTHERS.items():
        known[metric] = {name: set() for name in names}
    for rule in RULES:
        if "record" in rule:
            known.setdefault(rule["record"], {}).update((label, set()) for label in rule.get("labels", {}))
    return known


def find_unknown(query: Query, known: Exposed) -> list[str]:
    """What a query names that the service does not expose: metrics, labels, buckets, labels it groups by."""
    faults = []
    for metric, matchers in selectors(query.expr):
        if metric not in known:
            faults.append(f"{query.where}: there is no metric {metric}")
            continue
        for label, equal, value in matchers:
            if label not in known[metric]:
                faults.append(f"{query.where}: {metric} has no label {label}")
            elif label == "le" and equal and value not in known[metric]["le"]:
                faults.append(f"{query.where}: {metric} has no bucket {value}")
    for labels, grouped in groupings(query.expr):
        there = {label for metric, _ in grouped for label in known.get(metric, {})}
        faults += [f"{query.where}: nothing has the label {label} to group by" for label in sorted(labels - there)]
    return faults


def test_every_metric_label_and_bucket_in_rules_and_panels_is_exposed(loaded: Live) -> None:
    known = exposed(loaded)
    queries = [*rule_queries(), *panel_queries(), *annotation_queries(), *variable_queries()]
    assert len(queries) > 80
    assert [fault for query in queries for fault in find_unknown(query, known)] == []


@pytest.mark.parametrize(
    ("expr", "fault"),
    [
        ("rate(http_server_duration_seconds_count[5m])", "no metric http_server_duration_seconds_count"),
        ('rate(goals_reads_total{status="200"}[5m])', "has no label status"),
        ('http_server_request_duration_seconds_bucket{le="0.3"}', "has no bucket 0.3"),
        ("sum by (route) (rate(http_server_request_duration_seconds_count[5m]))", "the label route to group by"),
    ],
)
def test_a_query_for_what_is_not_there_is_found(expr: str, fault: str, loaded: Live) -> None:
    assert any(fault in found for found in find_unknown(Query("a slip", expr), exposed(loaded)))


def find_empty(live: Live, query: Query) -> list[str]:
    """What is wrong with the answer of the last minute: no data, no number, or a legend without its label."""
    now = time.time()
    series = live.ask("query_range", query=query.expr, start=now - 60, end=now, step=5)["result"]
    numbers = [float(value) for one in series for _, value in one["values"]]
    if all(math.isnan(number) for number in numbers):
        return [f"{query.where}: no data for {query.expr}"]
    return [
        f"{query.where}: no series has {label}, which the legend names"
        for label in re.findall(r"{{(\w+)}}", query.legend)
        if not any(one["metric"].get(label) for one in series)
    ]


def test_every_panel_shows_data(loaded: Live) -> None:
    # The table of alerts is empty when all is well; here it is not, but only after some minutes.
    queries = [query for query in panel_queries() if "ALERTS" not in query.expr]
    assert len(queries) > 40
    wait_until(lambda: not any(find_empty(loaded, query) for query in queries), seconds=120)
    for query in variable_queries():
        values = loaded.ask(f"label/{query.legend}/values", **{"match[]": query.expr})
        assert values, query.where
    for query in annotation_queries():
        loaded.ask("query", query=query.expr)


def test_promtool_finds_nothing_in_the_metrics(loaded: Live) -> None:
    command = ["promtool", "check", "metrics"]
    result = subprocess.run(command, input=loaded.metrics(), capture_output=True, text=True, check=False)
    assert result.stderr.splitlines() == [LINT]


def test_the_page_alert_goes_from_pending_to_firing(loaded: Live) -> None:
    """Two of a hundred requests fail: the budget burns more than 14.4 times too fast."""

    def state() -> set[str]:
        alerts = loaded.ask("alerts")["alerts"]
        return {
            alert["state"]
            for alert in alerts
            if alert["labels"].get("alertname") == "GoalsAvailabilityBudgetBurn" and alert["labels"]["long"] == "1h"
        }

    wait_until(lambda: state() == {"firing"}, seconds=300)
    pending = 'ALERTS{alertname="GoalsAvailabilityBudgetBurn",alertstate="pending",long="1h"}[10m]'
    assert loaded.ask("query", query=f"count_over_time({pending})")["result"]
    crashes = [alert for alert in loaded.ask("alerts")["alerts"] if "Unhandled" in alert["labels"]["alertname"]]
    assert {alert["labels"]["error_type"] for alert in crashes} == {"RuntimeError", "StatementRefusedError"}
    assert not any("<no value>" in text for alert in crashes for text in alert["annotations"].values())


HOSTILE_REQUESTS = 10_000


async def attack(url: str, requests: int, seed: int) -> None:
    """Send what a scanner sends: methods, paths, hosts, versions and headers that no two requests share."""
    host, port = url.removeprefix("http://").split(":")
    chance = random.Random(seed)  # noqa: S311  the same attack at each run

    def word() -> str:
        return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=8))

    async def send() -> None:
        method = chance.choice(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", word().upper()])
        path = chance.choice(["/", f"/{word()}", f"/static/{word()}", f"/api/v1/goals/{word()}", "/add_goal"])
        query = chance.choice(["", f"?before={word()}", f"?{word()}={word()}", "?" + "a" * 3000])
        version = chance.choice(["1.1", "1.1", "1.1", "1.0", "9.9"])
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"{method} {path}{query} HTTP/{version}\r\nHost: {word()}.example\r\nX-Request-ID: {word()}\r\n"
            f"User-Agent: {word()}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
        )
        await reader.read()
        writer.close()

    for _ in range(requests // 20):
        await asyncio.gather(*(send() for _ in range(20)))


async def test_a_hostile_client_makes_no_series(
    settings: Settings, tmp_path: Path, record_figures: Callable[..., None]
) -> None:
    with serving_faults(settings, tmp_path) as (service, operators):
        live = Live("", service, operators, tmp_path / "service.log")
        # Every kind of answer once; what comes then is more of the same.
        await attack(service, HOSTILE_REQUESTS // 4, seed=1)
        before = {line.split(" ")[0] for line in live.metrics().splitlines()}
        await attack(service, HOSTILE_REQUESTS, seed=2)
        after = {line.split(" ")[0] for line in live.metrics().splitlines()}
        assert after == before
        spent = measure_processor(live)
        seconds = [time_scrape(live) for _ in range(20)]
        spent = measure_processor(live) - spent
        record_figures(
            hostile_requests=HOSTILE_REQUESTS,
            samples_after=sum(not line.startswith("#") for line in live.metrics().splitlines()),
            scrape_milliseconds=round(statistics.median(seconds) * 1000, 1),
            scrape_processor_milliseconds=round(spent / len(seconds) * 1000, 1),
        )


def measure_processor(live: Live) -> float:
    """Seconds of processor time that the service has used, by its own account."""
    (line,) = (line for line in live.metrics().splitlines() if line.startswith("process_cpu_seconds_total "))
    return float(line.split(" ")[1])


def time_scrape(live: Live) -> float:
    """Seconds of one scrape, as Prometheus sees it: from the request to the last byte of the answer."""
    connection = http.client.HTTPConnection(live.operators.removeprefix("http://"))
    began = time.perf_counter()
    connection.request("GET", "/metrics")
    connection.getresponse().read()
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


def test_logs_are_lines_of_json_without_a_goals_text(loaded: Live) -> None:
    lines = loaded.log.read_text().splitlines()
    requests = [event for line in lines if (event := json.loads(line))["event"] == "request"]
    assert len(requests) > 100
    assert {"time", "level", "request_id", "route", "status", "seconds", "bytes", "method"} <= requests[0].keys()
    assert "seen by Prometheus" not in "\n".join(lines)
