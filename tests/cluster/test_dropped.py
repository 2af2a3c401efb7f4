"""Pods are replaced, taken away, evicted and killed under load: no request fails, no acknowledged write is lost."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drills.journal import Attempt
from tests.cluster.kubectl import OURS, Kubectl
from tests.cluster.load import Load, failed
from tests.cluster.pods import as_root, listener, start
from tests.cluster.site import Site
from tools.lint.manifests import Manifest
from tools.polling import wait_until

pytestmark = pytest.mark.needs("nodes")

KILL = """
import os, pathlib, signal, sys
for one in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if sys.argv[1] in (one / "cgroup").read_text().replace("_", "-") and b"goals" in (one / "cmdline").read_bytes():
            os.kill(int(one.name), signal.SIGKILL)
    except OSError:
        pass
"""
"""Kills the service of the pod with this UID, as a machine that runs out of memory would."""

Figures = Callable[..., None]
LINGER = 5.0
"""Seconds after a kill whose failures are due to it: what the pod held, and what was led to it until that was known."""


@pytest.fixture
def two(site: Site) -> Iterator[Site]:
    """Two pods of the service, whatever the load, and afterwards what the overlay says."""
    site.scale(2)
    yield site
    site.apply(
        *(site.rendered(kind, "goals") for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget", "Deployment"))
    )
    site.until_rolled_out()


def judge(load: Load, attempts: list[Attempt], figures: Figures, **more: object) -> None:
    verdict = load.verdict(attempts)
    figures(
        requests=len(attempts),
        failed=len(failed(attempts)),
        acknowledged=verdict.acknowledged,
        lost=verdict.lost,
        **more,
    )
    assert (verdict.lost, verdict.duplicated, verdict.phantom) == (0, 0, 0)


def restart(site: Site) -> None:
    site.kubectl("rollout", "restart", "deployment/goals", "--namespace", "goals")
    site.until_rolled_out()
    wait_until(lambda: len(site.pods()) == 2, "the old pods are gone", 120)


def drain(site: Site, node: str) -> None:
    """Empty a node; what the suite itself brought stays, the stand-in database among it."""
    words = ("--ignore-daemonsets", "--delete-emptydir-data", f"--pod-selector=!{OURS}", "--timeout=170s")
    try:
        site.kubectl("drain", node, *words)
        site.until_rolled_out()
    finally:
        site.kubectl("uncordon", node)


def nodes(site: Site) -> set[str]:
    return {one["spec"]["nodeName"] for one in site.pods()}


def test_restarts_scale_in_and_drains_fail_no_request(
    two: Site, tmp_path: Path, figures: Figures, *, full: bool
) -> None:
    with Load(two, tmp_path) as load:
        rounds = drained = 0
        while rounds < (3 if full else 1) or (full and load.count() < 15_000):
            restart(two)
            rounds += 1
        two.scale(4)
        two.scale(2)
        for node in sorted(nodes(two)):
            drain(two, node)
            drained += 1
        while full and load.count() < 21_000:
            restart(two)
            rounds += 1
        attempts = load.stop()
        judge(load, attempts, figures, restarts=rounds, drained=drained)
    assert not failed(attempts)
    assert len(attempts) >= (20_000 if full else 1_000)


def evict(kubectl: Kubectl, pod: Manifest) -> str:
    """Ask for an eviction; empty where it is granted."""
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "goals"}}
    address = f"/api/v1/namespaces/goals/pods/{name}/eviction"
    return kubectl.run("create", "--raw", address, "--filename", "-", stdin=json.dumps(eviction)).stderr.strip()


def test_the_budget_lets_one_pod_go_at_a_time(two: Site) -> None:
    one, other = two.ready_pods()
    assert not evict(two.kubectl, one)
    assert "disruption budget" in evict(two.kubectl, other)


def test_control_without_the_budget_both_pods_go(two: Site) -> None:
    two.kubectl.delete([two.rendered("PodDisruptionBudget", "goals")])
    one, other = two.ready_pods()
    assert [evict(two.kubectl, one), evict(two.kubectl, other)] == ["", ""]


@pytest.fixture
def crowded(two: Site) -> str:
    """One node that has both pods."""
    names = [one["metadata"]["name"] for one in two.kubectl.get("nodes") if not one["spec"].get("unschedulable")]
    chosen: str
    chosen, *others = names
    two.kubectl("cordon", *others)
    try:
        restart(two)
        assert nodes(two) == {chosen}
    finally:
        two.kubectl("uncordon", *others)
    return chosen


@pytest.mark.full
@pytest.mark.parametrize("budget", [True, False], ids=["with its budget", "control without"])
def test_a_drain_of_the_node_with_both_pods_fails_no_request(
    two: Site, crowded: str, tmp_path: Path, figures: Figures, *, budget: bool
) -> None:
    if not budget:
        two.kubectl.delete([two.rendered("PodDisruptionBudget", "goals")])
    with Load(two, tmp_path) as load:
        drain(two, crowded)
        load.until(300)
        attempts = load.stop()
        judge(load, attempts, figures)
    assert bool(failed(attempts)) is not budget


def test_a_killed_pod_fails_only_what_it_held(two: Site, tmp_path: Path, figures: Figures) -> None:
    victim = two.ready_pods()[0]
    killer = as_root(listener("killer", OURS, {}, nodeName=victim["spec"]["nodeName"], hostPID=True), privileged=True)
    start(two.kubectl, [killer])
    try:
        with Load(two, tmp_path) as load:
            restarts = two.restarts()
            killed = time.time()
            two.kubectl.python(OURS, "killer", KILL, victim["metadata"]["uid"])
            wait_until(lambda: two.restarts() > restarts, "the container starts again", 60)
            two.until_rolled_out()
            load.until(500)
            attempts = load.stop()
            late = [one for one in attempts if not killed <= one.ended <= killed + LINGER]
            judge(load, attempts, figures, failed_later=len(failed(late)))
    finally:
        two.kubectl.delete([killer])
    assert not failed(late)


@pytest.mark.full
def test_control_a_stop_of_0_seconds_fails_requests(two: Site, tmp_path: Path, figures: Figures) -> None:
    deployment = two.rendered("Deployment", "goals")
    deployment["spec"]["template"]["spec"]["containers"][0]["env"] += [{"name": "GOALS_DRAIN_SECONDS", "value": "0"}]
    two.apply(deployment)
    two.until_rolled_out()
    with Load(two, tmp_path) as load:
        for _ in range(2):  # of one restart only a few requests fail
            restart(two)
        attempts = load.stop()
        figures(requests=len(attempts), failed=len(failed(attempts)))
    assert failed(attempts)
