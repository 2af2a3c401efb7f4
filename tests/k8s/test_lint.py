"""What the checks of the manifests must catch, each shown by the smallest object that is wrong in that way."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.lint import __main__ as lint, changes
from tools.lint.manifests import ROOT, Manifest, RenderError, name, read, render
from tools.lint.schemas import Schemas
from tools.lint.tree import Tree, find_misplaced


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    return Schemas(Path(os.environ.get("CRDS") or lint.CRDS))


def manifest(text: str) -> Manifest:
    (one,) = read(text)
    return one


def route(**fields: Any) -> Manifest:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "a", "namespace": "b"},
        "spec": {},
    } | fields


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (route(apiVersion="gateway.networking.k8s.io/v1alpha2"), "is not served"),
        (route(spec={"hostname": ["a.example"]}), "'hostname' was unexpected"),
        (route(spec={"rules": [{"backendRefs": [{"name": "a", "prot": 80}]}]}), "'prot' was unexpected"),
        (route(spec={"hostnames": ["UPPER.example"]}), "does not match"),
        (route(metadata={"name": "a"}), "metadata.namespace is missing"),
        (route(kind="HttpRoute"), "no such kind"),
        ({"kind": "ConfigMap"}, "apiVersion and kind are missing"),
        (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "namespace": "b"}},
            "is cluster-scoped",
        ),
        (
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "b"}, "spec": {"prots": []}},
            "'prots'",
        ),
        ({"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget", "metadata": {"name": "a"}}, "no such kind"),
        (
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "b"}, "spec": {}},
            "required",
        ),
        (
            {
                "apiVersion": "cert-manager.io/v1",
                "kind": "ClusterIssuer",
                "metadata": {"name": "a", "namespace": "b"},
                "spec": {"selfSigned": {}},
            },
            "is cluster-scoped",
        ),
    ],
)
def test_what_the_api_server_would_refuse_is_a_problem(schemas: Schemas, wrong: Manifest, said: str) -> None:
    assert said in "; ".join(schemas.problems(wrong))


def test_fields_that_a_custom_resource_keeps_open_stay_open(schemas: Schemas) -> None:
    assert schemas.problems(route()) == []
    (password,) = read((ROOT / "components/secrets/generated/password.yaml").read_text())
    assert schemas.problems(password) == []
    proxy = manifest((ROOT / "components/gateway/nginxproxy.yaml").read_text())
    proxy["spec"]["kubernetes"]["service"]["patches"] = [{"type": "Merge", "value": {"whatever": {"there": "is"}}}]
    assert schemas.problems(proxy) == []


def test_a_folder_without_crds_is_no_clean_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint.main(["--crds", str(tmp_path), str(ROOT / "base/service.yaml")]) == 2
    assert "run `make crds`" in capsys.readouterr().err


def test_files_are_checked_and_each_finding_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\n---\n" * 2)
    assert lint.main([str(file)]) == 1
    assert capsys.readouterr().out.startswith(f"{file}: ConfigMap b/a: is defined twice; the second one wins [")
    file.write_text("{")
    assert lint.main([str(file)]) == 2
    assert lint.main([str(tmp_path / "none.yaml")]) == 2


def test_a_kustomization_that_does_not_build_is_named(tree: Path) -> None:
    (tree / "base/service.yaml").unlink()
    with pytest.raises(RenderError, match="overlays/local"):
        render(tree / "overlays/local")


def test_a_step_that_the_installer_forgets_is_found(tree: Path) -> None:
    assert list(find_misplaced(Tree(tree), "install-order")) == []
    script = tree / "platform/install.sh"
    script.write_text(script.read_text().replace("ORDER=(namespaces gateway-api ", "ORDER=(namespaces "))
    (finding,) = find_misplaced(Tree(tree), "install-order")
    assert (finding.where, finding.what) == ("platform/install.sh", "gateway-api")


def test_where_no_gateway_asks_for_certificates_none_need_be_made(tmp_path: Path) -> None:
    assert list(find_misplaced(Tree(tmp_path), "gateway-certificates")) == []


def test_no_immutable_field_follows_the_image() -> None:
    before = render(ROOT / "overlays/local")
    after = changes.with_image(before, "goals:dev", "goals:next")
    assert json.dumps(before) != json.dumps(after)
    assert list(changes.find_refused("local", before, after)) == []


@pytest.mark.parametrize(
    ("kind", "version", "spec"),
    [
        ("Deployment", "apps/v1", {"selector": {"matchLabels": {"version": "goals:dev"}}}),
        ("Job", "batch/v1", {"template": {"spec": {"containers": [{"name": "a", "image": "goals:dev"}]}}}),
        ("StatefulSet", "apps/v1", {"volumeClaimTemplates": [{"metadata": {"labels": {"image": "goals:dev"}}}]}),
    ],
)
def test_an_immutable_field_that_follows_the_image_is_found(kind: str, version: str, spec: dict[str, Any]) -> None:
    before: list[Manifest] = [{"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": spec}]
    (finding,) = changes.find_refused("here", before, changes.with_image(before, "goals:dev", "goals:next"))
    assert finding.what == f"{kind} a"
    # part argocd
    hook = {"argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation"}
    before[0]["metadata"]["annotations"] = hook
    assert list(changes.find_refused("here", before, changes.with_image(before, "goals:dev", "goals:next"))) == []
    # end argocd


# What the manifests promise beyond their schemas.


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield key, one
            yield from walk(one)
    elif isinstance(value, list):
        for one in value:
            yield from walk(one)


def test_nothing_is_beta_floating_or_secret(everything: dict[str, list[Manifest]]) -> None:
    for where, manifests in everything.items():
        for one in manifests:
            assert "beta" not in one["apiVersion"], (where, name(one))
            assert one["kind"] != "Secret", (where, name(one))
            for key, value in walk(one):
                if key == "image" and isinstance(value, str):
                    assert ":" in value.rpartition("/")[2], (where, name(one), value)
                    assert not value.endswith(":latest"), (where, name(one), value)
                assert key != "server.insecure", (where, name(one))


def test_policies_of_the_gateway_never_share_a_path_with_another_route(everything: dict[str, list[Manifest]]) -> None:
    """NGINX Gateway Fabric compares host and path, whatever the match's type and method, and refuses the policy."""
    seen: dict[tuple[str, str, str], str] = {}
    for one in everything["overlays/local"]:
        if one["kind"] != "HTTPRoute" or "hostnames" not in one["spec"]:
            continue
        for rule in one["spec"]["rules"]:
            for match in rule["matches"]:
                key = (one["spec"]["parentRefs"][0]["sectionName"], one["spec"]["hostnames"][0], match["path"]["value"])
                assert seen.setdefault(key, name(one)) == name(one)


