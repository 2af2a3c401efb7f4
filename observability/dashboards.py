"""The three Grafana dashboards: the service's requests, its resources, and its service level objectives."""

from typing import Any

from observability.rules import DURATION, STATEMENTS
from observability.slo import Objectives

Panel = dict[str, Any]

# Dashboards use the data source, job and instances that the reader chooses at the top.
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CHOSEN = 'job=~"$job",instance=~"$instance"'
RATE = "$__rate_interval"
WIDTH = 24


def build(objectives: Objectives) -> list[dict[str, Any]]:
    return [_build_service(objectives), _build_resources(), _build_slo(objectives)]


def _build_service(objectives: Objectives) -> dict[str, Any]:
    threshold = objectives.latency.threshold_seconds
    budget = 1 - objectives.availability.objective
    requests = f"rate({DURATION}_count{{{CHOSEN}}}[{RATE}])"
    failures = f'rate({DURATION}_count{{{CHOSEN},http_response_status_code=~"5.."}}[{RATE}])'
    buckets = f"rate({DURATION}_bucket{{{CHOSEN}}}[{RATE}])"
    errors = f'rate({DURATION}_count{{{CHOSEN},error_type!=""}}[{RATE}])'
    return _dashboard(
        "goals-service",
        "Goals / Service",
        "Rate, errors and duration of the requests on the public port.",
        [
            _stat("Requests", "Requests per second.", "reqps", f"sum({requests})"),
            _stat(
                "Errors",
                "Share of requests answered by a 5xx.",
                "percentunit",
                f"(sum({failures}) or vector(0)) / sum({requests})",
                steps=[("green", None), ("orange", budget), ("red", 10 * budget)],
            ),
            _stat(
                "95th percentile",
                "95 % of the requests are faster than this.",
                "s",
                _quantile(0.95, buckets),
                steps=[("green", None), ("red", threshold)],
            ),
            _stat("In flight", "Requests in progress.", "short", f"sum(http_server_active_requests{{{CHOSEN}}})"),
            _stat("Instances", "Instances that answer Prometheus.", "short", 'sum(up{job=~"$job"})'),
            _table(
                "Versions",
                "The version that each instance runs.",
                f"sum by (service_version, instance) (target_info{{{CHOSEN}}})",
                width=4,
                height=4,
            ),
            _series(
                "Requests by route",
                "Requests per second by route; the route is empty for paths that match none.",
                "reqps",
                (f"sum by (http_request_method, http_route) ({requests})", "{{http_request_method}} {{http_route}}"),
                stacked=True,
            ),
            _series(
                "Requests by status",
                "Requests per second by status.",
                "reqps",
                (f"sum by (http_response_status_code) ({requests})", "{{http_response_status_code}}"),
                stacked=True,
            ),
            _series(
                "Errors by route",
                "Share of each route's requests answered by a 5xx.",
                "percentunit",
                (f"sum by (http_route) ({failures}) / sum by (http_route) ({requests})", "{{http_route}}"),
            ),
            _series(
                "Errors by type",
                "5xx responses per second: by status if the request was rejected, by exception class if it crashed.",
                "reqps",
                (f"sum by (error_type, http_route) ({errors})", "{{error_type}} {{http_route}}"),
            ),
            _series(
                "Duration",
                f"Percentiles over all routes; the line is the objective's threshold of {threshold:g} s.",
                "s",
                *((_quantile(quantile, buckets), f"p{quantile * 100:g}") for quantile in (0.5, 0.95, 0.99)),
                steps=[("transparent", None), ("red", threshold)],
            ),
            _series(
                "95th percentile by route",
                "The 95th percentile of each route.",
                "s",
                (_quantile(0.95, buckets, "http_route"), "{{http_route}}"),
            ),
            _heatmap(
                "Distribution",
                "The distribution of durations over time.",
                f"sum by (le) (increase({DURATION}_bucket{{{CHOSEN}}}[{RATE}]))",
            ),
            # part adoption
            _row("Goals"),
            _series(
                "Goals added and removed",
                "Successful submissions of the page's two forms per second.",
                "reqps",
                (f"sum(rate(add_goal_requests_total{{{CHOSEN}}}[{RATE}]))", "added"),
                (f"sum(rate(remove_goal_requests_total{{{CHOSEN}}}[{RATE}]))", "removed"),
            ),
            _series(
                "Successful requests by path",
                "The counter that the original Go app's dashboards use.",
                "reqps",
                (f"sum by (path) (rate(http_requests_total{{{CHOSEN}}}[{RATE}]))", "{{path}}"),
            ),
            # end adoption
        ],
    )


