"""Load manifests: read YAML as Kubernetes does, or render them with `kubectl kustomize`."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2] / "k8s"
"""The folder `k8s`."""

IGNORED = shutil.ignore_patterns("__pycache__", "node_modules")
"""What a copy of the tree leaves out."""


class Finding(NamedTuple):
    """One line of the report: the file or kustomization, the object in it, the problem, and its consequence."""

    where: str
    what: str
    problem: str
    rule: str = ""
    consequence: str = ""

    def __str__(self) -> str:
        because = f" [{self.rule}: {self.consequence}]" if self.rule else ""
        return f"{self.where}: {self.what}: {self.problem}{because}"


class RenderError(Exception):
    """A kustomization does not build; the message is kubectl's."""


class _Loader(yaml.CSafeLoader):
    """Reads as Kubernetes does: a date stays a string, and so does the bare `=` in a schema of prometheus-operator."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda _loader, node: node.value)
_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def read(text: str) -> list[Manifest]:
    """Return every object in a stream of YAML; raise `yaml.YAMLError` if it is invalid."""
    documents = yaml.load_all(text, _Loader)
    return [document for document in documents if isinstance(document, dict)]


def name(manifest: Manifest) -> str:
    """Return the object's name in reports, `Kind namespace/name`."""
    metadata = manifest.get("metadata") or {}
    return f"{manifest.get('kind', '?')} {metadata.get('namespace', '')}/{metadata.get('name', '?')}".replace(" /", " ")


def kustomizations(root: Path = ROOT) -> Iterator[Path]:
    """Yield every folder under `root` that contains a kustomization."""
    yield from sorted(file.parent for file in root.rglob("kustomization.yaml"))


def includes(folder: Path, field: str) -> set[Path]:
    """Return the folders and files that a kustomization lists under `resources` or `components`."""
    (kustomization,) = read((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    return {(folder / entry).resolve() for entry in kustomization.get(field, ()) if "://" not in entry}


def is_remote(folder: Path) -> bool:
    """Return whether a kustomization has a remote resource, so that rendering it needs the network."""
    (kustomization,) = read((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    return any("://" in entry for entry in kustomization.get("resources", ()))


def render(folder: Path) -> list[Manifest]:
    """Return the objects of a kustomization or, if it patches a remote resource, the patches.

    Raises `RenderError` and, without kubectl, `FileNotFoundError`.
    """
    if is_remote(folder):
        (kustomization,) = read((folder / "kustomization.yaml").read_text(encoding="utf-8"))
        patches = [one for file in sorted(folder.glob("configmap-*.yaml")) for one in read(file.read_text("utf-8"))]
        for one in patches:  # patches have no namespace: the release's objects have none, and get it afterwards
            one["metadata"].setdefault("namespace", kustomization["namespace"])
        return patches
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  a constant and our own folder
    if done.returncode:
        raise RenderError(f"{folder}: {done.stderr.strip().rpartition('err=')[2]}")
    return read(done.stdout)


def render_all(root: Path, folders: Iterable[Path] = ()) -> dict[str, list[Manifest]]:
    """Render all kustomizations under `root`, or some of them, in parallel; return their objects by path."""
    folders = list(folders or kustomizations(root))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip((str(folder.relative_to(root)) for folder in folders), pool.map(render, folders), strict=True))
