"""A load test inside the cluster, as k8s/README.md runs it: its exit code is the verdict, and nothing is left open."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.pods import Target, listener, reach, start
from tests.cluster.site import Site
from tests.cluster.visit import renders
from tools.lint.inventory import get_path
from tools.lint.manifests import ROOT
from tools.polling import wait_until

pytestmark = pytest.mark.needs("nodes")

REPLACE = ("replace", "--force", "--cascade=foreground", "-k")
"""As k8s/README.md says."""
GOALS = "http://goals:8080"

Figures = Callable[..., None]


@pytest.fixture(autouse=True)
def gone(kubectl: Kubectl, site: Site) -> Iterator[None]:
    site.scale(2)
    yield
    kubectl.delete(renders()["components/loadtest"])
    site.apply(site.rendered("HorizontalPodAutoscaler", "goals"))


def verdict(kubectl: Kubectl) -> tuple[str, str]:
    """Wait for the Job's end; `Complete` or `Failed`, and its log."""
    ends: set[str] = set()

    def has_ended() -> bool:
        job = kubectl.get("job", "loadtest", "--namespace", "goals")
        ends.update(one["type"] for one in job["status"].get("conditions", ()) if one["status"] == "True")
        return bool(ends & {"Complete", "Failed"})

    wait_until(has_ended, "the load test ends", 240)
    return next(iter(ends & {"Complete", "Failed"})), kubectl("logs", "job/loadtest", "--namespace", "goals")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], str]:
    """The component with a scenario that also a machine of two cores can serve in time, against a URL."""

    def write(url: str) -> str:
        patches = []
        for one in renders()["components/loadtest"]:
            for container in get_path(one, "spec.template.spec.containers[]"):
                args = [word.replace("original", "smoke").replace(GOALS, url) for word in container["args"]]
                assert {"smoke", url} <= set(args), f"{one['kind']}: {args}"
                change = [{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}]
                patches.append({"target": {"kind": one["kind"]}, "patch": json.dumps(change)})
        component = os.path.relpath(ROOT / "components" / "loadtest", tmp_path)
        (tmp_path / "kustomization.yaml").write_text(json.dumps({"resources": [component], "patches": patches}))
        return str(tmp_path)

    return write


def test_it_passes_and_then_the_way_past_the_gateway_is_closed(
    kubectl: Kubectl, site: Site, folder: Callable[[str], str], figures: Figures, *, full: bool
) -> None:
    smoke = folder(GOALS)
    runs = 2 if full else 1
    for _ in range(runs):
        kubectl(*REPLACE, smoke)
        end, log = verdict(kubectl)
        assert end == "Complete", log
    outsider = listener("load-outsider", "goals", {"app.kubernetes.io/name": "loadtest"})
    start(kubectl, [outsider])
    try:
        target = [Target(str(site.ready_pods()[0]["status"]["podIP"]), 8080)]
        assert reach(kubectl, "goals", "load-outsider", target) == [True]
        kubectl("delete", "-k", smoke)
        wait_until(lambda: reach(kubectl, "goals", "load-outsider", target) == [False], "the way is closed", 20)
    finally:
        kubectl.delete([outsider])
    figures(runs=runs, exit_code=0)


@pytest.mark.full
def test_control_a_run_that_reaches_nobody_fails(kubectl: Kubectl, site: Site, folder: Callable[[str], str]) -> None:
    kubectl(*REPLACE, folder("http://127.0.0.1:8081"))
    assert verdict(kubectl)[0] == "Failed"
