"""The recording and alerting rules, generated from the objectives and the service's metrics."""

import re
from typing import Any

from observability.slo import Objectives

Rule = dict[str, Any]

JOB = 'job="goals"'
DURATION = "http_server_request_duration_seconds"
STATEMENTS = "db_client_operation_duration_seconds_count"


def build_groups(objectives: Objectives) -> list[dict[str, Any]]:
    """Return all groups of rules, for a rules file or a PrometheusRule."""
    return [
        {"name": "goals-sli", "rules": [*_record_indicators(objectives)]},
        {"name": "goals-budget", "rules": [*_alert_on_budgets(objectives)]},
        {
            "name": "goals-symptoms",
            "rules": [
                *_alert_on_symptoms(objectives.links.runbooks),
                *_alert_on_ids(objectives.links.runbooks),
                # part azure
                _alert_on_backups(objectives.links.runbooks),
                # end azure
            ],
        },
    ]


def budget_text(objective: float) -> str:
    """Return the error budget without floating-point noise: 0.001 for 0.999."""
    return f"{1 - objective:.6g}"


def _record_indicators(objectives: Objectives) -> list[Rule]:
    # Escaped twice: a route's braces for the regular expression, and the backslashes for the PromQL string.
    routes = "|".join(map(re.escape, objectives.requests.excluded_routes)).replace("\\", "\\\\")
    valid = f'{JOB},http_route!~"{routes}"'
    total = f'{DURATION}_count{{{valid},http_response_status_code=~"[235].."}}'
    failed = f'{DURATION}_count{{{valid},http_response_status_code=~"5.."}}'
    served = f'{DURATION}_count{{{valid},http_response_status_code=~"[23].."}}'
    threshold = f'le="{objectives.latency.threshold_seconds}"'
    fast = f'{DURATION}_bucket{{{valid},http_response_status_code=~"[23]..",{threshold}}}'
    rules: list[Rule] = [{"record": "goals:http_requests:rate1h", "expr": f"sum(rate({total}[1h]))"}]
    for name, objective in (
        ("availability", objectives.availability.objective),
        ("latency", objectives.latency.objective),
    ):
        rules.append(
            {"record": "goals:slo:error_budget", "expr": f"vector({budget_text(objective)})", "labels": {"slo": name}}
        )
    for window in objectives.windows:
        # There is no 5xx series before the first 5xx: without `or vector(0)`, a perfect service would have no ratio.
        availability = f"(sum(rate({failed}[{window}])) or vector(0)) / sum(rate({total}[{window}]))"
        latency = f"1 - sum(rate({fast}[{window}])) / sum(rate({served}[{window}]))"
        for name, ratio in (("availability", availability), ("latency", latency)):
            rules.append({"record": f"goals:sli_error:ratio_rate{window}", "expr": ratio, "labels": {"slo": name}})
    return rules


def _alert_on_budgets(objectives: Objectives) -> list[Rule]:
    guard = f"and on() goals:http_requests:rate1h > {objectives.requests.least_per_second:g}"
    rules = []
    for name, objective, promise in (
        ("availability", objectives.availability.objective, "got a 5xx response"),
        (
            "latency",
            objectives.latency.objective,
            f"took longer than {objectives.latency.threshold_seconds * 1000:g} ms",
        ),
    ):
        for burn in objectives.burn:
            limit = f"{burn.rate * (1 - objective):.6g}"
            ratios = [f'goals:sli_error:ratio_rate{window}{{slo="{name}"}}' for window in (burn.long, burn.short)]
            rules.append(
                _alert(
                    f"Goals{name.title()}BudgetBurn",
                    "\n".join([f"{ratios[0]} > {limit}", f"and {ratios[1]} > {limit}", guard]),
                    burn.for_,
                    burn.severity,
                    f"The {name} error budget of goals is burning at more than {burn.rate:g}x the allowed rate",
                    f"In the last {burn.long}, {{{{ $value | humanizePercentage }}}} of the requests {promise};"
                    f" the objective allows {100 * (1 - objective):.6g}%."
                    f" In the last {burn.short}, the share was also too high.",
                    objectives.links.runbooks,
                    {"long": burn.long, "short": burn.short},
                )
            )
    return rules


