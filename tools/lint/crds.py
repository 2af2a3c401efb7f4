"""Fetches the CRDs of the pinned operators (`make crds`) into $CRDS, each checked against the sum in crds.sha256.

The sums are of files that were read, at these tags; a different byte is refused.
"""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

SOURCES = {
    "argo-cd": "argoproj/argo-cd/v3.5.1/manifests/crds",
    "cert-manager": "cert-manager/cert-manager/v1.21.1/deploy/crds",
    "cloudnative-pg": "cloudnative-pg/cloudnative-pg/v1.30.0/config/crd/bases",
    "external-secrets": "external-secrets/external-secrets/v2.9.0/config/crds/bases",
    "gateway-api": "kubernetes-sigs/gateway-api/v1.5.1/config/crd/standard",
    "nginx-gateway-fabric": "nginx/nginx-gateway-fabric/v2.6.7/config/crd/bases",
    "plugin-barman-cloud": "cloudnative-pg/plugin-barman-cloud/v0.14.0/config/crd/bases",
    "prometheus-operator": "prometheus-operator/prometheus-operator/v0.93.0/example/prometheus-operator-crd",
}
"""Folder here: repository, tag and folder there."""

HOST = "https://raw.githubusercontent.com"
SUMS = Path(__file__).with_name("crds.sha256")


def wanted() -> dict[str, str]:
    """The sum of each file, by `folder/file`."""
    lines = (line.split() for line in SUMS.read_text(encoding="utf-8").splitlines())
    return {path: digest for digest, path in lines}


def fetch(folder: Path, host: str = HOST) -> int:
    """Bring `folder` up to the list, leaving alone what is right already; the number of files fetched.

    Raises `OSError` where a file cannot be had, `ValueError` where it is not the one that was read.
    """
    fetched = 0
    for path, digest in wanted().items():
        target = folder / path
        if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == digest:
            continue
        project, _, file = path.partition("/")
        url = f"{host}/{SOURCES[project]}/{file}"
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310  the host is a constant, a test's server apart
            content = response.read()
        if (got := hashlib.sha256(content).hexdigest()) != digest:
            raise ValueError(f"{url} has the sum {got}, not {digest}: it is not the file this project was checked with")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        fetched += 1
        print(path, file=sys.stderr)
    return fetched


def main() -> int:
    """Fetch into $CRDS, else .cache/crds beside the folder k8s."""
    folder = Path(os.environ.get("CRDS") or Path(__file__).resolve().parents[2] / ".cache" / "crds")
    try:
        fetched = fetch(folder)
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: {len(wanted())} CRDs, {fetched} of them new", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
