"""Rules for the files themselves: each must be used, and the installed versions must be those that were checked."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.lint.crds import SOURCES
from tools.lint.inventory import OPERATORS, get_path
from tools.lint.manifests import Finding, Manifest, kustomizations, read
from tools.lint.rules import name_and_consequence
from tools.lint.schemas import KUBERNETES

Found = Iterator[tuple[str, str, str]]
"""File, place in it, problem."""

TREE: dict[str, Callable[["Tree"], Found]] = {}
# part argocd
PATHS = ("spec.source.path", "spec.sources[].helm.valueFiles[]")
# end argocd
COMMAND = re.compile(r"\b(?:kubectl|kustomize|kind|helm|k8s/\S+\.sh)\b.*")


class Tree:
    """The folder k8s with its texts."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.folders = list(kustomizations(self.root))
        self.files = [one for one in sorted(self.root.rglob("*")) if one.is_file()]
        self.texts = {str(one.relative_to(self.root)): one.read_text(encoding="utf-8") for one in self.files}
        documents = [root.parent / "README.md", root.parent / "Makefile", *(root.parent / "docs").rglob("*.md")]
        self.documents = {
            str(one.relative_to(root.parent)): one.read_text(encoding="utf-8") for one in documents if one.is_file()
        }

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield every command in a document or a script."""
        for path, text in [*self.texts.items(), *self.documents.items()]:
            for line in text.splitlines():
                named = path.endswith((".md", ".sh")) or line.lstrip().startswith("#")
                if named and (found := COMMAND.search(line)):
                    yield path, found[0].partition("`")[0]

    # part argocd
    def applications(self) -> Iterator[Manifest]:
        """Those of Argo CD, as they are before the site is filled in."""
        for path, text in self.texts.items():
            if path.startswith("argocd/") and path.endswith(".yaml"):
                yield from (one for one in read(text) if one["kind"] == "Application")

    def paths(self) -> list[str]:
        """Return the paths in this repository that the Applications refer to."""
        return [path for one in self.applications() for path in get_path(one, *PATHS)]

    # end argocd

    def steps(self) -> list[str]:
        """Return the steps of install.sh, in order."""
        found = re.search(r"ORDER=\(([^)]*)\)", self.texts.get("platform/install.sh", ""))
        return found[1].split() if found else []


def tree_rule(check: Callable[[Tree], Found]) -> Callable[[Tree], Found]:
    TREE[name_and_consequence(check)[0]] = check
    return check


def find_misplaced(tree: Tree, only: str = "") -> Iterator[Finding]:
    """Run all rules, or one, over the files."""
    for check in [TREE[only]] if only else TREE.values():
        for where, what, problem in check(tree):
            yield Finding(where, what, problem, *name_and_consequence(check))


def applied(tree: Tree) -> Iterator[Path]:
    """Yield what is applied: overlays, steps of scripts, and the folders that something refers to."""
    yield from (folder for folder in tree.folders if folder.parent.name == "overlays")
    applying = re.findall(r"^\s*apply (\S+)$", "\n".join(tree.texts.values()), re.MULTILINE)
    yield from (tree.root / "platform" / step for step in [*tree.steps(), *applying])
    named = " ".join([*tree.paths(), *(command for _, command in tree.commands())])
    for folder in tree.folders:
        if re.search(rf"k8s/{re.escape(str(folder.relative_to(tree.root)))}(?![\w/-])", named):
            yield folder


def used(tree: Tree) -> set[Path]:
    """Return what is applied, and everything that it includes."""
    found, waiting = set[Path](), list(applied(tree))
    while waiting:
        one = waiting.pop()
        if one not in found and one.exists():
            found.add(one)
            file = one / "kustomization.yaml"
            if file.is_file():
                named = _named_in(read(file.read_text(encoding="utf-8")))
                waiting += [file, *((one / entry).resolve() for entry in named)]
    return found


def _named_in(value: Any) -> Iterator[str]:
    """Yield every string in a kustomization that can be a path, including all file names."""
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _named_in(one)
        if isinstance(one, str) and "://" not in one and "\n" not in one:
            yield one.rpartition("=")[2]


@tree_rule
def orphan(tree: Tree) -> Found:
    """The file is never applied, so it has no effect in any cluster."""
    included = used(tree)
    named = "\n".join([*tree.documents.values(), *tree.paths(), *(command for _, command in tree.commands())])
    scripts = {path: text for path, text in tree.texts.items() if path.endswith(".sh")}
    for file in tree.files:
        path = str(file.relative_to(tree.root))
        if file.suffix in {".sh", ".txt"} or file.name == "kind.yaml":
            others = "\n".join([named, *(text for other, text in scripts.items() if other != path)])
            is_used = bool(re.search(rf"(?<![\w.-]){re.escape(file.name)}", others))
        else:
            is_values = file.name == "values.yaml" and file.parent in included
            is_used = file in included or file.suffix == ".md" or is_values
        if not is_used:
            yield path, file.name, "no overlay, Application, script or documented command uses it"


@tree_rule
def checked_version(tree: Tree) -> Found:
    """The manifests were checked against CRDs other than the installed ones."""
    checked = {"/".join(source.split("/")[:2]): source.split("/")[2].lstrip("v") for source in SOURCES.values()}
    for path, text in tree.texts.items():
        lines = text.splitlines() if path.endswith("kustomization.yaml") or path == "platform/charts.txt" else []
        for line in (line for line in lines if "://" in line and not line.startswith("#")):
            versions = set(re.findall(r"(?<![\d.])v?(\d+\.\d+\.\d+)(?![\d.])", line))
            if not versions:
                yield path, line.strip(" -"), "has no exact version"
            for project, version in checked.items():
                named = f"/{project}/" in line or line.split()[0] == project.rpartition("/")[2]
                if versions - {version} and named:
                    found = ", ".join(sorted(versions))
                    yield path, project, f"{found} is installed, but {version} was checked (tools/lint/crds.py)"


# part azure
@tree_rule
def kubernetes_version(tree: Tree) -> Found:
    """The manifests were checked against a Kubernetes version other than that of the clusters."""
    for path, text in tree.texts.items():
        for version in re.findall(r"KUBERNETES_VERSION:-([\d.]+)", text):
            if version != KUBERNETES:
                yield path, "KUBERNETES_VERSION", f"{version}, but {KUBERNETES} was checked (tools/lint/schemas.py)"


# end azure
@tree_rule
def server_side(tree: Tree) -> Found:
    """A large CRD or dashboard does not fit into the annotation of a client-side apply, and is rejected."""
    for path, command in tree.commands():
        if re.match(r"kubectl\b.*\bapply\b.* (-k|-f|--kustomize) \S", command) and "--server-side" not in command:
            yield path, command, "has no --server-side"


# part loadtest
@tree_rule
def replaced_whole(tree: Tree) -> Found:
    """Workers of the previous load test join the next one, which makes it invalid."""
    for path, command in tree.commands():
        if "kubectl replace --force" in command and "--cascade=foreground" not in command:
            yield path, command, "has no --cascade=foreground"


# end loadtest
@tree_rule
def install_order(tree: Tree) -> Found:
    """An operator lacks something that it checks only at startup, or an object's CRD does not exist yet."""
    steps = tree.steps()
    for step, one in OPERATORS["order"].items():
        if step not in steps:
            yield "platform/install.sh", step, "is not one of its steps"
        for other in one["after"]:
            if step in steps and other in steps and steps.index(other) > steps.index(step):
                yield "platform/install.sh", step, f"comes before {other}, which it needs"


@tree_rule
def gateway_certificates(tree: Tree) -> Found:
    """cert-manager ignores Gateways, and https never works."""
    if any("cert-manager.io/cluster-issuer" in text and "kind: Gateway\n" in text for text in tree.texts.values()):
        (values,) = read(tree.texts["platform/cert-manager/values.yaml"])
        if True not in get_path(values, "config.gatewayAPI.enabled"):
            yield "platform/cert-manager/values.yaml", "config.gatewayAPI.enabled", "is not true"