def _alert_on_symptoms(runbooks: str) -> list[Rule]:
    by_class = f'{DURATION}_count{{{JOB},error_type!="",error_type!~"5.."}}'
    used = f'db_client_connection_count{{{JOB},db_client_connection_state="used"}}'
    delays = f"goals_eventloop_delay_seconds_bucket{{{JOB}}}"
    turned_away = f'goals_connections_dropped_total{{{JOB},port="public",reason="full"}}'
    at_gateway = 'sum(rate(nginx_http_requests_total{job="edge/edge"}[2m]))'
    return [
        _alert(name, expr, lasting, severity, summary, description, runbooks)
        for name, expr, lasting, severity, summary, description in (
            (
                "GoalsAbsent",
                f"absent(up{{{JOB}}} == 1)",
                "5m",
                "critical",
                "Prometheus cannot scrape any instance of goals",
                "Either all instances are down, or Prometheus cannot reach them. Users probably see errors.",
            ),
            (
                "GoalsInstanceDown",
                f"up{{{JOB}}} == 0",
                "10m",
                "warning",
                "Prometheus cannot scrape {{ $labels.instance }}",
                "The other instances handle the requests of this instance.",
            ),
            (
                "GoalsUnhandledExceptions",
                f"sum by (http_route, error_type) (increase({by_class}[15m])) > 5",
                None,
                "warning",
                "Requests to {{ $labels.http_route }} fail with {{ $labels.error_type }}",
                "In 15 minutes, {{ $value | humanize }} requests failed with an unexpected exception, which is a bug.",
            ),
            (
                "GoalsDatabaseErrors",
                f'sum(rate({STATEMENTS}{{{JOB},error_type!=""}}[5m])) / sum(rate({STATEMENTS}{{{JOB}}}[5m])) > 0.05',
                "10m",
                "warning",
                "{{ $value | humanizePercentage }} of SQL statements fail",
                "Retries hide some of these errors from users, at the cost of slower responses.",
            ),
            (
                "GoalsPoolTimeouts",
                f"sum(increase(db_client_connection_timeouts_total{{{JOB}}}[5m])) > 0",
                "5m",
                "critical",
                "Requests time out while they wait for a PostgreSQL connection",
                "Each of these requests gets a 503. PostgreSQL is too slow for the load, or it is down.",
            ),
            (
                "GoalsPrimaryAway",
                f'sum(increase(goals_standby_reads_total{{{JOB},outcome="standby"}}[1m])) > 0',
                "2m",
                "critical",
                "Reads come from a standby because no PostgreSQL primary responds",
                "The failover is taking longer than usual. Each write waits for 15 seconds and then gets a 503.",
            ),
            (
                "GoalsRequestsRefused",
                f'sum(increase(goals_gate_rejections_total{{{JOB},reason="full"}}[5m])) > 0',
                "5m",
                "critical",
                "Requests are rejected because the queue for PostgreSQL is full",
                "Each rejected request gets a 503 immediately, so the accepted requests are served in time.",
            ),
            (
                "GoalsCutOffAtTheGateway",
                f"(sum(rate({DURATION}_count{{{JOB}}}[2m])) or vector(0)) / {at_gateway} < 0.1 and {at_gateway} > 1",
                "2m",
                "critical",
                "Only {{ $value | humanizePercentage }} of the gateway's requests reach goals",
                "The gateway answers the rest: it considers every instance down, or a client exceeds the rate limit.",
            ),
            (
                "GoalsPoolSaturated",
                f"sum by (instance) ({used}) / sum by (instance) (db_client_connection_max{{{JOB}}}) > 0.9",
                "10m",
                "warning",
                "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of its PostgreSQL connections",
                "In the next burst, requests will queue, and some may be rejected.",
            ),
            (
                "GoalsEventLoopBlocked",
                f"histogram_quantile(0.99, sum by (instance, le) (rate({delays}[5m]))) > 0.25",
                "10m",
                "warning",
                "The event loop of {{ $labels.instance }} lags by {{ $value | humanizeDuration }}",
                "Requests to this instance are slow. It gets too little CPU, or a call blocks its event loop.",
            ),
            (
                "GoalsRestarting",
                f"changes(process_start_time_seconds{{{JOB}}}[30m]) > 3",
                None,
                "warning",
                "{{ $labels.instance }} restarted {{ $value }} times in 30 minutes",
                "The instance crashes, is killed, or fails its liveness probe.",
            ),
            (
                "GoalsConnectionsFull",
                f"sum by (instance) (increase({turned_away}[5m])) > 0",
                "5m",
                "warning",
                "{{ $labels.instance }} rejects connections because it has reached its limit",
                "The instance closes new connections without reading from them. The ops port has a separate limit.",
            ),
            (
                "GoalsFileDescriptors",
                f"process_open_fds{{{JOB}}} / process_max_fds{{{JOB}}} > 0.8",
                "10m",
                "warning",
                "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of its file descriptors",
                "At the limit, the instance accepts no more connections.",
            ),
            (
                "GoalsCardinality",
                f"scrape_samples_scraped{{{JOB}}} > 5000",
                "30m",
                "warning",
                "{{ $labels.instance }} exposes {{ $value }} samples",
                "A label has too many values. Each value uses memory and disk space in Prometheus.",
            ),
        )
    ]


