"""The scripts for Azure: what they would do, what they refuse, and that a second run changes nothing."""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests.k8s.scripts import K8S, run

SITE = K8S / "overlays/aks/site/site.yaml"

# Stands for Azure's command line: remembers what was created, answers `show` by it, and writes down each call.
AZ = """#!{python} -IS
import pathlib, sys
home = pathlib.Path({home!r})
words = sys.argv[1:]
with (home / "calls").open("a") as calls:
    calls.write(" ".join(words) + "\\n")
VERBS = {{"show", "create", "add", "set", "update", "delete", "list", "get-credentials"}}
verb = next(i for i, word in enumerate(words) if word in VERBS)
kind = "-".join(words[:verb])
options = dict(zip(words[verb + 1 :], words[verb + 2 :]))
thing = home / "things" / (kind + "-" + options.get("--name", "").replace("/", "_"))
if words[verb] in {{"create", "add", "set"}}:
    thing.write_text(sys.stdin.read() if "--file" in options else options.get("--tags", ""))
elif kind == "keyvault-secret" and (home / "forbidden").exists():
    (home / "forbidden").unlink()
    sys.exit("(Forbidden) Caller is not authorized to perform action on resource.")
elif words[verb] == "show" and kind not in {{"account", "ad-signed-in-user"}}:
    if not thing.exists():
        sys.exit(3)
    if "--query" in options:
        query = options["--query"]
        tag = thing.read_text().partition("=")[2]
        print(tag if query.startswith("tags") else f"{{options.get('--name')}}.{{query}}")
elif words[verb] == "show":
    print(options.get("--query", ""))
"""


@pytest.fixture
def azure(tmp_path: Path) -> dict[str, str]:
    """An environment with a stand-in for `az` and a copy of the site's file."""
    (tmp_path / "things").mkdir()
    (tmp_path / "bin").mkdir()
    az = tmp_path / "bin" / "az"
    az.write_text(AZ.format(python=sys.executable, home=str(tmp_path)))
    az.chmod(az.stat().st_mode | stat.S_IXUSR)
    shutil.copy(SITE, tmp_path / "site.yaml")
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SITE": str(tmp_path / "site.yaml"),
        "PAUSE": "0",
        "HOME": str(tmp_path),
    }


def calls(azure: dict[str, str]) -> list[str]:
    return (Path(azure["HOME"]) / "calls").read_text().splitlines()


@pytest.mark.parametrize("script", ["aks/create.sh", "aks/delete.sh"])
def test_unknown_arguments_are_refused_with_the_usage(script: str) -> None:
    done = run(script, "--frobnicate")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "usage: k8s/" + script in done.stderr


