"""The check of the backups: what it makes is in no manifest, so it is compared here with what it is made from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from goals.limits import Limits
from tools.lint import __main__ as lint
from tools.lint.inventory import first, get_path
from tools.lint.manifests import ROOT, Manifest, name, read, render
from tools.lint.references import references
from tools.lint.schemas import Schemas

FOLDER = ROOT / "components/restore-check"
SITE = ROOT / "overlays/aks/site/site.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[str, Manifest]:
    """The check with the site that it is installed beside."""
    rendered = [*render(ROOT / "overlays/aks/restore-check"), *render(ROOT / "overlays/aks")]
    return {name(one): one for one in rendered}


@pytest.fixture(scope="module")
def scratch(objects: dict[str, Manifest]) -> Any:
    (settings,) = (one for one in objects.values() if "cluster.json" in one.get("data", {}))
    return json.loads(settings["data"]["cluster.json"])


def test_the_cluster_is_one_that_the_api_server_accepts(scratch: Manifest) -> None:
    schemas = Schemas(Path(os.environ.get("CRDS") or lint.CRDS))
    assert schemas.problems(scratch) == []
    broken = scratch | {"spec": scratch["spec"] | {"instance": 1}}
    assert schemas.problems(broken)


def test_what_the_cluster_needs_is_there(objects: dict[str, Manifest], scratch: Manifest) -> None:
    secrets = {"Secret goals/goals-db-app", "Secret goals/goals-db-ca"}  # the operator makes them for goals-db
    made = objects.keys() | secrets
    needed = {str(one) for one in references(scratch)}
    assert secrets < needed | {f"Secret goals/{first(scratch, 'spec.bootstrap.recovery.secret.name')}"}
    assert needed <= made
    assert scratch["spec"]["serviceAccountName"] == "goals-db"


def test_the_check_may_do_this_and_nothing_else(objects: dict[str, Manifest], scratch: Manifest) -> None:
    (rule,) = objects["Role goals/restore-check"]["rules"]
    assert rule == {
        "apiGroups": ["postgresql.cnpg.io"],
        "resources": ["clusters"],
        "resourceNames": [scratch["metadata"]["name"]],
        "verbs": ["get", "create", "patch", "delete"],
    }
    bound = [
        one
        for one in objects.values()
        if {"kind": "ServiceAccount", "name": "restore-check", "namespace": "goals"} in one.get("subjects", [])
    ]
    assert [name(one) for one in bound] == ["RoleBinding goals/restore-check"]


def test_the_cluster_is_like_the_one_that_the_backups_are_of(objects: dict[str, Manifest], scratch: Manifest) -> None:
    database = objects["Cluster goals/goals-db"]["spec"]
    spec = scratch["spec"]
    assert spec["imageCatalogRef"] == database["imageCatalogRef"]
    (archived,) = get_path(database, "plugins[].parameters")
    (restored,) = get_path(spec, "externalClusters[].plugin.parameters")
    assert restored == archived
    assert "plugins" not in spec, "it would archive into the folder that it came from"
    # PostgreSQL refuses to replay the log with fewer.
    assert first(spec, "postgresql.parameters.max_connections") == first(
        database, "postgresql.parameters.max_connections"
    )
    assert spec["storage"]["size"] == database["storage"]["size"]
    assert "storageClass" not in spec["storage"], "that of goals-db keeps its volumes"
    assert spec["postgresql"]["pg_hba"] == database["postgresql"]["pg_hba"]


def test_the_check_has_time_for_what_it_waits_for(objects: dict[str, Manifest]) -> None:
    job = objects["CronJob goals/restore-check"]["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    limits = Limits()
    assert job["activeDeadlineSeconds"] > limits.restore_patience + limits.restore_connect + limits.removal_patience
    assert pod["terminationGracePeriodSeconds"] > limits.removal_patience


def test_the_image_is_the_sites(objects: dict[str, Manifest]) -> None:
    (site,) = read(SITE.read_text(encoding="utf-8"))
    (image,) = get_path(
        objects["CronJob goals/restore-check"], "spec.jobTemplate.spec.template.spec.containers[].image"
    )
    assert image == site["data"]["image"]
