"""PostgreSQL fails over under load: how long reads and writes fail, and that no acknowledged write is lost."""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from drills.journal import Attempt
from tests.cluster.kubectl import OURS
from tests.cluster.load import Load
from tests.cluster.pods import as_root, listener, start
from tests.cluster.site import Site
from tools.lint.manifests import Manifest
from tools.polling import wait_until

pytestmark = [pytest.mark.needs("nodes", "CloudNativePG"), pytest.mark.full]

Figures = Callable[..., None]
CLUSTER = "cluster.postgresql.cnpg.io/goals-db"
LOST = 120
"""Seconds for which a node is cut off: longer than Kubernetes and the operator take to do without it."""

CUT_OFF = """
import os, socket, struct, sys, time
def change(kind, flags):
    body = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 6, 0) + struct.pack("=HHI", 8, 6, 0)
    head = struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as routing:
        routing.send(head + body)
        error = struct.unpack_from("=i", routing.recv(4096), 16)[0]
        assert not error, os.strerror(-error)
if os.fork() == 0:
    os.setsid()
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    time.sleep(1)
    change(32, 0x605)
    try:
        time.sleep(int(sys.argv[1]))
    finally:
        change(33, 5)
"""
"""Makes a node drop all that it sends and forwards, as if its cable were out, and puts it back by itself: nobody could
tell it to. A routing rule before all others leads nowhere; it comes a second later, so that the caller is answered."""


def steady(rate: int, step: str) -> str:
    """An open model: so many requests a second, whether or not the earlier ones are answered."""
    return f"""
description = "so many a second"
objectives = false
timeout = "40s"

[load]
executor = "constant-arrival-rate"
rate = {rate}
duration = "1h"
max_vus = 1000

[[task]]
[[task.step]]
{step}
"""


SCENARIOS = {
    "reads": steady(16, 'name = "page"\npath = "/"\nheaders = { Connection = "close" }'),
    "writes": steady(
        8,
        'name = "add by the API"\nmethod = "POST"\npath = "/api/v1/goals"\n'
        'headers = { Idempotency-Key = "${uuid}", Connection = "close" }\njson = { goal_name = "drill ${uuid}" }',
    ),
}
"""Reads and writes apart: clients that wait for a write would not ask for a page.

Each request has its own connection: one that the service closes as idle fails now and then, and says
nothing of the database.
"""


def gap(attempts: list[Attempt], *, since: float) -> float:
    """The longest time without a success."""
    times = [since, *(one.ended for one in attempts if one.is_done and one.ended > since)]
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


def state(site: Site) -> Any:
    return site.kubectl.get(CLUSTER, "--namespace", "goals")["status"]


def primary(site: Site) -> str:
    return str(state(site)["currentPrimary"])


def node_of(site: Site, pod: str) -> str:
    return str(site.kubectl.get("pod", pod, "--namespace", "goals")["spec"]["nodeName"])


def kill(site: Site) -> None:
    site.kubectl("delete", "pod", primary(site), "--namespace", "goals", "--grace-period=0", "--force")


def delete(site: Site) -> None:
    site.kubectl("delete", "pod", primary(site), "--namespace", "goals", "--wait=false")


def switch_over(site: Site) -> None:
    other = next(one for one in sorted(state(site)["instanceNames"]) if one != primary(site))
    patch = f'{{"status": {{"targetPrimary": "{other}"}}}}'
    how = ("--subresource=status", "--type=merge", f"--patch={patch}")
    site.kubectl("patch", CLUSTER, "--namespace", "goals", *how)


def drain(site: Site) -> None:
    node = node_of(site, primary(site))
    words = ("--ignore-daemonsets", "--delete-emptydir-data", f"--pod-selector=!{OURS}", "--timeout=170s")
    try:
        site.kubectl("drain", node, *words)
    finally:
        site.kubectl("uncordon", node)


def lose_node(site: Site) -> None:
    site.kubectl.python(OURS, "cutter", CUT_OFF, str(LOST))


EVENTS = {
    "forced kill": kill,
    "graceful deletion": delete,
    "switchover": switch_over,
    "drain of its node": drain,
    "loss of its node": lose_node,
}


@pytest.fixture
def away(request: pytest.FixtureRequest, site: Site) -> Iterator[Manifest]:
    """Where the load runs. A node is lost without it and the service: what they lose with it is not the database.

    The node is not cordoned for that: CloudNativePG would move the primary.
    """
    if request.node.callspec.params["event"] is not lose_node:
        yield {}
        return
    node = node_of(site, primary(site))
    elsewhere = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [node]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [elsewhere]}}
    affinity = {"affinity": {"nodeAffinity": required}}
    deployment = site.rendered("Deployment", "goals")
    deployment["spec"]["template"]["spec"] |= affinity
    pod = as_root(listener("cutter", OURS, {}, nodeName=node, hostNetwork=True), privileged=True)
    start(site.kubectl, [pod])
    try:
        site.apply(deployment)
        site.until_rolled_out()
        wait_until(lambda: node not in {one["spec"]["nodeName"] for one in site.pods()}, "the node is left", 120)
        yield affinity
    finally:
        site.kubectl("wait", "--for=condition=Ready", f"node/{node}", f"--timeout={LOST + 60}s", seconds=LOST + 70)
        site.kubectl.delete([pod])
        site.apply(site.rendered("Deployment", "goals"))
        site.until_rolled_out()


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS.keys())
def test_a_change_of_primary_loses_no_acknowledged_write(
    site: Site, tmp_path: Path, figures: Figures, event: Callable[[Site], None], away: Manifest
) -> None:
    with Load(site, tmp_path, SCENARIOS, **away) as load:
        before, began = primary(site), time.time()
        event(site)
        wait_until(lambda: primary(site) != before, "another instance is the primary", 300)
        changed = time.time() - began
        site.kubectl("wait", "--for=condition=Ready", CLUSTER, "--namespace", "goals", "--timeout=300s", seconds=310)
        load.until(300)
        attempts = load.stop()
        verdict = load.verdict(attempts)
    reads, writes = ([one for one in attempts if one.is_write is kind] for kind in (False, True))
    figures(
        requests=len(attempts),
        reads_failed=sum(not one.is_done for one in reads),
        longest_without_a_read=f"{gap(reads, since=began):.1f} s",
        longest_read=f"{max(one.seconds for one in reads):.1f} s",
        writes_failed=sum(not one.is_done for one in writes),
        longest_without_a_write=f"{gap(writes, since=began):.1f} s",
        another_primary_after=f"{changed:.1f} s",
        acknowledged=verdict.acknowledged,
        lost=verdict.lost,
    )
    assert (verdict.lost, verdict.duplicated, verdict.phantom) == (0, 0, 0)
