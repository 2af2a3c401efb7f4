"""The site on AKS: its one file of values is filled in whole or not at all, and a restored database can take over."""

import json
import re
from pathlib import Path

from tools.lint import changes, site
from tools.lint.manifests import name, render


def forgotten(tree: Path) -> dict[str, str]:
    return {finding.what: finding.problem for finding in site.find_forgotten(tree)}


def test_the_template_may_be_empty_and_a_site_may_be_full_but_nothing_between(tree: Path) -> None:
    assert forgotten(tree) == {}
    file = tree / site.SITE
    untouched = file.read_text()
    file.write_text(untouched.replace("goals.fill-me-in.example", "goals.example.org"))
    assert set(forgotten(tree)) == site.PROBES.keys() - site.HAS_DEFAULT - {"host"}
    site.fill(tree)
    assert forgotten(tree) == {}
    file.write_text(file.read_text().replace(f"goals:1.2.3@sha256:{'1' * 64}", f"goals:1.2.3@sha256:{'0' * 64}"))
    assert set(forgotten(tree)) == {"image"}
    file.write_text(untouched + "  unknown: value\n")
    assert "tools/lint/site.py" in forgotten(tree)["unknown"]


def test_a_value_without_a_replacement_is_found_from_both_ends(tree: Path) -> None:
    assert list(site.find_unplaced(tree)) == []
    file = tree / site.FOLDER / "kustomization.yaml"
    text = file.read_text()
    assert text.count("[spec.provider.azurekv.vaultUrl]") == 1
    file.write_text(
        text.replace("[spec.provider.azurekv.vaultUrl]", "[metadata.name]").replace(
            "{kind: SecretStore}", "{kind: Nothing}"
        )
    )
    found = {(finding.where, finding.what) for finding in site.find_unplaced(tree)}
    assert ("overlays/aks", "fill-me-in") in found
    assert (str(site.SITE), "vaultUrl") in found


def test_no_immutable_field_follows_any_value_of_the_site(tree: Path) -> None:
    before = render(tree / "overlays/aks")
    site.fill(tree)
    after = render(tree / "overlays/aks")
    assert site.PROBES["image"] in json.dumps(after)
    assert list(changes.find_refused("aks", before, after)) == []


def test_after_the_switch_nothing_of_the_service_uses_the_old_database(tree: Path) -> None:
    # part argocd
    file = tree / "argocd/goals/kustomization.yaml"
    text = file.read_text()
    assert text.count("components:\n") == 1
    file.write_text(text.replace("components:\n", "components:\n  - ../../overlays/aks/restore/switch\n"))
    # end argocd
    for where in (
        # part argocd
        "argocd/goals",
        # end argocd
        "overlays/aks-restored",
        "overlays/aks-other-region",
    ):
        manifests = {name(one): one for one in render(tree / where)}
        pods = [manifests["Deployment goals/goals"]]
        # part argocd
        if where == "argocd/goals":
            pods.append(manifests["Job goals/migrate"])
        # end argocd
        used = set(re.findall(r'"(?:secretName|name)": "(goals-db[^"]*)"', json.dumps(pods)))
        assert used == {"goals-db-restored-app", "goals-db-restored-ca"}
        (settings,) = (one for key, one in manifests.items() if key.startswith("ConfigMap goals/goals-"))
        assert settings["data"]["DB_STANDBY_HOST"] == "goals-db-restored-all"
        restored = manifests["Cluster goals/goals-db-restored"]["spec"]
        archived = restored["plugins"][0]["parameters"]["serverName"]
        assert archived != restored["externalClusters"][0]["plugin"]["parameters"]["serverName"]
