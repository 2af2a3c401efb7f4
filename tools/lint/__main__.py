"""`python -m tools.lint`: render and check everything under k8s or, with FILE arguments, check only those files."""

import argparse
import importlib
import os
import pkgutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from tools.lint import accepted, changes, files, limits, reachability, site, tree
from tools.lint.inventory import Inventory, namespace_of
from tools.lint.manifests import ROOT, Finding, Manifest, RenderError, name, read, render_all
from tools.lint.rules import RULES, find_broken
from tools.lint.schemas import Schemas

for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):
    if _module.name != "__main__":
        importlib.import_module(f"tools.lint.{_module.name}")  # registers its rules

CRDS = ROOT.parent / ".cache" / "crds"
APPLIED_OVER = ["overlays/local", "overlays/aks", "argocd/goals"]
"""Folders that are applied over an older version of themselves."""

PARTS = frozenset({"every-namespace", "api-server"})
"""Folders that are only included by others, which set their namespace."""

TOGETHER = (
    ("overlays/local", "platform/namespaces"),
    # part loadtest
    ("overlays/local", "platform/namespaces", "components/loadtest"),
    # end loadtest
    # part azure
    ("overlays/aks", "overlays/aks/restore-check", "platform/namespaces", "argocd/server"),
    ("overlays/aks-restored", "platform/namespaces", "argocd/server"),
    ("overlays/aks-other-region", "platform/namespaces", "argocd/server"),
    (
        "overlays/aks-upgrade",
        *(f"overlays/aks/upgrade/{way}" for way in ("in-place", "forth", "back")),
        "platform/namespaces",
    ),
    # end azure
    # part argocd
    ("argocd/goals", "platform/namespaces", "argocd/server", "argocd", "argocd/apps", "platform/argocd"),
    # end argocd
)
"""Folders that are in a cluster at the same time."""


def check_objects(where: str, manifests: list[Manifest], schemas: Schemas) -> Iterator[Finding]:
    """Check each object against its schema; report superseded API versions and duplicate objects."""
    seen = set()
    for manifest in manifests:
        found = schemas.problems(manifest)
        for problem in found or accepted.problems(manifest):
            yield Finding(where, name(manifest), problem, "schema", "The API server rejects it, or drops the field")
        if newer := schemas.newer(manifest):
            consequence = "The old version is rejected after an upgrade of its CRDs"
            yield Finding(where, name(manifest), f"{newer} is also served", "stable-version", consequence)
        identity = (str(manifest.get("apiVersion")).partition("/")[0], name(manifest))
        if identity in seen:
            consequence = "A change to the first one has no effect"
            yield Finding(where, name(manifest), "is defined twice; the second one wins", "duplicate", consequence)
        seen.add(identity)


def sound(renders: dict[str, list[Manifest]], schemas: Schemas) -> dict[str, list[Manifest]]:
    """Return the valid objects, so that a rule can rely on what the schemas require."""
    return {
        where: [one for one in manifests if schemas.is_sound(one) and not any(accepted.problems(one))]
        for where, manifests in renders.items()
    }


def check_tree(schemas: Schemas, root: Path = ROOT) -> Iterator[Finding]:
    """Check every kustomization, with the values of a site and without them, and the files themselves."""
    renders = render_all(root)
    for where, manifests in renders.items():
        if Path(where).name not in PARTS:
            yield from check_objects(where, manifests, schemas)
    for folders in TOGETHER:
        yield from find_broken(Inventory(sound({where: renders[where] for where in folders}, schemas)))
    yield from check_files(root, renders)


def check_files(root: Path, renders: dict[str, list[Manifest]]) -> Iterator[Finding]:
    """Check what no single object can show: a new version, files, compose, and the reviewed table."""
    # part azure
    yield from site.find_forgotten(root)
    yield from site.find_unplaced(root)
    # end azure
    for where in APPLIED_OVER:
        for image in ("goals:dev", site.values(root)["image"]):
            after = changes.with_image(renders[where], image, "registry.probe.test/goals:after")
            yield from changes.find_refused(where, renders[where], after)
    yield from tree.find_misplaced(tree.Tree(root))
    yield from limits.find_in_compose(root.parent)
    yield from reachability.find_unreviewed(root, renders)


def merge(findings: Iterable[Finding], root: Path = ROOT) -> list[Finding]:
    """Merge equal findings of several renders; each names the file and the renders."""
    places: dict[Finding, dict[str, None]] = {}
    for finding in findings:
        places.setdefault(finding._replace(where=""), {})[finding.where] = None
    files: dict[str, str] = {}
    for path in sorted(root.rglob("*.yaml")):
        for one in read(path.read_text(encoding="utf-8")):
            identity = f"{one.get('kind')} {(one.get('metadata') or {}).get('name')}"
            files.setdefault(identity, str(path.relative_to(root)))
    merged = []
    for finding, where in places.items():
        kind, _, rest = finding.what.partition(" ")
        file, renders = files.get(f"{kind} {rest.rpartition('/')[2]}"), ", ".join(where)
        merged.append(finding._replace(where=f"{file} (in {renders})" if file and file not in where else renders))
    return merged


def main(arguments: list[str]) -> int:
    """Print one line for each finding; return 0 if there are none, 1 if there are some, and 2 if a check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.lint", description="Check the manifests under k8s, or the named files."
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="rendered manifests (default: everything under k8s)"
    )
    parser.add_argument(
        "--crds",
        type=Path,
        default=Path(os.environ.get("CRDS") or CRDS),
        help="folder of CRDs (default: $CRDS, else .cache/crds)",
    )
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        schemas = Schemas(options.crds)
        if options.files:
            texts = files.read_files(options.files)
            findings = [finding for where, one in texts.items() for finding in check_objects(where, one, schemas)]
            known = sound(texts, schemas)
            refused = {
                (one["kind"], namespace_of(one), one["metadata"]["name"])
                for where, manifests in texts.items()
                for one in manifests
                if one not in known[where]
            }
            findings += dict.fromkeys(find_broken(Inventory(known, refused=frozenset(refused))))
        else:
            findings = merge(check_tree(schemas))
    except (ImportError, OSError, RenderError, ValueError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for finding in findings:
        print(finding)
    counted = f"{len(findings)} finding{'' if len(findings) == 1 else 's'}"
    rules = f"{len(RULES) + len(tree.TREE)} rules and the schemas"
    print(f"{counted} from {rules} in {time.monotonic() - started:.1f} s", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
