"""A real Prometheus scrapes what the ServiceMonitor selects, and an alert fires in an outage and resolves."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.load import Load
from tests.cluster.prometheus import FASTER, Prometheus, rendered
from tests.cluster.site import Site
from tests.cluster.visit import identity
from tools.lint.inventory import get_path
from tools.polling import wait_until

pytestmark = pytest.mark.needs("nodes")

ALERT = "GoalsAvailabilityBudgetBurn"
Figures = Callable[..., None]


@pytest.fixture(scope="module")
def prometheus(kubectl: Kubectl, site: Site) -> Iterator[Prometheus]:
    site.scale(2)
    with Prometheus(kubectl) as prometheus:
        yield prometheus
    site.apply(site.rendered("HorizontalPodAutoscaler", "goals"))


def healthy(site: Site) -> dict[str, str]:
    return {one["metadata"]["name"]: "up" for one in site.ready_pods()}


def test_each_pod_of_the_service_is_scraped_and_nothing_else(
    site: Site, prometheus: Prometheus, figures: Figures
) -> None:
    wait_until(lambda: prometheus.up() == healthy(site), "both pods are scraped", 60)
    (seen,) = prometheus.ask("query", query='count(target_info{job="goals"})')["result"]
    figures(targets=len(prometheus.up()), monitors=len(rendered("ServiceMonitor")))
    assert seen["value"][1] == "2"


def test_the_rules_load_and_each_can_be_evaluated(prometheus: Prometheus, figures: Figures) -> None:
    wanted = sum(len(list(get_path(one, "spec.groups[].rules[]"))) for one in rendered("PrometheusRule"))

    def states() -> list[str]:
        return [rule["health"] for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: "unknown" not in states(), "all rules are evaluated", 60)
    figures(rules=wanted)
    assert states() == ["ok"] * wanted


def test_an_alert_fires_while_the_database_is_away_and_resolves(
    site: Site, prometheus: Prometheus, tmp_path: Path, figures: Figures
) -> None:
    if not site.standin:
        pytest.skip("only the stand-in can be stopped and stay so: CloudNativePG restarts its instances")
    with Load(site, tmp_path):
        assert ALERT not in prometheus.firing()  # the control: it is silent while all is well
        site.stop_database()
        began = time.monotonic()
        wait_until(lambda: ALERT in prometheus.firing(), f"{ALERT} fires", 180)
        fired = time.monotonic() - began
        site.start_database()
        began = time.monotonic()
        wait_until(lambda: ALERT not in prometheus.firing(), f"{ALERT} resolves", 180)
        resolved = time.monotonic() - began
    figures(fired_after=f"{fired:.0f} s", resolved_after=f"{resolved:.0f} s", time_passed=f"{FASTER} times as fast")


@pytest.mark.full
def test_control_without_its_policy_prometheus_sees_no_pod(site: Site, prometheus: Prometheus) -> None:
    policy = next(
        one for one in rendered("NetworkPolicy") if identity(one) == "NetworkPolicy goals/goals-from-prometheus"
    )
    site.kubectl.delete([policy])
    try:
        # An open connection outlives the policy: only a new pod shows it.
        site.kubectl("rollout", "restart", "deployment/goals", "--namespace", "goals")
        site.until_rolled_out()
        wait_until(lambda: set(prometheus.up().values()) == {"down"}, "no pod is seen", 60)
    finally:
        site.apply(policy)
    wait_until(lambda: prometheus.up() == healthy(site), "the pods are seen again", 60)
