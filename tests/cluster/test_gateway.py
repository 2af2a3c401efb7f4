"""The gateway redirects, speaks TLS and limits as k8s/README.md says, from where its clients are."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.kubectl import OURS, Kubectl
from tests.cluster.pods import listener, start
from tests.cluster.site import Site

pytestmark = pytest.mark.needs("nodes", "gateway", "cert-manager")

NOT_TRIED = ("slow clients", "an ACME challenge", "a replaced gateway pod", "one bad answer of every replica")
"""Seen on a cluster with the operators on 2026-11-28, and not tried here."""

ASK = """
import http.client, json, ssl, sys
trust = ssl.create_default_context(cadata=sys.argv[1])
class Tls(http.client.HTTPSConnection):
    def connect(self):
        http.client.HTTPConnection.connect(self)
        self.sock = trust.wrap_socket(self.sock, server_hostname="goals.localhost")
def ask(kind, port, method, path, body=None):
    edge = kind("edge-nginx.edge.svc", port, timeout=20)
    edge.request(method, path, body=body, headers={"Host": "goals.localhost", "Content-Type": "application/json"})
    answer = edge.getresponse()
    return [answer.status, answer.headers.get("Location", ""), answer.headers.get("Retry-After", "")]
large = json.dumps({"goal_name": "x" * 17000})
print(json.dumps({
    "redirect": ask(http.client.HTTPConnection, 80, "GET", "/"),
    "page": ask(Tls, 443, "GET", "/"),
    "large": ask(Tls, 443, "POST", "/api/v1/goals", large),
    "burst": [ask(Tls, 443, "GET", "/api/v1/goals") for _ in range(150)],
}))
"""


@pytest.fixture(scope="module")
def answers(kubectl: Kubectl, site: Site) -> Iterator[dict[str, Any]]:
    ca = kubectl(
        "get",
        "secret",
        "private-ca",
        "--namespace=cert-manager",
        '--output=go-template={{index .data "tls.crt" | base64decode}}',
    )
    client = listener("client", OURS, {})
    start(kubectl, [client])
    yield json.loads(kubectl.python(OURS, "client", ASK, ca))
    kubectl.delete([client])


def test_http_is_redirected_and_https_is_trusted(answers: dict[str, Any]) -> None:
    assert answers["redirect"][:2] == [301, "https://goals.localhost/"]
    assert answers["page"][0] == 200


def test_a_large_body_and_a_burst_are_refused(answers: dict[str, Any], figures: Callable[..., None]) -> None:
    refused = [one for one in answers["burst"] if one[0] == 429]
    figures(refused_of_150=len(refused), not_tried="; ".join(NOT_TRIED))
    assert answers["large"][0] == 413
    assert refused
    assert {one[2] for one in refused} == {"1"}
