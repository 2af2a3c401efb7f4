"""The comment on a pull request: what a change of the manifests means in the cluster."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.lint.manifests import ROOT, includes, is_remote, kustomizations, read

SCRIPT = ROOT.parent / "tools" / "rendered.sh"


@pytest.fixture
def after(tmp_path: Path) -> Path:
    """A second checkout, to be changed."""
    for folder in ("k8s", "observability"):
        shutil.copytree(ROOT.parent / folder, tmp_path / folder, ignore=shutil.ignore_patterns("node_modules"))
    return tmp_path


def compare(after: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [SCRIPT, ROOT.parent, after]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_a_change_is_shown_in_each_overlay_that_has_it(after: Path) -> None:
    assert compare(after).stdout == "No overlay renders differently.\n"
    deployment = after / "k8s/base/deployment.yaml"
    text = deployment.read_text()
    deployment.write_text(text.replace("terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 31"))
    shown = compare(after).stdout
    for overlay in (
        "overlays/local",
        # part azure
        "overlays/aks",
        "overlays/aks-restored",
        "overlays/aks-other-region",
        # end azure
        # part argocd
        "argocd/goals",
        # end argocd
    ):
        assert f"<summary>k8s/{overlay}: 2 lines</summary>" in shown
    assert "\n-      terminationGracePeriodSeconds: 30\n+      terminationGracePeriodSeconds: 31\n" in shown
    too_long = compare(after, LIMIT="100")
    assert "too long for a comment" in too_long.stdout
    assert "- k8s/overlays/local: 2 lines" in too_long.stdout
    assert "terminationGracePeriodSeconds: 31" in too_long.stderr


def test_a_side_that_does_not_render_is_an_error(after: Path) -> None:
    (after / "k8s/base/service.yaml").unlink()
    done = compare(after)
    assert done.returncode == 1
    assert "k8s/overlays/local does not render" in done.stderr


def test_every_kustomization_that_is_applied_is_compared() -> None:
    folders = {folder.resolve() for folder in kustomizations()}
    included = {
        entry for folder in folders for field in ("resources", "components") for entry in includes(folder, field)
    }
    applied = {
        str(folder.relative_to(ROOT.parent))
        for folder in folders - included
        if not is_remote(folder) and read((folder / "kustomization.yaml").read_text())[0]["kind"] == "Kustomization"
    }
    (listed,) = re.findall(r"(?s)^overlays=\(.*?\)$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    command = ["/bin/bash", "-c", f"{listed}; printf '%s\\n' \"${{overlays[@]}}\""]
    assert applied <= set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
