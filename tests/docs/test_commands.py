"""Every command in the documents against the Makefile, or against the program's own help where it is on the machine."""

import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.documents import Command, commands, documents

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BUILTINS = {".", "[", "cd", "echo", "exit", "export", "sed", "set", "sudo", "trap", "true"}
"""Words of the shell and tools with a form of their own, whose options are not looked up."""

NESTED = {
    # part argocd
    "argocd": {"account", "admin", "app", "cluster", "proj", "repo"},
    # end argocd
    # part azure
    "az": {"acr", "ad", "aks", "dns", "federated-credential", "identity", "keyvault", "network", "record-set"}
    | {"a", "account", "assignment", "nodepool", "repository", "role", "secret", "signed-in-user", "storage"},
    # end azure
    "docker": {"buildx", "compose", "image", "imagetools", "network", "volume"},
    # part k8s
    "kind": {"create", "delete", "export", "get", "load"},
    "kubectl": {"config", "create", "rollout"},
    # end k8s
    "openssl": set[str](),
}
"""Words that lead to another one before the options begin."""

WITH_SUBCOMMANDS = {"alembic", "cosign", "docker", "gh", "git", "helm", "openssl", *NESTED}

ANYWHERE = {
    "docker": {"--profile"},
    # part k8s
    "kubectl": {"-n", "--namespace"},
    # end k8s
}
"""Options with a value that may stand before the subcommand."""

OTHERS = [["docker", "compose", "run"], ["docker", "compose", "exec"]]
"""What follows the first word after these belongs to another program."""

PLUGINS = {
    "docker": {"buildx", "compose"},
    # part k8s
    "kubectl": {"cnpg"},
    # end k8s
}
"""Words that are there only where a plug-in is."""

SINCE: dict[tuple[str, ...], tuple[int, ...]] = {("docker", "compose", "config", "--lock-image-digests"): (2, 37)}
"""Options that older releases lack; the documents say which one has them."""

FOUND = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

ALL = sorted({command.words: command for document in documents() for command in commands(document)}.values(), key=str)


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{command.place} {' '.join(command.words)}")
def test_the_command_is_one(command: Command) -> None:
    program, *arguments = command.words
    program = program.rpartition(".venv/bin/")[2]
    if program in BUILTINS:
        return
    if program == "make":
        check_make(arguments)
        return
    if "/" in program:
        assert os.access(ROOT / program, os.X_OK), f"{program} is not a program of this repository"
    elif shutil.which(program, path=FOUND["PATH"]) is None:
        pytest.skip(f"not looked up: {program} is not on this machine")
    subcommand, flags = take_apart(program, arguments)
    if subcommand and subcommand[0] in PLUGINS.get(program, set()):
        there = subprocess.run([program, subcommand[0], "version"], capture_output=True, check=False)
        if there.returncode:
            pytest.skip(f"not looked up: {program} has no plug-in {subcommand[0]} on this machine")
    text = help_of(program, tuple(subcommand))
    for flag in flags:
        since = SINCE.get((program, *subcommand, flag))
        if since and release_of(program, subcommand[0]) < since:
            pytest.skip(f"not looked up: the {program} {subcommand[0]} of this machine is older than its {flag}")
        assert names(text, flag), f"{program} {' '.join(subcommand)}: no {flag}"


