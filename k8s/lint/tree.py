"""The files themselves: each is used by something, and what is installed is what was checked."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lint.crds import SOURCES
from lint.inventory import OPERATORS, dig
from lint.manifests import Finding, Manifest, kustomizations, read
from lint.rules import why
from lint.schemas import KUBERNETES

Found = Iterator[tuple[str, str, str]]
"""File, thing in it, what is wrong."""

TREE: dict[str, Callable[["Tree"], Found]] = {}
COMMAND = re.compile(r"\b(?:kubectl|kustomize|kind|helm|k8s/\S+\.sh)\b.*")


class Tree:
    """The folder k8s with its texts, and the Applications it renders."""

    def __init__(self, root: Path, applications: list[Manifest]) -> None:
        self.root = root
        self.applications = applications
        skipped = {"lint", "__pycache__"}
        self.files = [
            one for one in sorted(root.rglob("*")) if one.is_file() and not skipped & set(one.relative_to(root).parts)
        ]
        self.texts = {str(one.relative_to(root)): one.read_text(encoding="utf-8") for one in self.files}
        documents = [root.parent / "README.md", root.parent / "Makefile", *(root.parent / "docs").rglob("*.md")]
        self.documents = {
            str(one.relative_to(root.parent)): one.read_text(encoding="utf-8") for one in documents if one.is_file()
        }

    def commands(self) -> Iterator[tuple[str, str]]:
        """Every command that somebody is told to run, or that a script runs."""
        for path, text in [*self.texts.items(), *self.documents.items()]:
            for line in text.splitlines():
                told = path.endswith((".md", ".sh")) or line.lstrip().startswith("#")
                if told and (found := COMMAND.search(line)):
                    yield path, found[0].partition("`")[0]

    def steps(self) -> list[str]:
        """The steps of install.sh, in their order."""
        found = re.search(r"ORDER=\(([^)]*)\)", self.texts.get("platform/install.sh", ""))
        return found[1].split() if found else []


def tree_rule(check: Callable[[Tree], Found]) -> Callable[[Tree], Found]:
    TREE[check.__name__.replace("_", "-")] = check
    return check


def find_misplaced(tree: Tree, only: str = "") -> Iterator[Finding]:
    """Run all rules, or one, over the files."""
    for identity, check in TREE.items() if not only else ((only, TREE[only]),):
        for where, what, problem in check(tree):
            yield Finding(where, what, problem, *why(identity, check))


def _named_in(kustomization: Any) -> Iterator[str]:
    """Every string in a kustomization: the files it names are among them."""
    values = (
        kustomization.values()
        if isinstance(kustomization, dict)
        else kustomization
        if isinstance(kustomization, list)
        else ()
    )
    for value in values:
        if isinstance(value, str):
            yield value.rpartition("=")[2]
        else:
            yield from _named_in(value)


@tree_rule
def orphan(tree: Tree) -> Found:
    """Nobody applies it: what it says is true of no cluster."""
    root = tree.root.resolve()
    told = " ".join(command for _, command in tree.commands())
    told += " ".join(
        str(path)
        for one in tree.applications
        for path in [*dig(one, "spec.source.path"), *dig(one, "spec.sources[].helm.valueFiles[]")]
    )
    used = {one.resolve() for one in kustomizations(root) if one.parent.name == "overlays"}
    used |= {
        root / "platform" / step
        for step in [*tree.steps(), *re.findall(r"^\s*apply (\S+)$", "\n".join(tree.texts.values()), re.MULTILINE)]
    }
    used |= {
        one
        for one in (folder.resolve() for folder in kustomizations(root))
        if re.search(rf"k8s/{re.escape(str(one.relative_to(root)))}(?![\w/-])", told)
    }
    waiting = [one for one in used if (one / "kustomization.yaml").is_file()]
    while waiting:
        folder = waiting.pop()
        used.add(folder / "kustomization.yaml")
        for document in read((folder / "kustomization.yaml").read_text(encoding="utf-8")):
            for entry in _named_in(document):
                found = (folder / entry).resolve() if "://" not in entry and "\n" not in entry else folder
                if found not in used and found.exists():
                    used.add(found)
                    waiting += [found] if (found / "kustomization.yaml").is_file() else []
    scripts = (
        "\n".join(text for path, text in tree.texts.items() if path.endswith(".sh"))
        + "\n".join(tree.documents.values())
        + told
    )
    for file in tree.files:
        path = file.relative_to(tree.root)
        others = scripts.replace(tree.texts[str(path)], "") + told
        named = file.suffix in {".sh", ".txt"} or file.name == "kind.yaml"
        if named and not re.search(rf"(?<![\w.-]){re.escape(file.name)}", others):
            yield str(path), file.name, "no script, Makefile or documented command uses it"
        is_used = (
            file.resolve() in used
            or file.suffix == ".md"
            or (file.name == "values.yaml" and file.parent.resolve() in used)
        )
        if not named and not is_used:
            yield str(path), file.name, "no overlay, Application, script or documented command uses it"


@tree_rule
def application_path(tree: Tree) -> Found:
    """Argo CD finds nothing at the path, and the Application stays unknown."""
    for one in tree.applications:
        for path in [*dig(one, "spec.source.path"), *dig(one, "spec.sources[].helm.valueFiles[]")]:
            if not (tree.root.parent / path.removeprefix("$values/").replace("k8s/", f"{tree.root.name}/", 1)).exists():
                yield "argocd/apps", one["metadata"]["name"], f"there is no {path}"


@tree_rule
def checked_version(tree: Tree) -> Found:
    """The manifests were checked against other CRDs than those that are installed."""
    checked = {"/".join(source.split("/")[:2]): source.split("/")[2].lstrip("v") for source in SOURCES.values()}
    for path, text in tree.texts.items():
        for line in text.splitlines() if path.endswith("kustomization.yaml") or path == "platform/charts.txt" else ():
            if line.startswith("#") or "://" not in line:
                continue
            versions = re.findall(r"(?<![\d.])v?(\d+\.\d+\.\d+)(?![\d.])", line)
            if not versions:
                yield path, line.strip(" -"), "is no fixed version"
            for project, version in checked.items():
                named = f"/{project}/" in line or line.split()[0] == project.rpartition("/")[2]
                if versions and named and set(versions) != {version}:
                    yield (
                        path,
                        project,
                        f"{', '.join(sorted(set(versions)))} is installed, {version} was checked (lint/crds.py)",
                    )


@tree_rule
def kubernetes_version(tree: Tree) -> Found:
    """The manifests were checked against another Kubernetes than the one that is made."""
    for path, text in tree.texts.items():
        for version in re.findall(r"KUBERNETES_VERSION:-([\d.]+)", text):
            if version != KUBERNETES:
                yield path, "KUBERNETES_VERSION", f"{version}, but {KUBERNETES} was checked (lint/schemas.py)"


@tree_rule
def server_side(tree: Tree) -> Found:
    """A large CRD or dashboard does not fit into the annotation of a client-side apply, and is refused."""
    for path, command in tree.commands():
        if re.match(r"kubectl\b.*\bapply\b.* (-k|-f|--kustomize) \S", command) and "--server-side" not in command:
            yield path, command, "has no --server-side"


@tree_rule
def install_order(tree: Tree) -> Found:
    """An operator starts without what it looks for only then, or an object meets no CRD."""
    steps = tree.steps()
    for step, one in OPERATORS["order"].items():
        if step not in steps:
            yield "platform/install.sh", step, "is not among its steps"
        for other in one["after"]:
            if step in steps and other in steps and steps.index(other) > steps.index(step):
                yield "platform/install.sh", step, f"comes before {other}, which it needs"


@tree_rule
def gateway_certificates(tree: Tree) -> Found:
    """cert-manager looks at no Gateway, and https never answers."""
    if any("cert-manager.io/cluster-issuer" in text and "kind: Gateway\n" in text for text in tree.texts.values()):
        (values,) = read(tree.texts["platform/cert-manager/values.yaml"])
        if True not in dig(values, "config.gatewayAPI.enabled"):
            yield "platform/cert-manager/values.yaml", "config.gatewayAPI.enabled", "is not true"