def _build_resources() -> dict[str, Any]:
    third = WIDTH // 3
    statements = f"rate({STATEMENTS}{{{CHOSEN}}}[{RATE}])"
    failures = f'rate({STATEMENTS}{{{CHOSEN},error_type!=""}}[{RATE}])'
    durations = f"rate(db_client_operation_duration_seconds_bucket{{{CHOSEN}}}[{RATE}])"
    size = "goals_add_group_size"
    waits = f"rate(goals_add_group_wait_seconds_bucket{{{CHOSEN}}}[{RATE}])"
    count = f"db_client_connection_count{{{CHOSEN}}}"
    used = f'db_client_connection_count{{{CHOSEN},db_client_connection_state="used"}}'
    limit = f"db_client_connection_max{{{CHOSEN}}}"
    delays = f"rate(goals_eventloop_delay_seconds_bucket{{{CHOSEN}}}[{RATE}])"
    operation = "{{db_operation_name}} {{db_collection_name}}"
    return _dashboard(
        "goals-resources",
        "Goals / Resources",
        "Utilisation, saturation and errors of the connections, the event loop and the process.",
        [
            _row("PostgreSQL"),
            _series(
                "Connections in use",
                "Share of the pool in use.",
                "percentunit",
                (f"sum by (instance) ({used}) / sum by (instance) ({limit})", "{{instance}}"),
                width=third,
                most=1,
                steps=[("transparent", None), ("red", 0.9)],
            ),
            _series(
                "Connections by state",
                "Open connections.",
                "short",
                (f"sum by (db_client_connection_state) ({count})", "{{db_client_connection_state}}"),
                width=third,
                stacked=True,
            ),
            _series(
                "Queue",
                "Statements waiting for a connection.",
                "short",
                (f"sum by (instance) (db_client_connection_pending_requests{{{CHOSEN}}})", "{{instance}}"),
                width=third,
            ),
            _series(
                "Statements refused",
                "Rejections per second: queue full (full), wait too long (slow), or no answer from PostgreSQL (down).",
                "ops",
                (f"sum by (reason) (rate(goals_gate_rejections_total{{{CHOSEN}}}[{RATE}]))", "{{reason}}"),
                (f"sum(rate(db_client_connection_timeouts_total{{{CHOSEN}}}[{RATE}]))", "timeouts"),
                width=third,
            ),
            _series(
                "Connection wait and use",
                "95th percentile of the wait for a connection, and of the time it is in use.",
                "s",
                *(
                    (
                        _quantile(0.95, f"rate(db_client_connection_{kind}_time_seconds_bucket{{{CHOSEN}}}[{RATE}])"),
                        kind,
                    )
                    for kind in ("wait", "use")
                ),
                width=third,
            ),
            _series(
                "Shared reads",
                "Read requests and the queries that served them; concurrent identical reads share a query.",
                "ops",
                (f"sum by (kind) (rate(goals_reads_total{{{CHOSEN}}}[{RATE}]))", "{{kind}} requests"),
                (f"sum by (kind) (rate(goals_read_queries_total{{{CHOSEN}}}[{RATE}]))", "{{kind}} queries"),
                width=third,
            ),
            _series(
                "Adds per commit",
                "Adds in each statement, which is one commit.",
                "short",
                (
                    f"sum(rate({size}_sum{{{CHOSEN}}}[{RATE}])) / sum(rate({size}_count{{{CHOSEN}}}[{RATE}]))",
                    "mean",
                ),
                (_quantile(0.95, f"rate({size}_bucket{{{CHOSEN}}}[{RATE}])"), "95th percentile"),
                width=third,
            ),
            _series(
                "Wait for a commit",
                "How long the oldest add in each statement waited for its turn.",
                "s",
                (_quantile(0.95, waits), "95th percentile"),
                width=third,
            ),
            _series(
                "Statements",
                "Statements per second.",
                "ops",
                (f"sum by (db_operation_name, db_collection_name) ({statements})", operation),
                width=third,
                stacked=True,
            ),
            _series(
                "Statement duration",
                "95th percentile.",
                "s",
                (_quantile(0.95, durations, "db_operation_name, db_collection_name"), operation),
                width=third,
            ),
            _series(
                "Statement errors",
                "Failed statements per second, by SQLSTATE or class.",
                "ops",
                (f"sum by (error_type) ({failures})", "{{error_type}}"),
                width=third,
            ),
            _series(
                "New connections",
                "Connections opened per second.",
                "ops",
                (f"sum(rate(db_client_connection_create_time_seconds_count{{{CHOSEN}}}[{RATE}]))", "opened"),
                width=third,
            ),
            _series(
                "Ids in use",
                "The last id as a share of the highest possible id; GoalsIdsRunningOut warns and pages at the lines.",
                "percentunit",
                (f"max(goals_ids_used_ratio{{{CHOSEN}}})", "goals"),
                width=third,
                most=1,
                steps=[("transparent", None), ("orange", 0.5), ("red", 0.9)],
            ),
            _row("Process"),
            _series(
                "CPU",
                "Cores in use; a process uses at most one.",
                "short",
                (f"rate(process_cpu_seconds_total{{{CHOSEN}}}[{RATE}])", "{{instance}}"),
                width=third,
            ),
            _series(
                "Memory",
                "Resident memory.",
                "bytes",
                (f"process_resident_memory_bytes{{{CHOSEN}}}", "{{instance}}"),
                width=third,
            ),
            _series(
                "Event loop delay",
                "99th percentile of the event loop's lag: every request waits that long.",
                "s",
                (_quantile(0.99, delays, "instance"), "{{instance}}"),
                width=third,
                steps=[("transparent", None), ("red", 0.25)],
            ),
            _series(
                "File descriptors",
                "Open file descriptors as a share of the limit.",
                "percentunit",
                (f"process_open_fds{{{CHOSEN}}} / process_max_fds{{{CHOSEN}}}", "{{instance}}"),
                width=third,
                most=1,
            ),
            _series(
                "Garbage collections",
                "Collections per second by generation.",
                "ops",
                (f"sum by (generation) (rate(python_gc_collections_total{{{CHOSEN}}}[{RATE}]))", "{{generation}}"),
                width=third,
            ),
            _series(
                "Samples per scrape",
                "Samples in each scrape of an instance.",
                "short",
                (f"scrape_samples_scraped{{{CHOSEN}}}", "{{instance}}"),
                width=third,
            ),
        ],
    )


