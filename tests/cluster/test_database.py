"""PostgreSQL fails over under load: how long reads and writes are away, and that no acknowledged write is lost."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from drills.journal import Attempt
from tests.cluster.load import Load
from tests.cluster.site import Site
from tools.polling import wait_until

pytestmark = [pytest.mark.needs("nodes", "CloudNativePG"), pytest.mark.full]

Figures = Callable[..., None]


def gap(attempts: list[Attempt], *, writes: bool, since: float) -> float:
    """The longest time without a success."""
    times = [since, *(one.ended for one in attempts if one.is_write is writes and one.is_done and one.ended > since)]
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


def primary(site: Site) -> str:
    return str(
        site.kubectl.get("cluster.postgresql.cnpg.io", "goals-db", "--namespace", "goals")["status"]["currentPrimary"]
    )


def kill(site: Site) -> None:
    site.kubectl("delete", "pod", primary(site), "--namespace", "goals", "--grace-period=0", "--force")


def delete(site: Site) -> None:
    site.kubectl("delete", "pod", primary(site), "--namespace", "goals", "--wait=false")


def switch_over(site: Site) -> None:
    instances = site.kubectl.get(
        "pods", "--namespace", "goals", "--selector", "cnpg.io/cluster=goals-db,cnpg.io/podRole=instance"
    )
    other = next(one["metadata"]["name"] for one in instances if one["metadata"]["name"] != primary(site))
    patch = f'{{"status": {{"targetPrimary": "{other}"}}}}'
    site.kubectl(
        "patch",
        "cluster.postgresql.cnpg.io",
        "goals-db",
        "--namespace",
        "goals",
        "--subresource=status",
        "--type=merge",
        f"--patch={patch}",
    )


@pytest.mark.parametrize("event", [kill, delete, switch_over], ids=["forced kill", "graceful deletion", "switchover"])
def test_a_change_of_primary_loses_no_acknowledged_write(
    site: Site, tmp_path: Path, figures: Figures, event: Callable[[Site], None]
) -> None:
    with Load(site, tmp_path) as load:
        before, began = primary(site), time.time()
        event(site)
        wait_until(lambda: primary(site) != before, "another instance is the primary", 120)
        site.kubectl(
            "wait",
            "--for=condition=Ready",
            "cluster.postgresql.cnpg.io/goals-db",
            "--namespace",
            "goals",
            "--timeout=300s",
            seconds=310,
        )
        load.until(300)
        attempts = load.stop()
        verdict = load.verdict(attempts)
    figures(
        requests=len(attempts),
        reads_away=f"{gap(attempts, writes=False, since=began):.1f} s",
        writes_away=f"{gap(attempts, writes=True, since=began):.1f} s",
        acknowledged=verdict.acknowledged,
        lost=verdict.lost,
        not_tried="the loss of a node: nothing here ends a node that it did not start",
    )
    assert (verdict.lost, verdict.duplicated, verdict.phantom) == (0, 0, 0)