def release_of(program: str, plug_in: str) -> tuple[int, ...]:
    """Return the release of a plug-in: its first two numbers."""
    text = subprocess.run([program, plug_in, "version", "--short"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def check_make(arguments: list[str]) -> None:
    """Targets exist, and each variable is one that the Makefile reads."""
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    for word in arguments:
        variable, equals, _ = word.partition("=")
        if equals:
            assert f"$({variable})" in MAKEFILE, f"the Makefile does not read {variable}"
        elif not word.startswith("-"):
            assert word in targets, f"there is no target {word}"


def take_apart(program: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the words of the subcommand, and the options without their values; what follows `--` is another's."""
    rest = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for flag in ANYWHERE.get(program, set()) & set(rest):
        where = rest.index(flag)
        rest = [*rest[:where], *rest[where + 2 :]]
    subcommand: list[str] = []
    if program in WITH_SUBCOMMANDS:
        deeper = True
        while rest and deeper and re.fullmatch(r"[a-z][a-z-]*", rest[0]):
            deeper = rest[0] in NESTED.get(program, set())
            subcommand.append(rest.pop(0))
        if [program, *subcommand] in OTHERS:
            rest = list(itertools.takewhile(lambda word: word.startswith("-"), rest))
    elif program.startswith("python") and rest[:1] == ["-m"]:
        known = 3 if re.fullmatch(r"[a-z]+", "".join(rest[2:3])) else 2
        subcommand, rest = rest[:known], rest[known:]
    return subcommand, [w.partition("=")[0] for w in rest if re.match(r"--?[a-zA-Z]", w) and w != "--help"]


@pytest.mark.parametrize(
    ("words", "subcommand", "flags"),
    [
        # part k8s
        ("kind create cluster --config FILE", "create cluster", "--config"),
        ("kind load docker-image goals:dev --name goals", "load docker-image", "--name"),
        # end k8s
        # part azure
        ("az identity federated-credential create --issuer URL", "identity federated-credential create", "--issuer"),
        ("az network dns record-set a add-record --zone-name Z", "network dns record-set a add-record", "--zone-name"),
        ("az aks get-credentials --name goals", "aks get-credentials", "--name"),
        ("az keyvault secret set --vault-name V", "keyvault secret set", "--vault-name"),
        # end azure
        ("docker compose --profile load up -d --wait", "compose up", "-d --wait"),
        ("docker compose run --rm load-gate --scenario browse", "compose run", "--rm"),
        ("docker compose exec postgres psql -U postgres", "compose exec", ""),
        # part k8s
        ("kubectl -n goals exec -it goals-db-1 -- psql -U x", "exec", "-it"),
        # end k8s
        # part argocd
        ("argocd repo add URL --core", "repo add", "--core"),
        # end argocd
        ("git log --oneline", "log", "--oneline"),
    ],
)
def test_a_command_is_taken_apart(words: str, subcommand: str, flags: str) -> None:
    program, *arguments = words.split()
    found, options = take_apart(program, arguments)
    assert (" ".join(found), " ".join(options)) == (subcommand, flags)


def names(text: str, flag: str) -> bool:
    """Whether a help text has an option: as it is, as letters put together, or as a letter with its value behind it."""

    def named(option: str) -> bool:
        return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None

    letters = [] if flag.startswith("--") else [f"-{letter}" for letter in flag[1:]]
    return named(flag) or (bool(letters) and (all(map(named, letters)) or named(letters[0])))


@functools.cache
def help_of(program: str, subcommand: tuple[str, ...]) -> str:
    """Return what a program says of a subcommand; an unknown one fails."""
    ask = {"git": ["-h"], "curl": ["--help", "all"], "openssl": ["-help"]}.get(program, ["--help"])
    environment = os.environ | FOUND | {"GIT_PAGER": "cat"}
    path = str(ROOT / program) if "/" in program else program
    done = subprocess.run(
        [path, *subcommand, *ask], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    said = done.stdout + done.stderr
    # git answers -h with 129.
    assert done.returncode in {0, 129}, f"{program} {' '.join(subcommand)} is not known: {said[:300]}"
    # part loadtest
    if program == "locust":  # its own help leaves out what the locustfile adds
        texts = [path.read_text(encoding="utf-8") for path in (ROOT / "loadtest").glob("*.py")]
        said += "".join(f" {option} " for text in texts for option in re.findall(r'"(--[\w-]+)"', text))
    # end loadtest
    # part k8s
    if program == "kubectl":
        said += subprocess.run(["kubectl", "options"], capture_output=True, text=True, check=True).stdout  # noqa: S607 - the one on the PATH
    # end k8s
    return said