def test_every_namespace_of_ours_denies_by_default_and_names_its_pod_security(
    everything: dict[str, list[Manifest]],
) -> None:
    manifests = [*everything["overlays/local"], *render(ROOT / "platform/namespaces")]
    spaces = {one["metadata"]["name"]: one["metadata"]["labels"] for one in manifests if one["kind"] == "Namespace"}
    denied = {one["metadata"]["namespace"] for one in manifests if name(one).endswith("/default-deny")}
    # node-exporter lives in the network of its node, where no policy reaches.
    assert spaces.keys() - denied == {"node-exporter"}
    levels = {namespace_of: labels["pod-security.kubernetes.io/enforce"] for namespace_of, labels in spaces.items()}
    assert {namespace_of for namespace_of, level in levels.items() if level != "restricted"} == {
        "monitoring",
        "node-exporter",
    }


def test_both_ends_of_each_flow_are_open(everything: dict[str, list[Manifest]]) -> None:
    """The database takes what the service sends, at the port the operator listens on."""
    policies = {
        name(one).split(" ")[1]: one["spec"] for one in everything["overlays/local"] if one["kind"] == "NetworkPolicy"
    }
    for sender, receiver in (
        ("goals/goals-to-database", "goals/database-from-goals"),
        ("edge/gateway-to-goals", "goals/goals-from-gateway"),
        ("edge/gateway-to-control-plane", "nginx-gateway/control-plane-from-gateway"),
        # part argocd
        ("edge/gateway-to-argocd", "argocd/server-from-gateway"),
        # end argocd
        ("edge/gateway-to-acme-solver", "edge/acme-solver-from-gateway"),
        ("cnpg-system/operator-to-database", "goals/database-from-operator"),
        # part azure
        ("cnpg-system/operator-to-barman", "cnpg-system/barman-from-operator"),
        # end azure
    ):
        (out,), (into,) = policies[sender]["egress"], policies[receiver]["ingress"]
        assert out["ports"] == into["ports"], (sender, receiver)
        assert out["to"][0].get("podSelector", {}) == policies[receiver]["podSelector"]
        assert into["from"][0].get("podSelector", {}) == policies[sender]["podSelector"]
    (local,) = policies["goals/database-to-api-server"]["egress"]
    assert [port["port"] for port in local["ports"]] == [443, 6443]
