"""More pods under load and fewer afterwards, without a failed request, within the quota."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.load import Load, failed
from tests.cluster.site import Site
from tests.cluster.visit import renders
from tools.lint.inventory import first
from tools.lint.manifests import Manifest
from tools.lint.workloads import quantity
from tools.polling import wait_until

pytestmark = pytest.mark.needs("nodes", "metrics")

Figures = Callable[..., None]
MOST = 4


@pytest.fixture(autouse=True)
def unhindered(kubectl: Kubectl, site: Site) -> Iterator[None]:
    site.scale(2)
    yield
    site.apply(*(site.rendered(kind, "goals") for kind in ("Deployment", "HorizontalPodAutoscaler")))
    site.until_rolled_out()


def used(site: Site) -> float:
    """Seconds of the processor that the pods of the service have used since they started."""
    program = "import pathlib; print(pathlib.Path('/proc/1/stat').read_text())"
    ticks = 0.0
    for one in site.ready_pods():
        fields = site.kubectl.python("goals", one["metadata"]["name"], program).rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100


def scaler(site: Site) -> Manifest:
    """The autoscaler as it is."""
    found: Manifest = site.kubectl.get("horizontalpodautoscaler", "goals", "--namespace", "goals")
    return found


@pytest.mark.full
def test_it_scales_out_under_load_and_in_afterwards_and_no_request_fails(
    site: Site, tmp_path: Path, figures: Figures
) -> None:
    with Load(site, tmp_path) as load:
        began = time.monotonic()
        site.let_scale(2, MOST)
        wait_until(lambda: len(site.ready_pods()) == MOST, f"{MOST} pods under load", 240)
        out = time.monotonic() - began
        site.let_scale(2, 2)
        wait_until(lambda: len(site.pods()) == 2, "two pods again", 240)
        attempts = load.stop()
        verdict = load.verdict(attempts)
    figures(out=f"{out:.0f} s", requests=len(attempts), failed=len(failed(attempts)), lost=verdict.lost)
    assert not failed(attempts)
    assert (verdict.lost, verdict.duplicated, verdict.phantom) == (0, 0, 0)


@pytest.mark.full
def test_control_without_load_it_does_not_scale_out(site: Site) -> None:
    used = "status.currentMetrics[].resource.current.averageUtilization"
    wait_until(lambda: first(scaler(site), used, 100) < 50, "the load before is forgotten", 120)
    site.let_scale(3, MOST)
    desired = "status.desiredReplicas"
    wait_until(lambda: first(scaler(site), desired) != 2, "it has decided", 60)
    assert first(scaler(site), desired) == 3  # under load it is the most


def test_a_request_of_a_pod_fits_its_work(site: Site, tmp_path: Path, figures: Figures) -> None:
    """At the autoscaler's target a pod must do more than the 33 requests a second at which 100m once meant ten pods."""
    with Load(site, tmp_path) as load:
        before, at = used(site), load.count()
        load.until(1_000)
        each = (used(site) - before) / (load.count() - at)
        load.stop()
    # Of the base: the requests of overlays/local are small, so that it fits on a laptop.
    deployment, target = (
        next(one for one in renders()["base"] if one["kind"] == kind)
        for kind in ("Deployment", "HorizontalPodAutoscaler")
    )
    share = first(target, "spec.metrics[].resource.target.averageUtilization") / 100
    request = quantity(first(deployment, "spec.template.spec.containers[].resources.requests.cpu"))
    rate = request * share / each
    figures(processor_a_request=f"{each * 1000:.1f} ms", requests_a_second_of_a_pod_at_the_target=round(rate))
    assert rate > 33


@pytest.mark.full
def test_a_rollout_at_the_most_pods_fits_the_quota(site: Site, figures: Figures) -> None:
    most = first(site.rendered("HorizontalPodAutoscaler", "goals"), "spec.maxReplicas")
    site.kubectl("delete", "events", "--namespace", "goals", "--all")
    site.let_scale(most, most)
    # A quota counts pods whether they are ready or not.
    site.kubectl("scale", "deployment/goals", "--namespace", "goals", f"--replicas={most}")
    wait_until(lambda: len(site.pods()) == most, f"{most} pods", 60)
    site.kubectl("rollout", "restart", "deployment/goals", "--namespace", "goals")
    wait_until(lambda: len(site.pods()) > most, "the rollout has one pod more", 60)
    site.scale(2)
    used = site.kubectl.get("resourcequota", "goals", "--namespace", "goals")["status"]
    refused = site.kubectl.get("events", "--namespace", "goals", "--field-selector", "reason=FailedCreate") or ()
    figures(pods=most + 1, quota=used["hard"]["pods"], refused=len(refused))
    assert not refused


@pytest.mark.full
def test_control_a_quota_that_is_too_small_shows(site: Site) -> None:
    quota = site.rendered("ResourceQuota", "goals")
    quota["spec"]["hard"]["pods"] = "3"
    site.kubectl("delete", "events", "--namespace", "goals", "--all")
    site.apply(quota)
    try:
        site.let_scale(6, 6)
        events = ("--namespace", "goals", "--field-selector", "reason=FailedCreate")
        wait_until(lambda: site.kubectl.get("events", *events), "a pod is refused", 60)
    finally:
        site.apply(site.rendered("ResourceQuota", "goals"))
        site.scale(2)  # the six would be created late: what a quota refuses is tried again less and less often