def _build_slo(objectives: Objectives) -> dict[str, Any]:
    availability, latency = objectives.availability.objective, objectives.latency.objective
    threshold = objectives.latency.threshold_seconds
    longest = objectives.windows[-1]
    pages = [burn for burn in objectives.burn if burn.severity == "critical"]
    lines = [("transparent", None), *sorted((("red", burn.rate) for burn in pages), key=lambda step: step[1])]
    panels = []
    for name, objective, promise in (
        ("availability", availability, f"{availability:.6g} of the requests are not answered by a 5xx"),
        ("latency", latency, f"{latency:.6g} of the requests are answered within {threshold:g} s"),
    ):
        chosen = f'{{slo="{name}"}}'
        budget = f"goals:slo:error_budget{chosen}"
        panels += [
            _row(f"{name.title()}: {promise}"),
            _stat(
                f"{name.title()} of the last hour",
                f"Share of good requests; the objective is {objective:.6g}.",
                "percentunit",
                f"1 - goals:sli_error:ratio_rate1h{chosen}",
                steps=[("red", None), ("green", objective)],
                height=7,
                decimals=3,
            ),
            _stat(
                f"{name.title()} budget left",
                f"Share of the error budget of the last {longest} that is left.",
                "percentunit",
                f"1 - goals:sli_error:ratio_rate{longest}{chosen} / on (slo) {budget}",
                steps=[("red", None), ("orange", 0.25), ("green", 0.5)],
                height=7,
                least=None,
            ),
            _series(
                f"{name.title()} burn rate",
                "How many times faster than allowed the budget burns; the lines are the rates that page.",
                "short",
                *(
                    (f"goals:sli_error:ratio_rate{window}{chosen} / on (slo) {budget}", window)
                    for window in dict.fromkeys(window for burn in pages for window in (burn.short, burn.long))
                ),
                width=16,
                height=7,
                steps=lines,
            ),
        ]
    return _dashboard(
        "goals-slo",
        "Goals / SLO",
        "Objectives, error budgets and how fast they burn.",
        [
            *panels,
            _row("Alerts"),
            _table("Alerts", "Pending and firing alerts; usually empty.", 'ALERTS{service="goals"}', width=WIDTH),
        ],
    )


