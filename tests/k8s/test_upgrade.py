"""The site while PostgreSQL moves to its next major version: what one object says of another in another manner."""

from pathlib import Path

from tools.lint.inventory import first, get_path
from tools.lint.manifests import ROOT, Manifest, name, render


def render_objects(*folders: str) -> dict[str, Manifest]:
    return {name(one): one for folder in folders for one in render(ROOT / folder)}


def test_the_name_that_is_led_over_is_the_one_that_the_service_verifies() -> None:
    objects = render_objects("overlays/aks-upgrade")
    service = objects["Service goals/goals-database"]
    pod = objects["Deployment goals/goals"]["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        (host,) = (one for one in container["env"] if one["name"] == "DB_HOST")
        assert host == {"name": "DB_HOST", "value": "goals-database"}
    for cluster in ("goals-db", "goals-db-next"):
        spec = objects[f"Cluster goals/{cluster}"]["spec"]
        assert "goals-database" in spec["certificates"]["serverAltDNSNames"]
    following = objects["Cluster goals/goals-db-next"]["spec"]
    (authority,) = {one["secret"]["secretName"] for one in pod["volumes"] if one["name"] == "database-ca"}
    assert following["certificates"]["serverCASecret"] == authority
    (password,) = {one["secret"]["secretName"] for one in pod["volumes"] if one["name"] == "database"}
    assert following["bootstrap"]["initdb"]["secret"]["name"] == password
    assert service["spec"]["selector"]["cnpg.io/cluster"] == "goals-db"


def test_each_cluster_follows_the_other_by_what_that_one_publishes() -> None:
    objects = render_objects("overlays/aks-upgrade", "overlays/aks/upgrade/forth", "overlays/aks/upgrade/back")
    for follower, source in (("goals-db-next", "goals-db"), ("goals-db", "goals-db-next")):
        subscription = objects[f"Subscription goals/{follower}"]["spec"]
        publication = objects[f"Publication goals/{source}"]["spec"]
        cluster = objects[f"Cluster goals/{follower}"]["spec"]
        assert subscription["cluster"]["name"] == follower
        assert publication["cluster"]["name"] == source
        assert subscription["publicationName"] == publication["name"]
        assert subscription["parameters"]["origin"] == "none", "else each change would go round forever"
        (external,) = cluster["externalClusters"]
        assert external["name"] == subscription["externalClusterName"] == source
        assert external["connectionParameters"]["host"] == f"{source}-rw"
    assert first(objects["Subscription goals/goals-db"], "spec.parameters.create_slot") == "false"


def test_no_cluster_archives_where_another_does() -> None:
    objects = render_objects("overlays/aks-upgrade")
    clusters = [one for one in objects.values() if one["kind"] == "Cluster"]
    folders = [*get_path(clusters, "[].spec.plugins[].parameters.serverName")]
    assert len(folders) == len(set(folders)) == len(clusters)


def test_the_page_names_every_folder_of_the_upgrade() -> None:
    page = (ROOT.parent / "docs/major-upgrade.md").read_text(encoding="utf-8")
    folders: list[Path] = [one for one in (ROOT / "overlays/aks/upgrade").iterdir() if one.is_dir()]
    for folder in folders:
        included = folder.name == "first"  # by aks-upgrade alone
        assert included or f"k8s/overlays/aks/upgrade/{folder.name}" in page
