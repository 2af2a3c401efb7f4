"""The scripts for kind and the guard of the cluster's tests, with stand-ins for the programs that they call."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Writes down each call; knows whether kind has a cluster, and whether that one is ours.
STANDIN = """#!{python} -IS
import pathlib, sys
home = pathlib.Path({home!r})
program, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
call = " ".join([program, *words])
with (home / "calls").open("a") as calls:
    calls.write(call + "\\n")
made = home / "made"
if call == "kind get clusters":
    print("other", *(["goals"] if made.exists() else []), sep="\\n")
elif call.startswith("kind create cluster"):
    made.write_text("ours")
elif call == "kind delete cluster --name goals":
    made.unlink()
elif "get nodes --selector goals/cluster=local" in call and made.read_text() == "ours":
    print("node/goals-control-plane")
elif (home / "fails").exists() and (home / "fails").read_text() in call:
    sys.exit(1)
"""
PROGRAMS = ("kind", "helm", "docker", "kubectl", "make")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder whose `bin` has the stand-ins."""
    (tmp_path / "bin").mkdir()
    for program in PROGRAMS:
        file = tmp_path / "bin" / program
        file.write_text(STANDIN.format(python=sys.executable, home=str(tmp_path)))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def run(home: Path, script: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "HOME": str(home), **variables}
    return subprocess.run(
        [ROOT / "k8s/kind" / script, *words], capture_output=True, text=True, check=False, env=environment
    )


def calls(home: Path) -> list[str]:
    return (home / "calls").read_text().splitlines()


def test_it_makes_the_cluster_and_brings_the_site_in_order(home: Path) -> None:
    done = run(home, "create.sh")
    assert done.returncode == 0, done.stderr
    wanted = [
        "kind create cluster --config k8s/overlays/local/kind.yaml",
        "make image",
        "kind load docker-image goals:dev goals-loadtest:dev --name goals",
        "kubectl apply --server-side --kustomize namespaces",
        "kubectl apply --server-side -k k8s/overlays/local",
        "kubectl --namespace goals wait --for=condition=Ready cluster/goals-db --timeout=10m",
        "kubectl --namespace edge rollout status deployment/edge-nginx --timeout=5m",
    ]
    assert [one for one in calls(home) if one in wanted] == wanted
    assert "https://goals.localhost/" in done.stdout
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith("# ") and "hangs" in line] == [
        "cluster", "images", "operators", "site", "database", "service", "gateway",
    ]  # fmt: skip


def test_a_second_time_it_makes_no_second_cluster(home: Path) -> None:
    for _ in range(2):
        assert run(home, "create.sh").returncode == 0
    assert sum(one.startswith("kind create") for one in calls(home)) == 1


def test_without_the_site_it_stops_after_the_operators(home: Path) -> None:
    assert run(home, "create.sh", SITE="no").returncode == 0
    assert any(one.startswith("helm upgrade --install cert-manager") for one in calls(home))
    assert "kubectl apply --server-side -k k8s/overlays/local" not in calls(home)


@pytest.mark.parametrize("script", ["create.sh", "delete.sh"])
def test_a_cluster_of_that_name_that_is_not_ours_is_left_alone(home: Path, script: str) -> None:
    (home / "made").write_text("somebody's")
    done = run(home, script)
    assert done.returncode == 1
    assert "it is left alone" in done.stderr
    assert not [one for one in calls(home) if " apply " in one or one.startswith("kind delete")]


def test_it_deletes_its_own_cluster_and_then_finds_nothing_to_delete(home: Path) -> None:
    (home / "made").write_text("ours")
    assert run(home, "delete.sh").returncode == 0
    assert calls(home)[-1] == "kind delete cluster --name goals"
    done = run(home, "delete.sh")
    assert (done.returncode, "nothing to delete" in done.stdout) == (0, True)


def test_a_step_that_fails_says_what_to_look_at(home: Path) -> None:
    (home / "fails").write_text("wait --for=condition=Ready cluster/goals-db")
    done = run(home, "create.sh")
    assert done.returncode == 1
    assert "step 5 did not finish" in done.stderr
    assert "describe cluster goals-db" in done.stderr


def test_a_dry_run_calls_nothing(home: Path) -> None:
    done = run(home, "create.sh", "--dry-run")
    assert done.returncode == 0
    assert "+ kind create cluster --config k8s/overlays/local/kind.yaml" in done.stdout
    assert not (home / "calls").exists()


@pytest.mark.parametrize("script", ["create.sh", "delete.sh"])
def test_unknown_options_are_refused_with_the_usage(home: Path, script: str) -> None:
    done = run(home, script, "--frobnicate")
    assert done.returncode == 2
    assert f"usage: k8s/kind/{script}" in done.stderr


# part drills
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CLUSTER_CONTEXT": "production"}, "CONFIRM_CONTEXT=production allows it"),
        ({"CLUSTER_CONTEXT": "production", "CONFIRM_CONTEXT": "prod"}, "CONFIRM_CONTEXT=production allows it"),
        ({"CLUSTER_CONTEXT": "production", "CONFIRM_CONTEXT": "production"}, "no cluster answers as production"),
        ({}, "no cluster answers as kind-goals"),
        ({"NEED": "luck"}, "NEED names luck"),
    ],
)
def test_the_cluster_test_touches_no_cluster_that_nobody_confirmed(
    home: Path, variables: dict[str, str], said: str
) -> None:
    (home / "made").write_text("nothing answers")
    (home / "fails").write_text("version")
    environment = {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "HOME": str(home), **variables}
    command = [sys.executable, "-m", "pytest", "tests/cluster", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 4
    assert said in done.stderr
    asked = calls(home) if (home / "calls").exists() else []
    assert not [one for one in asked if not one.endswith(" version")]


# end drills
