"""The kustomizations over the operators' own release files, rendered with these files as they were published."""

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.lint.crds import is_right, releases
from tools.lint.manifests import Manifest, read

PLATFORM = Path(__file__).resolve().parents[2] / "k8s" / "platform"
RELEASES = Path(os.environ.get("RELEASES") or PLATFORM.parents[1] / ".cache" / "releases")


def render(folder: str, work: Path) -> list[Manifest]:
    """The objects of platform/FOLDER; without a network, as its files stand in $RELEASES already."""
    files = {path: known for path, known in releases().items() if path.rpartition("/")[0] == folder}
    missing = [path for path, (_, digest) in files.items() if not digest or not is_right(RELEASES / path, digest)]
    if missing:
        pytest.skip(
            f"not rendered: {', '.join(missing)} is not in .cache with a recorded checksum (make platform-sums crds)"
        )
    shutil.copytree(PLATFORM / folder, work / folder)
    kustomization = work / folder / "kustomization.yaml"
    text = kustomization.read_text(encoding="utf-8")
    for path, (address, _) in files.items():
        shutil.copy(RELEASES / path, work / folder)
        text = text.replace(address, path.rpartition("/")[2])
    kustomization.write_text(text, encoding="utf-8")
    command = ["kubectl", "kustomize", str(work / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


@pytest.mark.parametrize("folder", sorted({path.rpartition("/")[0] for path in releases()}))
def test_it_renders_with_the_file_that_was_published(folder: str, tmp_path: Path) -> None:
    assert render(folder, tmp_path)


def test_every_file_from_elsewhere_has_a_recorded_sum() -> None:
    assert not [path for path, (_, digest) in releases().items() if not digest]


# part azure
def test_the_backup_plugin_runs_released_images(tmp_path: Path) -> None:
    objects = render("plugin-barman-cloud", tmp_path)
    (plugin,) = (one for one in objects if one["kind"] == "Deployment")
    (container,) = plugin["spec"]["template"]["spec"]["containers"]
    (setting,) = (one for one in container["env"] if one["name"] == "SIDECAR_IMAGE")
    wanted = setting["valueFrom"]["secretKeyRef"]
    (secret,) = (one for one in objects if one["kind"] == "Secret" and one["metadata"]["name"] == wanted["name"])
    sidecar = base64.b64decode(secret["data"][wanted["key"]]).decode()
    version = releases()["plugin-barman-cloud/manifest.yaml"][0].split("/")[-2]
    assert container["image"] == f"ghcr.io/cloudnative-pg/plugin-barman-cloud:{version}"
    assert sidecar == f"ghcr.io/cloudnative-pg/plugin-barman-cloud-sidecar:{version}"


# end azure
# part argocd
def test_argo_cd_gets_its_settings_and_none_of_its_own_policies(tmp_path: Path) -> None:
    objects = render("argocd", tmp_path)
    assert {one["metadata"].get("namespace", "argocd") for one in objects} == {"argocd"}
    assert not [one for one in objects if one["kind"] == "NetworkPolicy"]
    (settings,) = (one for one in objects if one["metadata"]["name"] == "argocd-cm")
    assert "resource.customizations.health.argoproj.io_Application" in settings["data"]


# end argocd
def test_the_database_operator_runs_twice_and_leaves_a_lost_node_soon(tmp_path: Path) -> None:
    objects = render("cloudnative-pg", tmp_path)
    assert not [one for one in objects if one["kind"] == "Namespace"]
    (operator,) = (one for one in objects if one["kind"] == "Deployment")
    assert operator["spec"]["replicas"] == 2
    assert {one["tolerationSeconds"] for one in operator["spec"]["template"]["spec"]["tolerations"]} == {20}


@pytest.mark.parametrize("folder", ["argocd", "cloudnative-pg", "plugin-barman-cloud"])
def test_the_installation_waits_for_each_workload_of_a_release(tmp_path: Path, folder: str) -> None:
    script = [str(PLATFORM / "install.sh"), "--dry-run", folder]
    commands = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    workloads = [one for one in render(folder, tmp_path) if one["kind"] in {"DaemonSet", "Deployment", "StatefulSet"}]
    assert workloads
    for one in workloads:
        assert f"rollout status {one['kind'].lower()}/{one['metadata']['name']} " in commands
    assert "kubectl wait --for=condition=Established" in commands
