"""Keeps the one file that a user fills in, overlays/aks/site/site.yaml, honest: nothing forgotten, nothing idle."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.lint.manifests import IGNORED, Finding, includes, kustomizations, read, render_all

FOLDER = Path("overlays/aks/site")
SITE = FOLDER / "site.yaml"
PLACEHOLDERS = ("fill-me-in", "0" * 64)
"""What the template puts where a value, or an image's digest, is the user's."""

PROBES = {
    "host": "goals.probe.test",
    # part argocd
    "argocdHost": "argocd.probe.test",
    # end argocd
    "email": "operator@probe.test",
    "issuer": "letsencrypt-production",
    "image": f"registry.probe.test/goals:1.2.3@sha256:{'1' * 64}",
    # part loadtest
    "loadtestImage": f"registry.probe.test/goals-loadtest:1.2.3@sha256:{'2' * 64}",
    # end loadtest
    "vaultUrl": "https://probe.vault.azure.net",
    "tenantId": "11111111-0000-0000-0000-000000000000",
    "secretsClientId": "22222222-0000-0000-0000-000000000000",
    "backupUrl": "https://probe.blob.core.windows.net/goals-db",
    "backupClientId": "33333333-0000-0000-0000-000000000000",
    # part argocd
    "repository": "https://git.probe.test/goals.git",
    "revision": "probe-revision",
    # end argocd
    "restoreTime": "2026-02-03T04:05:06Z",
}
"""One value for each key, found nowhere else (`issuer` apart, which names one of ours)."""

WHY = ("site", "The site runs with a value of the template: somebody else's address, or none")
HAS_DEFAULT = frozenset({"issuer", "revision", "restoreTime"})
"""The keys that need not be filled in."""


def values(root: Path) -> dict[str, str]:
    """What the file says, by key."""
    (site,) = read((root / SITE).read_text(encoding="utf-8"))
    return dict(site["data"])


def find_forgotten(root: Path) -> Iterator[Finding]:
    """Name each value that still is a placeholder; with all of them untouched this is the template, which may be so."""
    given = values(root)
    if differing := PROBES.keys() ^ given.keys():
        problem = "stands in the file or in tools/lint/site.py, but not in both"
        yield Finding(str(SITE), ", ".join(sorted(differing)), problem, *WHY)
    forgotten = [key for key, value in given.items() if any(text in value for text in PLACEHOLDERS)]
    if len(forgotten) < len(PROBES.keys() - HAS_DEFAULT):
        for key in forgotten:
            yield Finding(str(SITE), key, f"is still the placeholder {given[key]!r}: fill it in", *WHY)


def find_unplaced(root: Path) -> Iterator[Finding]:
    """Fill in a copy and look: each value must come out somewhere, and no placeholder may be left."""
    with tempfile.TemporaryDirectory(prefix="goals-k8s-") as folder:
        copy = Path(folder) / root.name
        # The copy needs what stands beside k8s as well: the monitoring component includes it.
        for source in (root, root.parent / "observability"):
            shutil.copytree(source, Path(folder) / source.name, ignore=IGNORED)
        fill(copy)
        finished = [one for one in kustomizations(copy) if (copy / FOLDER).resolve() in includes(one, "components")]
        texts = {where: json.dumps(manifests) for where, manifests in render_all(copy, finished).items()}
    for where, text in texts.items():
        for remnant in (*PLACEHOLDERS, "localhost"):
            if remnant in text:
                yield Finding(where, remnant, f"is left with every value of {SITE} filled in: a replacement is missing")
    for key, value in PROBES.items():
        if not any(value in text for text in texts.values()):
            yield Finding(str(SITE), key, "has no effect: no replacement puts it anywhere", *WHY)


def fill(root: Path) -> None:
    """Write the probes into `root`'s file: for a copy, never for the user's own."""
    lines = (root / SITE).read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines):
        key = line.strip().partition(": ")[0]
        if line.startswith(f"  {key}: ") and key in PROBES:
            lines[number] = f'  {key}: "{PROBES[key]}"\n'
    (root / SITE).write_text("".join(lines), encoding="utf-8")
