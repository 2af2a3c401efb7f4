"""Creates a temporary CloudNativePG cluster and always removes it, even after a failure."""

import contextlib
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog

from goals.errors import ConfigurationError
from goals.limits import Limits

log = structlog.get_logger(__name__)

_APPLY = "application/apply-patch+yaml"
"""Server-side apply; JSON is valid YAML. The request names the object, so a Role may be limited to that name."""


class Scratch:
    """The cluster that the files in `folder` describe.

    They are `cluster.json`, its manifest; `token` and `ca.crt` for the API server; `job-name` and `job-uid` of the Job
    that owns the cluster: if this process cannot remove it, Kubernetes removes it with the Job.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._manifest: dict[str, Any] = json.loads(self._read("cluster.json"))
        metadata = self._manifest["metadata"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": self._read("job-name"), "uid": self._read("job-uid")}
        metadata["ownerReferences"] = [owner]
        self.name = str(metadata["name"])
        self._path = f"/apis/{self._manifest['apiVersion']}/namespaces/{metadata['namespace']}/clusters/{self.name}"

    def _read(self, name: str) -> str:
        try:
            return (self._folder / name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {error.filename} ({error.strerror}): mount it as k8s/components/restore-check does"
            ) from None

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Create the cluster, yield the host of its primary, and remove the cluster at the end."""
        self._remove()  # left by a run that was killed
        try:
            began = time.monotonic()
            self._ask("PATCH", f"{self._path}?fieldManager=restore-check", self._manifest)
            log.info("restoring the backups", cluster=self.name)
            host = self._until_ready()
            log.info("restored", cluster=self.name, seconds=round(time.monotonic() - began))
            yield host
        finally:
            self._remove()

    def _until_ready(self) -> str:
        deadline = time.monotonic() + self._limits.restore_patience
        while True:
            status = (self._ask("GET", self._path) or {}).get("status", {})
            ready = (one for one in status.get("conditions", ()) if one["type"] == "Ready")
            if any(one["status"] == "True" for one in ready):
                return str(status["writeService"])
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"the backups were not restored within {self._limits.restore_patience:g} s "
                    f"({status.get('phase', 'the cluster has no status')}): see the log of {self.name}'s pods"
                )
            time.sleep(self._limits.restore_pause)

    def _remove(self) -> None:
        """Remove the cluster; return once it is gone, with its pods and volumes."""
        deadline = time.monotonic() + self._limits.removal_patience
        # In the foreground: the object exists until everything that it owns is gone.
        while self._ask("DELETE", f"{self._path}?propagationPolicy=Foreground") is not None:
            if time.monotonic() > deadline:
                raise ConfigurationError(f"{self.name} still exists: kubectl delete cluster {self.name}")
            time.sleep(self._limits.restore_pause)

    def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any] | None:
        """Send a request to the API server and return its response, or None if the object does not exist."""
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
        host = f"[{host}]" if ":" in host else host
        headers = {"Authorization": f"Bearer {self._read('token')}", "Content-Type": _APPLY}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"https://{host}:{port}{path}", data, headers, method=method)
        deadline = time.monotonic() + self._limits.api_patience
        while True:
            try:
                context = ssl.create_default_context(cafile=self._folder / "ca.crt")
                with urllib.request.urlopen(request, timeout=self._limits.api_timeout, context=context) as answer:  # noqa: S310  https alone
                    return dict(json.load(answer))
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == HTTPStatus.NOT_FOUND:
                        return None
                    problem = f"refused {method} {path} ({error.code}: {error.read().decode(errors='replace')})"
                    passes = error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
            except OSError as error:
                problem, passes = f"at {host}:{port} does not answer: {error}", True
            if not passes or time.monotonic() > deadline:
                raise ConfigurationError(f"the API server {problem}")
            time.sleep(self._limits.restore_pause)
