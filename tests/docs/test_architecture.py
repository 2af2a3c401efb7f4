"""The picture of the architecture against the manifests that it shows."""

import functools
import xml.etree.ElementTree as ET
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

PICTURE = ROOT / "docs/img/architecture.svg"
SVG = "{http://www.w3.org/2000/svg}"
DRAWN = ET.fromstring(PICTURE.read_text(encoding="utf-8"))  # noqa: S314 - a file of this repository


@functools.cache
def manifests() -> list[dict[str, Any]]:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "k8s").rglob("*.yaml")]
    return [each for text in texts for each in yaml.safe_load_all(text) if isinstance(each, dict) and "kind" in each]


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in manifests() if each["kind"] == kind and "metadata" in each}


def with_data(key: str) -> list[ET.Element]:
    found = DRAWN.findall(f".//{SVG}g[@data-{key}]")
    assert found
    return found


def test_every_namespace_is_drawn_and_no_other() -> None:
    drawn = {group.get("data-namespace") for group in with_data("namespace")}
    assert drawn == set(named("Namespace"))


@pytest.mark.parametrize(
    "group", with_data("kind"), ids=lambda group: " ".join(map(group.get, ("data-kind", "data-name")))
)
def test_every_object_that_is_drawn_exists(group: ET.Element) -> None:
    assert group.get("data-name") in named(str(group.get("data-kind")))


@pytest.mark.parametrize("group", with_data("policy"), ids=lambda group: str(group.get("data-policy")))
def test_every_flow_that_is_drawn_is_allowed_at_that_port(group: ET.Element) -> None:
    policy = named("NetworkPolicy")[str(group.get("data-policy"))]
    ports = {str(port["port"]) for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert group.get("data-port") in ports
    assert group.findtext(f"{SVG}text") == group.get("data-port")


def test_every_flow_into_the_service_and_its_database_is_drawn() -> None:
    drawn = {group.get("data-policy") for group in with_data("policy")}
    policies = ROOT / "k8s/components/network-policies/goals"
    into = {path.stem.removeprefix("networkpolicy-") for path in policies.glob("networkpolicy-*-from-*.yaml")}
    # The API server's way for `kubectl exec` is drawn for nobody.
    assert into - drawn == {"database-from-api-server-tunnel"}


def test_the_ports_in_the_picture_are_the_service_s() -> None:
    container = named("Deployment")["goals"]["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8080, "ops": 9464}
    assert f"page, API {ports['http']} · ops {ports['ops']}" in "".join(DRAWN.itertext())
