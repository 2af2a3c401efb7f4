"""From an empty cluster to the page, step by step, with the policies enforced from the start."""

import json
from collections.abc import Callable, Iterator

import pytest
import trustme

from tests.cluster.kubectl import OURS, Kubectl
from tests.cluster.needs import missing
from tests.cluster.pods import listener, start
from tests.cluster.site import Site, secret

pytestmark = pytest.mark.needs("nodes")

GATEWAY = {"gateway.networking.k8s.io/gateway-name": "edge"}
ASK = """
import http.client, json, sys
def ask(method, path, **more):
    goals = http.client.HTTPConnection("goals.goals.svc", 8080, timeout=10)
    goals.request(method, path, **more)
    answer = goals.getresponse()
    return answer.status, answer.read().decode()
form = {"Content-Type": "application/x-www-form-urlencoded"}
print(json.dumps([
    ask("GET", "/health"), ask("POST", "/add_goal", body="goal_name=seen+on+a+cluster", headers=form), ask("GET", "/"),
]))
"""


@pytest.fixture
def gateway(kubectl: Kubectl, site: Site) -> Iterator[str]:
    """A pod that the policies take for the gateway."""
    pod = listener("as-the-gateway", "edge", GATEWAY)
    start(kubectl, [pod])
    yield "as-the-gateway"
    kubectl.delete([pod])


def test_the_site_comes_up_and_the_page_shows_a_goal(
    kubectl: Kubectl, site: Site, gateway: str, figures: Callable[..., None]
) -> None:
    health, added, page = json.loads(kubectl.python("edge", gateway, ASK))
    site.sql("TRUNCATE goals")
    figures(
        **{f"{step}": f"{seconds} s" for step, seconds in site.seconds.items()},
        database="a stand-in with TLS" if site.standin else "CloudNativePG",
        way_in="the Service" if missing("gateway", kubectl) else "the gateway",
    )
    assert health == [200, "OK"]
    assert added[0] == 303
    assert (page[0], "seen on a cluster" in page[1]) == (200, True)


def test_the_database_is_reached_by_tls_alone(site: Site) -> None:
    used = site.sql(
        "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'goals_user'"
    )
    assert used == "t"


def test_control_another_ca_keeps_the_service_from_the_database(kubectl: Kubectl, site: Site) -> None:
    """Were the certificate not checked, a stand-in without the right one would pass as well."""
    if not site.standin:
        pytest.skip("this control is about the stand-in: CloudNativePG issues its own certificates")
    template = site.rendered("Deployment", "goals")["spec"]["template"]
    spec = template["spec"]
    next(one for one in spec["volumes"] if one["name"] == "database-ca")["secret"]["secretName"] = "other-ca"
    metadata = {"name": "other-ca", "namespace": "goals", "labels": {**template["metadata"]["labels"], OURS: "yes"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec | {"initContainers": [], "containers": spec["initContainers"], "restartPolicy": "Never"},
    }
    brought = [secret("other-ca", ca_crt=trustme.CA().cert_pem.bytes()), pod]
    kubectl.apply(brought)
    try:
        failed = "--for=jsonpath={.status.phase}=Failed"
        kubectl("wait", failed, "pod/other-ca", "--namespace", "goals", "--timeout=90s")
        assert "certificate" in kubectl("logs", "pod/other-ca", "--namespace", "goals")
    finally:
        kubectl.delete(brought)
