"""The shell scripts: what they would do, what they refuse, and that a second run changes nothing."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.k8s.scripts import K8S, run
from tools.lint import crds

SCRIPTS = sorted(K8S.rglob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(K8S)))
def test_scripts_are_clean_to_shellcheck(script: Path) -> None:
    assert shutil.which("shellcheck"), "shellcheck is not installed (Debian and Ubuntu: apt-get install shellcheck)"
    done = subprocess.run(["shellcheck", "-x", script], capture_output=True, text=True, check=False, cwd=K8S.parent)  # noqa: S607
    assert done.returncode == 0, done.stdout


def test_unknown_arguments_are_refused_with_the_usage() -> None:
    done = run("platform/install.sh", "--frobnicate")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "usage: k8s/platform/install.sh" in done.stderr


def test_install_dry_run_has_the_order_and_the_pinned_versions() -> None:
    done = run("platform/install.sh", "--dry-run", "aks")
    assert done.returncode == 0, done.stderr
    order = [
        "namespaces",
        "gateway-api",
        "cert-manager",
        "cloudnative-pg",
        "nginx-gateway-fabric",
        # part azure
        "plugin-barman-cloud",
        # end azure
        # part argocd
        "argocd",
        # end argocd
    ]
    lines = done.stdout.splitlines()
    places = [next(number for number, line in enumerate(lines) if f" {step}" in line) for step in order]
    assert places == sorted(places)
    helm = [line for line in lines if "helm upgrade" in line]
    assert len(helm) == 4
    assert all(" --version " in line for line in helm)
    # part azure
    local = run("platform/install.sh", "--dry-run", "local").stdout
    assert "barman" not in local
    assert "argocd" not in local
    # end azure


def test_install_waits_for_all_that_it_installs_and_names_the_step_that_hangs(tmp_path: Path) -> None:
    for tool, code in (("kubectl", 'case "$*" in *cnpg*rollout*) exit 1 ;; esac'), ("helm", ":")):
        (tmp_path / tool).write_text(f'#!/bin/sh\necho "{tool} $*" >> "{tmp_path}/calls"\n{code}\n')
        (tmp_path / tool).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = run("platform/install.sh", "local", env=environment)
    assert done.returncode == 1
    assert "error: step cloudnative-pg did not finish" in done.stderr
    assert "kubectl --namespace cnpg-system get pods,events" in done.stderr
    assert "# cloudnative-pg (5 of 8)" in done.stdout
    assert "external-secrets" not in (tmp_path / "calls").read_text()
    installed = run(
        "platform/install.sh", "namespaces", "gateway-api", "kube-prometheus-stack", "argocd", env=environment
    )
    assert installed.returncode == 0, installed.stderr
    made = (tmp_path / "calls").read_text()
    for waited in (
        "crd/gateways.gateway.networking.k8s.io",
        "wait --for=create statefulset/prometheus-kube-prometheus-stack-prometheus",
        # part argocd
        "rollout status deployment/argocd-repo-server",
        "rollout status statefulset/argocd-application-controller",
        # end argocd
    ):
        assert waited in made, waited


def test_published_files_are_fetched_once_and_only_with_the_known_bytes(tmp_path: Path) -> None:
    there = tmp_path / "there.yaml"
    there.write_text("kind: CustomResourceDefinition\n")
    other = hashlib.sha256(b"other bytes").hexdigest()
    with pytest.raises(ValueError, match="it is not the file"):
        crds.fetch(tmp_path / "here", {"a/a.yaml": (there.as_uri(), other)})
    assert not (tmp_path / "here").exists()
    files = {"a/a.yaml": (there.as_uri(), hashlib.sha256(there.read_bytes()).hexdigest())}
    assert crds.fetch(tmp_path / "here", files) == 1
    assert crds.fetch(tmp_path / "here", files) == 0
