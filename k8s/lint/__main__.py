"""`python -m lint`: renders everything under k8s and checks it; `python -m lint FILE…` checks anyone's manifests."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from lint import changes, site
from lint.manifests import ROOT, Finding, Manifest, RenderError, is_remote, kustomizations, name, read, render
from lint.schemas import Schemas

CRDS = ROOT.parent / ".cache" / "crds"
OVERLAYS = ("overlays/local", "overlays/aks", "argocd/goals")
"""What is applied over an older version of itself."""


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


def render_all(root: Path) -> dict[str, list[Manifest]]:
    """Every kustomization that needs no network, by its path under `root`; raises `RenderError` with that path."""

    def render_one(folder: Path) -> list[Manifest]:
        try:
            return render(folder)
        except RenderError as error:
            raise RenderError(f"{folder.relative_to(root)}: {error}") from None

    folders = [folder for folder in kustomizations(root) if not is_remote(folder)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip((str(folder.relative_to(root)) for folder in folders), pool.map(render_one, folders), strict=True))


def check_tree(schemas: Schemas) -> Iterator[Finding]:
    """Every kustomization, the site filled in and not, and a new image over the old one."""
    renders = render_all(ROOT)
    for where, manifests in renders.items():
        # A part that others include takes its namespace from them; by itself it is no more than text.
        if where.endswith(("/every-namespace", "/api-server")):
            continue
        yield from check_objects(where, manifests, schemas)
    for folder in kustomizations():
        if is_remote(folder):
            for file in sorted(folder.glob("*.yaml")):
                if file.name not in {"kustomization.yaml", "values.yaml"}:
                    yield from check_objects(str(file.relative_to(ROOT)), read(file.read_text(encoding="utf-8")), schemas)
    yield from site.find_forgotten(ROOT)
    # The copy stands where the project stands: some kustomizations include a folder beside k8s.
    with tempfile.TemporaryDirectory(prefix="goals-k8s-") as folder:
        copy = Path(folder) / ROOT.name
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT.parent / "observability", Path(folder) / "observability", ignore=shutil.ignore_patterns("__pycache__"))
        probes = site.fill(copy)
        filled = render_all(copy)
        text = {where: yaml.safe_dump_all(manifests, width=10_000) for where, manifests in filled.items()}
        finished = [where for where in text if where.startswith(("overlays/aks", "argocd")) and "template" not in where]
        for where in finished:
            for remnant in (site.PLACEHOLDER, "localhost"):
                if remnant in text[where] and where != "overlays/aks/database":
                    yield Finding(where, remnant, "is left with every value of site.yaml filled in: a replacement is missing")
        for key, value in probes.items():
            if not any(value in text[where] for where in finished):
                yield Finding(str(site.SITE), key, "has no effect: no replacement puts it anywhere")
        for where in OVERLAYS:
            if where in renders:
                before = yaml.safe_dump_all(renders[where], width=10_000).replace("goals:dev", "goals:before")
                after = yaml.safe_dump_all(renders[where], width=10_000).replace("goals:dev", "goals:after")
                image = site.values(ROOT)["image"]
                yield from changes.find_refused(where, read(before), read(after.replace(image, image.replace("0", "1"))))


def main(arguments: list[str]) -> int:
    """Print one line for each finding; 0 if there is none, 1 if there are some, 2 if it could not be checked."""
    parser = argparse.ArgumentParser(prog="python -m lint", description="Check the manifests under k8s, or the files named.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="rendered manifests; without any, everything under k8s")
    parser.add_argument("--crds", type=Path, default=Path(os.environ.get("CRDS") or CRDS), help="folder of CRDs (default: $CRDS, else .cache/crds)")
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
    print(f"{len(findings)} finding{'' if len(findings) == 1 else 's'} in {time.monotonic() - started:.1f} s", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
