"""Every overlay and component is accepted by a real API server without a warning, and again without a change."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.kubectl import Kubectl, KubectlError, warnings
from tests.cluster.visit import identity, renders
from tools.lint.__main__ import PARTS
from tools.lint.manifests import ROOT, Manifest, is_remote

BY_HAND = (
    ("overlays/local", "components/loadtest"),
    # part azure
    (
        "overlays/aks",
        # part argocd
        "argocd/server",
        # end argocd
        "overlays/aks/restore",
        "overlays/aks-restored",
        "overlays/aks/loadtest",
        # part argocd
        "argocd",
        # end argocd
    ),
    # end azure
)
"""What k8s/README.md applies, in its order, one site after the other."""

LEFT_OUT = [path for path in renders() if is_remote(ROOT / path)]
"""What begins with a release's file from the network: `make k8s` renders these over the files that were published."""

Figures = Callable[..., None]


def apply(kubectl: Kubectl, folder: str, *options: str) -> list[str]:
    """Apply a folder as README does, and give the warnings."""
    done = kubectl.run("apply", "--server-side", *options, "-k", str(ROOT / folder))
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return warnings(done.stderr)


def is_different(kubectl: Kubectl, *words: str, stdin: str = "") -> str:
    """What another apply would change."""
    done = kubectl.run("diff", "--server-side", *words, stdin=stdin)
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout


def states(kubectl: Kubectl, folder: str) -> dict[str, tuple[str, int]]:
    """Who each object is, and how often what is wanted of it has changed; the autoscaler changes the Deployment."""
    items = kubectl.get("-k", str(ROOT / folder))
    found = {identity(one): (one["metadata"]["uid"], one["metadata"].get("generation", 0)) for one in items}
    found.pop("Deployment goals/goals", None)
    return found


def rest() -> list[str]:
    """What has an object that nobody applies so: Argo CD's renders, and components before an overlay patches them."""
    by_hand = [one for folders in BY_HAND for folder in folders for one in renders()[folder]]
    parts = {path for path in renders() if Path(path).name in PARTS}
    found = {path for path, manifests in renders().items() if any(one not in by_hand for one in manifests)}
    return sorted(found - parts - set(LEFT_OUT))


def test_what_is_not_applied_by_hand_is_accepted_without_a_warning(namespaces: Kubectl, figures: Figures) -> None:
    warned = {folder: found for folder in rest() if (found := apply(namespaces, folder, "--dry-run=server"))}
    figures(kustomizations=len(rest()), left_out=", ".join(LEFT_OUT))
    assert not warned


@pytest.mark.parametrize(
    "folders",
    [
        pytest.param(BY_HAND[0], id="local"),
        # part azure
        pytest.param(BY_HAND[1], id="aks", marks=pytest.mark.full),
        # end azure
    ],
)
def test_what_the_page_applies_is_accepted_and_a_second_time_nothing_changes(
    platform: Kubectl, folders: tuple[str, ...], figures: Figures
) -> None:
    objects = 0
    try:
        for folder in folders:
            assert not apply(platform, folder), folder
            before = states(platform, folder)
            assert not is_different(platform, "-k", str(ROOT / folder)), folder
            assert not apply(platform, folder), folder
            assert states(platform, folder) == before, folder
            objects += len(renders()[folder])
    finally:
        take_away(platform, folders)
    figures(kustomizations=len(folders), objects=objects)


@pytest.mark.full
def test_a_plain_client_side_apply_works_too(platform: Kubectl) -> None:
    seen = []
    try:
        for _ in range(2):
            done = platform.run("apply", "-k", str(ROOT / "overlays/local"))
            assert (done.returncode, warnings(done.stderr)) == (0, []), done.stderr
            seen.append(states(platform, "overlays/local"))
    finally:
        take_away(platform, ("overlays/local",))
    assert seen[0] == seen[1]


def take_away(kubectl: Kubectl, folders: tuple[str, ...]) -> None:
    """Delete what some folders have made, with the namespaces that are theirs."""
    kubectl.delete([one for folder in folders for one in renders()[folder]])


# Controls: what must be noticed.


def test_control_a_field_that_does_not_exist_is_refused(namespaces: Kubectl) -> None:
    service: Manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "broken", "namespace": "goals"}}
    with pytest.raises(KubectlError, match=r"unknown field|field not declared"):
        namespaces.apply([service | {"spec": {"prots": [{"port": 1}]}}], "--dry-run=server")


def test_control_a_pod_that_is_not_restricted_is_warned_of(namespaces: Kubectl) -> None:
    deployment = next(one for one in renders()["overlays/local"] if one["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    template = deployment["spec"]["template"] | {"spec": spec | {"hostNetwork": True}}
    broken = deployment | {"spec": deployment["spec"] | {"template": template}}
    assert warnings(namespaces.apply([broken], "--dry-run=server"))


def test_control_a_change_shows_as_a_difference(namespaces: Kubectl, tmp_path: Path) -> None:
    account = next(one for one in renders()["overlays/local"] if one["kind"] == "ServiceAccount")
    namespaces.apply([account])
    (tmp_path / "kustomization.yaml").write_text("resources: [account.json]\n")
    changed = account | {"automountServiceAccountToken": True}
    (tmp_path / "account.json").write_text(json.dumps(changed))
    try:
        assert is_different(namespaces, "-k", str(tmp_path))
    finally:
        namespaces.delete([account])
