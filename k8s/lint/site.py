"""Keeps the one file that a user fills in (overlays/aks/site/site.yaml) honest: nothing forgotten, nothing without effect."""

from collections.abc import Iterator
from pathlib import Path

from lint.manifests import Finding, read

SITE = Path("overlays/aks/site/site.yaml")
PLACEHOLDER = "fill-me-in"
UNFILLED = f"{SITE} is not filled in yet: fine for the template, and nothing to apply to a cluster"

_PROBES = {
    "host": "goals.probe.test",
    "argocdHost": "argocd.probe.test",
    "email": "operator@probe.test",
    "issuer": "letsencrypt-production",
    "image": f"registry.probe.test/goals:1.2.3@sha256:{'1' * 64}",
    "loadtestImage": f"registry.probe.test/goals-loadtest:1.2.3@sha256:{'2' * 64}",
    "vaultUrl": "https://probe.vault.azure.net",
    "tenantId": "11111111-0000-0000-0000-000000000000",
    "secretsClientId": "22222222-0000-0000-0000-000000000000",
    "backupUrl": "https://probe.blob.core.windows.net/goals-db",
    "backupClientId": "33333333-0000-0000-0000-000000000000",
    "repository": "https://git.probe.test/goals.git",
    "revision": "probe",
    "restoreTime": "2026-02-03T04:05:06Z",
}
"""One value for each key, which appears nowhere else."""


def values(root: Path) -> dict[str, str]:
    """What the file says, by key."""
    (site,) = read((root / SITE).read_text(encoding="utf-8"))
    return dict(site["data"])


def find_forgotten(root: Path) -> Iterator[Finding]:
    """Name each value that still is a placeholder; with all of them untouched this is the template, which may be so."""
    forgotten = [key for key, value in values(root).items() if PLACEHOLDER in value]
    if len(forgotten) < len(untouched(root)):
        for key in forgotten:
            yield Finding(str(SITE), key, f"is still the placeholder {values(root)[key]!r}; fill it in")
    if missing := _PROBES.keys() ^ values(root).keys():
        yield Finding(str(SITE), ", ".join(sorted(missing)), "stands in the file or in lint/site.py, but not in both")


def untouched(_root: Path) -> frozenset[str]:
    """The keys that the template leaves to the user."""
    return frozenset(_PROBES) - {"issuer", "revision", "restoreTime"}


def fill(root: Path) -> dict[str, str]:
    """Fill in `root`'s file with probes, in place: for a copy, never for the user's own."""
    lines = (root / SITE).read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines):
        key, colon, _ = line.strip().partition(": ")
        if colon and key in _PROBES and line.startswith("  "):
            lines[number] = f'  {key}: "{_PROBES[key]}"\n'
    (root / SITE).write_text("".join(lines), encoding="utf-8")
    return dict(_PROBES)