def test_create_dry_run_needs_no_az_and_changes_nothing(tmp_path: Path) -> None:
    before = SITE.read_bytes()
    for tool in ("bash", "dirname", "sha256sum", "cut", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    done = run("aks/create.sh", "--dry-run", env={"PATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert SITE.read_bytes() == before
    for needed in (
        "--enable-oidc-issuer",
        "--enable-workload-identity",
        "--network-dataplane cilium",
        "--zones 1 2 3",
        "--enable-azure-keyvault-kms",
        "--attach-acr",
        "--disable-local-accounts",
        "system:serviceaccount:goals:goals-db ",
        "system:serviceaccount:goals:goals-db-restored ",
        "system:serviceaccount:goals:goals-db-next ",
        "system:serviceaccount:monitoring:key-vault ",
        # part argocd
        "system:serviceaccount:argocd:key-vault ",
        # end argocd
        # A drain ends, upgrades keep to their window, the backups outlive their region.
        "--name postgres --zones 1 2 3 --node-count 3",
        "--max-surge 3 --drain-timeout 30 --undrainable-node-behavior Cordon",
        "--name aksManagedAutoUpgradeSchedule --schedule-type Weekly --day-of-week Sunday",
        "--name aksManagedNodeOSUpgradeSchedule --schedule-type Weekly --day-of-week Sunday",
        "--sku Standard_RAGZRS",
        "--assignee-principal-type User --role Storage\\ Blob\\ Data\\ Reader",
        "/vaults/goals-00000000/secrets/grafana-admin-password",
        # part argocd
        "/vaults/goals-00000000/secrets/argocd-admin-password",
        # end argocd
        "/vaults/goals-00000000/secrets/alert-receiver-url",
    ):
        assert needed in done.stdout, needed
    # Kubernetes's Gateway API CRDs have one owner, and that is k8s/platform.
    assert "--enable-gateway-api" not in done.stdout


def test_the_cluster_cannot_read_the_whole_vault() -> None:
    done = run("aks/create.sh", "--dry-run")
    readers = [line for line in done.stdout.splitlines() if "Secrets\\ User" in line]
    assert len(readers) == 3
    assert all("/secrets/" in line for line in readers)


def test_the_api_server_is_open_to_the_listed_addresses_only_where_there_is_a_list() -> None:
    environment = {"PATH": os.environ["PATH"]}
    assert "--api-server-authorized-ip-ranges" not in run("aks/create.sh", "--dry-run", env=environment).stdout
    done = run("aks/create.sh", "--dry-run", env=environment | {"AUTHORIZED_RANGES": "203.0.113.0/24,198.51.100.7/32"})
    assert "--api-server-authorized-ip-ranges 203.0.113.0/24" in done.stdout


def test_create_without_az_says_so(tmp_path: Path) -> None:
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    done = run("aks/create.sh", env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "az is not installed" in done.stderr


def test_create_twice_makes_everything_once_and_fills_in_the_site(azure: dict[str, str]) -> None:
    first = run("aks/create.sh", env=azure)
    assert first.returncode == 0, first.stderr
    site = Path(azure["SITE"]).read_text()
    assert "  vaultUrl: https://goals-" in site
    assert "  secretsClientId: goals-secrets.clientId\n" in site
    assert "  backupClientId: goals-backup.clientId\n" in site
    # Create-if-missing, each once; roles and the deletion policy are set again, which changes nothing.
    once = (" create ", " add ", " set ")
    made = [
        call for call in calls(azure) if any(verb in f" {call} " for verb in once) and "role assignment" not in call
    ]
    assert len(made) == len(set(made)) == 21
    number = len(calls(azure))
    second = run("aks/create.sh", env=azure)
    assert second.returncode == 0, second.stderr
    again = [call for call in calls(azure)[number:] if any(verb in f" {call} " for verb in once)]
    assert all("role assignment create" in call for call in again), again
    assert Path(azure["SITE"]).read_text() == site


def test_create_keeps_passwords_out_of_arguments_and_output(azure: dict[str, str]) -> None:
    done = run("aks/create.sh", env=azure | {"ALERT_URL": "https://hooks.example.com/a-token"})
    assert done.returncode == 0, done.stderr
    things = Path(azure["HOME"]) / "things"
    secrets = {
        name: (things / f"keyvault-secret-{name}").read_text()
        for name in ("grafana-admin-password", "argocd-admin-password")
    }
    assert len(set(secrets.values())) == 2
    assert (things / "keyvault-secret-alert-receiver-url").read_text() == "https://hooks.example.com/a-token"
    for secret in (*secrets.values(), "a-token"):
        assert len(secret) > 6
        assert secret not in done.stdout + done.stderr
        assert not any(secret in call for call in calls(azure))


def test_create_waits_for_a_new_role_and_overwrites_no_password_it_could_not_see(azure: dict[str, str]) -> None:
    home = Path(azure["HOME"])
    assert run("aks/create.sh", env=azure).returncode == 0
    password = (home / "things" / "keyvault-secret-grafana-admin-password").read_text()
    (home / "forbidden").touch()
    done = run("aks/create.sh", env=azure)
    assert done.returncode == 0, done.stderr
    assert "not allowed yet" in done.stderr
    assert (home / "things" / "keyvault-secret-grafana-admin-password").read_text() == password


@pytest.mark.parametrize("tags", ["", "created-by=someone-else"])
def test_neither_script_touches_a_resource_group_it_did_not_make(azure: dict[str, str], tags: str) -> None:
    (Path(azure["HOME"]) / "things" / "group-goals").write_text(tags)
    for script, arguments in (("aks/create.sh", ()), ("aks/delete.sh", ("--yes",))):
        done = run(script, *arguments, env=azure)
        assert done.returncode == 1
        assert "was not made by" in done.stderr
    assert not any(" create" in call or " delete" in call for call in calls(azure))


def test_delete_deletes_what_create_made_and_nothing_without_consent(azure: dict[str, str]) -> None:
    assert run("aks/create.sh", env=azure).returncode == 0
    refused = run("aks/delete.sh", env=azure)
    assert refused.returncode == 1
    assert not any("group delete" in call for call in calls(azure))
    assert run("aks/delete.sh", "--yes", env=azure).returncode == 0
    assert calls(azure)[-1] == "group delete --name goals --yes"
