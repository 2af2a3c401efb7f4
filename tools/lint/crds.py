"""Download the pinned operators' CRDs into $CRDS, and their release files into $RELEASES (`make crds`).

Each file must match its checksum in crds.sha256 or k8s/platform/sums.txt. A release file without a checksum is not
downloaded: `make platform-sums` records it.
"""

import hashlib
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

SOURCES = {
    # part argocd
    "argo-cd": "argoproj/argo-cd/v3.5.1/manifests/crds",
    # end argocd
    "cert-manager": "cert-manager/cert-manager/v1.21.1/deploy/crds",
    "cloudnative-pg": "cloudnative-pg/cloudnative-pg/v1.30.0/config/crd/bases",
    "external-secrets": "external-secrets/external-secrets/v2.9.0/config/crds/bases",
    "gateway-api": "kubernetes-sigs/gateway-api/v1.5.1/config/crd/standard",
    "nginx-gateway-fabric": "nginx/nginx-gateway-fabric/v2.6.7/config/crd/bases",
    # part azure
    "plugin-barman-cloud": "cloudnative-pg/plugin-barman-cloud/v0.14.0/config/crd/bases",
    # end azure
    "prometheus-operator": "prometheus-operator/prometheus-operator/v0.93.0/example/prometheus-operator-crd",
}
"""Repository, tag and folder of the CRDs, by local folder."""

HOST = "https://raw.githubusercontent.com"
SUMS = Path(__file__).with_name("crds.sha256")
PLATFORM = Path(__file__).resolve().parents[2] / "k8s" / "platform"


def wanted() -> dict[str, str]:
    """Return the checksum of each file, by `folder/file`."""
    lines = (line.split() for line in SUMS.read_text(encoding="utf-8").splitlines())
    return {path: digest for digest, path in lines}


def releases(platform: Path = PLATFORM) -> dict[str, tuple[str, str | None]]:
    """Return the remote files of the kustomizations, by `folder/file`: the address, and the checksum if recorded."""
    lines = (line.split() for line in (platform / "sums.txt").read_text(encoding="utf-8").splitlines())
    sums = {address: digest for digest, address in lines}
    return {
        f"{file.parent.relative_to(platform)}/{address.rpartition('/')[2]}": (address, sums.get(address))
        for file in sorted(platform.rglob("kustomization.yaml"))
        for address in re.findall(r"https://\S+\.yaml", file.read_text(encoding="utf-8"))
    }


def is_right(file: Path, digest: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest


def fetch(folder: Path, files: dict[str, tuple[str, str]]) -> int:
    """Download the files that are missing in `folder` or have another checksum; return their number.

    Raises `OSError` if a file is unavailable, `ValueError` if a downloaded file has another checksum.
    """
    fetched = 0
    for path, (url, digest) in files.items():
        target = folder / path
        if is_right(target, digest):
            continue
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310  the host is a constant, a test's server apart
            content = response.read()
        if (got := hashlib.sha256(content).hexdigest()) != digest:
            raise ValueError(f"{url} has the checksum {got}, not {digest}: it is not the file that was checked")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        fetched += 1
        print(path, file=sys.stderr)
    return fetched


def address(path: str, host: str = HOST) -> str:
    """Return the address of a CRD from its `folder/file`."""
    project, _, file = path.partition("/")
    return f"{host}/{SOURCES[project]}/{file}"


def main() -> int:
    """Download CRDs into $CRDS (default: .cache/crds) and release files into $RELEASES (default: .cache/releases)."""
    cache = PLATFORM.parents[1] / ".cache"
    known = {path: (url, digest) for path, (url, digest) in releases().items() if digest}
    crds = {path: (address(path), digest) for path, digest in wanted().items()}
    try:
        for variable, name, files in (("CRDS", "crds", crds), ("RELEASES", "releases", known)):
            folder = Path(os.environ.get(variable) or cache / name)
            fetched = fetch(folder, files)
            print(f"{folder}: {len(files)} files, {fetched} of them new", file=sys.stderr)
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in releases().keys() - known.keys():
        print(f"{path} has no checksum and was not downloaded: `make platform-sums` records it", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
