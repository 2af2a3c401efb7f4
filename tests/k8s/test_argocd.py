"""Argo CD's Applications bring what is otherwise applied by hand: in the same versions, in order, and by right."""

from pathlib import Path

from tools.lint.manifests import ROOT, Manifest, kustomizations, name, render


def test_applications_have_the_versions_that_are_installed_by_hand(everything: dict[str, list[Manifest]]) -> None:
    lines = [
        line.split() for line in (ROOT / "platform/charts.txt").read_text().splitlines() if not line.startswith("#")
    ]
    by_hand = {
        release: (chart.removeprefix("oci://").rpartition("/")[0], version, namespace)
        for release, namespace, chart, version in lines
    }
    by_git = {
        one["metadata"]["name"]: (
            one["spec"]["sources"][0]["repoURL"],
            one["spec"]["sources"][0]["targetRevision"],
            one["spec"]["destination"]["namespace"],
        )
        for one in everything["argocd/apps"]
        if one["kind"] == "Application" and "sources" in one["spec"]
    }
    assert by_hand == by_git
    assert len(by_git) == 4


def test_argo_cd_may_do_what_the_manifests_need_and_git_brings_no_secret(everything: dict[str, list[Manifest]]) -> None:
    assert_permitted(everything, [*everything["argocd/goals"], *everything["argocd/server"]])


def assert_permitted(everything: dict[str, list[Manifest]], objects: list[Manifest]) -> None:
    (project,) = (one["spec"] for one in everything["argocd/apps"] if name(one) == "AppProject argocd/goals")
    inside = {(rule["group"], rule["kind"]) for rule in project["namespaceResourceWhitelist"]}
    outside = {(rule["group"], rule["kind"]) for rule in project["clusterResourceWhitelist"]}
    namespaces = {destination["namespace"] for destination in project["destinations"]}
    assert ("", "Secret") not in inside | outside
    for one in objects:
        group = one["apiVersion"].rpartition("/")[0]
        namespace = one["metadata"].get("namespace")
        assert (group, one["kind"]) in (inside if namespace else outside), name(one)
        assert namespace is None or namespace in namespaces, name(one)


def test_the_paths_of_applications_exist(everything: dict[str, list[Manifest]]) -> None:
    sources = [one["spec"]["source"] for one in everything["argocd/apps"] if "source" in one["spec"]]
    assert sources
    assert {ROOT.parent / source["path"] for source in sources} <= set(kustomizations())


def test_the_migration_comes_after_the_database_and_before_the_service(everything: dict[str, list[Manifest]]) -> None:
    waves = waves_of(everything["argocd/goals"])
    order = [
        "Namespace goals",
        "ExternalSecret monitoring/grafana-admin",
        "Cluster goals/goals-db",
        "Job goals/migrate",
        "Deployment goals/goals",
        "HTTPRoute goals/goals",
    ]
    assert sorted(order, key=waves.__getitem__) == order
    assert len({waves[one] for one in order}) == len(order)


def waves_of(objects: list[Manifest]) -> dict[str, int]:
    return {
        name(one): int((one["metadata"].get("annotations") or {}).get("argocd.argoproj.io/sync-wave", 0))
        for one in objects
    }


def test_argo_cd_can_bring_a_major_upgrade(everything: dict[str, list[Manifest]], tree: Path) -> None:
    """With the changes that docs/major-upgrade.md asks for; the migration finds the database under its new name."""
    kustomization = tree / "argocd/goals/kustomization.yaml"
    upgrade = "../../overlays/aks/upgrade"
    text = kustomization.read_text(encoding="utf-8")
    text = text.replace("- ../../overlays/aks/template\n", f"- {upgrade}/first\n  - {upgrade}/template\n")
    text = text.replace("components:\n", f"components:\n  - {upgrade}/name\n")
    kustomization.write_text(text, encoding="utf-8")
    objects = render(tree / "argocd/goals")
    assert_permitted(everything, objects)
    waves = waves_of(objects)
    assert waves["Service goals/goals-database"] < waves["Job goals/migrate"]
    assert waves["Cluster goals/goals-db-next"] < waves["Job goals/migrate"]


def test_the_job_and_the_init_container_migrate_alike(everything: dict[str, list[Manifest]]) -> None:
    objects = {name(one): one for one in everything["argocd/goals"]}
    (init,) = objects["Deployment goals/goals"]["spec"]["template"]["spec"]["initContainers"]
    (job,) = objects["Job goals/migrate"]["spec"]["template"]["spec"]["containers"]
    assert init == job