def _alert_on_ids(runbooks: str) -> list[Rule]:
    """Alert while there is time to act, on three kinds of ids that share a runbook.

    PostgreSQL starts to freeze transaction ids at 0.2 of 2.1 billion, and from 1.6 billion on, vacuum ignores its cost
    limits (`vacuum_failsafe_age`). At half of all ids, freezing has not worked for a long time; at seven tenths, 1.5
    billion, the alert pages before that failsafe starts.
    """
    database = 'job="goals/goals-db"'  # its PodMonitor
    held_up = "Vacuum cannot keep up, or something holds it back. Once the ids run out,"
    rules = []
    for kind, used, critical, summary, description in (
        (
            "goals",
            f"max(goals_ids_used_ratio{{{JOB}}})",
            0.9,
            "{{ $value | humanizePercentage }} of the ids for goals are used",
            "Once the ids run out, no goal can be added. Everything else keeps working.",
        ),
        (
            "transactions",
            f"max by (datname) (cnpg_pg_database_xid_age{{{database}}}) / 2^31",
            0.7,
            "{{ $labels.datname }} has used {{ $value | humanizePercentage }} of its transaction ids",
            f"{held_up} every write fails in every database.",
        ),
        (
            "multixacts",
            f"max by (datname) (cnpg_pg_database_mxid_age{{{database}}}) / 2^31",
            0.7,
            "{{ $labels.datname }} has used {{ $value | humanizePercentage }} of its multixact ids",
            f"{held_up} every write that needs a multixact id fails in every database.",
        ),
    ):
        for severity, share in (("warning", 0.5), ("critical", critical)):
            expr, labels = f"{used} > {share}", {"kind": kind}
            rules.append(_alert("GoalsIdsRunningOut", expr, None, severity, summary, description, runbooks, labels))
    return rules


# part azure
def _alert_on_backups(runbooks: str) -> Rule:
    """Alert if the backup check is installed but has not succeeded for a week, or ever."""
    check = '{namespace="goals",cronjob="restore-check"}'
    since = f"kube_cronjob_status_last_successful_time{check} or kube_cronjob_created{check}"
    return _alert(
        "GoalsBackupsUnproven",
        f"time() - max by (cronjob) ({since}) > 7 * 86400",
        None,
        "warning",
        "No backup has been restored and verified for {{ $value | humanizeDuration }}",
        "The backup check runs twice a week. Until it succeeds, it is unclear whether the backups can be restored.",
        runbooks,
    )


# end azure
def _alert(
    name: str,
    expr: str,
    lasting: str | None,
    severity: str,
    summary: str,
    description: str,
    runbooks: str,
    labels: dict[str, str] | None = None,
) -> Rule:
    return {
        "alert": name,
        "expr": expr,
        **({"for": lasting} if lasting else {}),
        "labels": {"severity": severity, "service": "goals", **(labels or {})},
        "annotations": {"summary": summary, "description": description, "runbook_url": f"{runbooks}/{name}.md"},
    }
