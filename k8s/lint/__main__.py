"""`python -m lint`: renders everything under k8s and checks it; `python -m lint FILE…` checks anyone's manifests."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from lint import changes, site
from lint.manifests import ROOT, Finding, Manifest, RenderError, is_remote, kustomizations, name, read, render_all
from lint.schemas import Schemas

CRDS = ROOT.parent / ".cache" / "crds"
APPLIED_OVER = ("overlays/local", "overlays/aks", "argocd/goals")
"""What is applied over an older version of itself; a load test replaces the one before."""

PARTS = frozenset({"every-namespace", "api-server"})
"""Folders that get their namespace from those that include them, and are nothing by themselves."""


def check_objects(where: str, manifests: list[Manifest], schemas: Schemas) -> Iterator[Finding]:
    """Schemas, and no object twice."""
    seen = set()
    for manifest in manifests:
        for problem in schemas.problems(manifest):
            yield Finding(where, name(manifest), problem)
        identity = (str(manifest.get("apiVersion")).partition("/")[0], name(manifest))
        if identity in seen:
            yield Finding(where, name(manifest), "is there twice; the second one wins")
        seen.add(identity)


def check_tree(schemas: Schemas) -> Iterator[Finding]:
    """Every kustomization, the site filled in and not, and a new image over the old one."""
    local = [folder for folder in kustomizations() if not is_remote(folder)]
    renders = render_all(ROOT, local)
    for where, manifests in renders.items():
        if Path(where).name not in PARTS:
            yield from check_objects(where, manifests, schemas)
    for folder in kustomizations():
        if is_remote(folder):
            for file in sorted(folder.glob("configmap-*.yaml")):
                yield from check_objects(str(file.relative_to(ROOT)), read(file.read_text(encoding="utf-8")), schemas)
    yield from site.find_forgotten(ROOT)
    yield from site.find_unplaced(ROOT)
    for where in APPLIED_OVER:
        for image in ("goals:dev", site.values(ROOT)["image"]):
            after = changes.with_image(renders[where], image, "registry.probe.test/goals:after")
            yield from changes.find_refused(where, renders[where], after)


def main(arguments: list[str]) -> int:
    """Print one line for each finding; 0 if there is none, 1 if there are some, 2 if it could not be checked."""
    parser = argparse.ArgumentParser(
        prog="python -m lint", description="Check the manifests under k8s, or the files named."
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="rendered manifests; without any, everything under k8s"
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
            findings = [
                finding
                for file in options.files
                for finding in check_objects(str(file), read(file.read_text(encoding="utf-8")), schemas)
            ]
        else:
            findings = list(check_tree(schemas))
    except (OSError, RenderError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for finding in findings:
        print(finding)
    print(
        f"{len(findings)} finding{'' if len(findings) == 1 else 's'} in {time.monotonic() - started:.1f} s",
        file=sys.stderr,
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