def _quantile(quantile: float, buckets: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, sum by ({labels}) ({buckets}))"


Steps = list[tuple[str, float | None]]
"""Colours, each from a value upwards; the first has no value."""


def _stat(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    steps: Steps | None = None,
    height: int = 4,
    least: int | None = 0,
    decimals: int | None = None,
) -> Panel:
    panel = _panel("stat", title, description, unit, [(expr, "")], 4, height, steps, instant=True)
    defaults = panel["fieldConfig"]["defaults"]
    defaults |= {} if least is None else {"min": least}
    defaults |= {} if decimals is None else {"decimals": decimals}
    panel["options"] = {
        "colorMode": "value",
        "graphMode": "none",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return panel


def _series(
    title: str,
    description: str,
    unit: str,
    *queries: tuple[str, str],
    width: int = 12,
    height: int = 8,
    stacked: bool = False,
    most: int | None = None,
    steps: Steps | None = None,
) -> Panel:
    panel = _panel("timeseries", title, description, unit, list(queries), width, height, steps)
    defaults = panel["fieldConfig"]["defaults"]
    defaults |= {"min": 0} if most is None else {"min": 0, "max": most}
    defaults["custom"] = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 20 if stacked else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if steps else "off"},
    }
    panel["options"] = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["mean", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


def _heatmap(title: str, description: str, expr: str) -> Panel:
    panel = _panel("heatmap", title, description, "s", [(expr, "{{le}}")], WIDTH, 8)
    panel["targets"][0]["format"] = "heatmap"
    panel["options"] = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "fill": "dark-orange", "exponent": 0.5},
        "yAxis": {"unit": "s"},
    }
    return panel


def _table(title: str, description: str, expr: str, *, width: int, height: int = 8) -> Panel:
    panel = _panel("table", title, description, "short", [(expr, "")], width, height, instant=True)
    panel["targets"][0]["format"] = "table"
    return panel


def _row(title: str) -> Panel:
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": WIDTH, "h": 1}}


def _panel(
    kind: str,
    title: str,
    description: str,
    unit: str,
    queries: list[tuple[str, str]],
    width: int,
    height: int,
    steps: Steps | None = None,
    *,
    instant: bool = False,
) -> Panel:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"color": color, "value": value} for color, value in steps or [("green", None)]],
                },
            },
            "overrides": [],
        },
        "options": {},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": expr,
                "legendFormat": legend or "__auto",
                "format": "time_series",
                "instant": instant,
                "range": not instant,
            }
            for number, (expr, legend) in enumerate(queries)
        ],
    }


def _dashboard(uid: str, title: str, description: str, panels: list[Panel]) -> dict[str, Any]:
    _lay_out(panels)
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["goals"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("job", "Job", "label_values(goals_reads_total, job)"),
                _variable("instance", "Instance", 'label_values(goals_reads_total{job=~"$job"}, instance)'),
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Starts",
                    "enable": True,
                    "datasource": SOURCE,
                    "iconColor": "purple",
                    "target": {
                        "refId": "Starts",
                        "expr": f"changes(process_start_time_seconds{{{CHOSEN}}}[$__interval]) > 0",
                        "legendFormat": "{{instance}} started",
                    },
                }
            ]
        },
        "links": [
            {
                "type": "dashboards",
                "title": "goals",
                "tags": ["goals"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "dashboard",
                "tooltip": "",
                "url": "",
            }
        ],
        "panels": panels,
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"qryType": 1, "query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _lay_out(panels: list[Panel]) -> None:
    """Place the panels from left to right, as many in a row as fit."""
    x = y = line = 0
    for number, panel in enumerate(panels, 1):
        place = panel["gridPos"]
        if x + place["w"] > WIDTH:
            x, y, line = 0, y + line, 0
        panel["id"] = number
        place["x"], place["y"] = x, y
        x, line = x + place["w"], max(line, place["h"])
