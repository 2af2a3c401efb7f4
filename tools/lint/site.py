"""Check the one file that a user fills in, overlays/aks/site/site.yaml: each value is set and has an effect."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.lint.manifests import IGNORED, Finding, includes, kustomizations, read, render_all

FOLDER = Path("overlays/aks/site")
SITE = FOLDER / "site.yaml"
PLACEHOLDERS = ("fill-me-in", "0" * 64)
"""The template's placeholders for a value, or an image's digest, that the user must fill in."""

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
"""One value for each key that occurs nowhere else, except `issuer`, which names an existing one."""

WHY = ("site", "The site runs with a value of the template, such as an address that does not exist")
HAS_DEFAULT = frozenset({"issuer", "revision", "restoreTime"})
"""The keys that need not be filled in."""


def values(root: Path) -> dict[str, str]:
    """Return the values of the file by key."""
    (site,) = read((root / SITE).read_text(encoding="utf-8"))
    return dict(site["data"])


def find_forgotten(root: Path) -> Iterator[Finding]:
    """Yield each value that is still a placeholder, unless all are: that is the template, which is valid."""
    given = values(root)
    if differing := PROBES.keys() ^ given.keys():
        problem = "is in the file or in tools/lint/site.py, but not in both"
        yield Finding(str(SITE), ", ".join(sorted(differing)), problem, *WHY)
    forgotten = [key for key, value in given.items() if any(text in value for text in PLACEHOLDERS)]
    if len(forgotten) < len(PROBES.keys() - HAS_DEFAULT):
        for key in forgotten:
            yield Finding(str(SITE), key, f"is still the placeholder {given[key]!r}: fill it in", *WHY)


def find_unplaced(root: Path) -> Iterator[Finding]:
    """Fill in a copy and render it: each value must occur in the output, and no placeholder may remain."""
    with tempfile.TemporaryDirectory(prefix="goals-k8s-") as folder:
        copy = Path(folder) / root.name
        # The copy also needs the folder next to k8s that the monitoring component includes.
        for source in (root, root.parent / "observability"):
            shutil.copytree(source, Path(folder) / source.name, ignore=IGNORED)
        fill(copy)
        finished = [one for one in kustomizations(copy) if (copy / FOLDER).resolve() in includes(one, "components")]
        texts = {where: json.dumps(manifests) for where, manifests in render_all(copy, finished).items()}
    for where, text in texts.items():
        for remnant in (*PLACEHOLDERS, "localhost"):
            if remnant in text:
                yield Finding(where, remnant, f"remains although {SITE} is filled in: a replacement is missing")
    for key, value in PROBES.items():
        if not any(value in text for text in texts.values()):
            yield Finding(str(SITE), key, "has no effect: no replacement uses it", *WHY)


def fill(root: Path) -> None:
    """Write the probes into the file under `root`, which must be a copy, never the user's tree."""
    lines = (root / SITE).read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines):
        key = line.strip().partition(": ")[0]
        if line.startswith(f"  {key}: ") and key in PROBES:
            lines[number] = f'  {key}: "{PROBES[key]}"\n'
    (root / SITE).write_text("".join(lines), encoding="utf-8")
