"""Leaves the cluster as it was: what was there is written down in the cluster itself, before anything is brought.

A run that was killed has left that list behind, and the next one clears up by it.
"""

import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.kubectl import HOME, OURS, Kubectl, as_list
from tools.lint.__main__ import CRDS
from tools.lint.manifests import ROOT, Manifest, read, render_all
from tools.polling import wait_until

LISTED = (
    "namespaces,customresourcedefinitions,storageclasses,persistentvolumes,clusterroles,clusterrolebindings,apiservices,"
    "validatingadmissionpolicies,validatingadmissionpolicybindings,validatingwebhookconfigurations,deployments,"
    "statefulsets,daemonsets,jobs,services,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,"
    "resourcequotas,poddisruptionbudgets,horizontalpodautoscalers,persistentvolumeclaims"
)
"""What is compared before and after, besides the nodes."""

LABELLED = "pods,services,statefulsets,configmaps,secrets,persistentvolumeclaims,serviceaccounts,roles,rolebindings"
"""The kinds of what the suite adds to the site, each with its label."""

LINE = "{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}\n{end}"
NODE = "{range .items[*]}Node {.metadata.name} {.spec.unschedulable}{.spec.taints}{.metadata.labels}\n{end}"


@functools.cache
def renders() -> dict[str, list[Manifest]]:
    """All that is in k8s, by its path; nobody changes them."""
    return render_all(ROOT)


@functools.cache
def definitions() -> list[Manifest]:
    """The pinned CRDs, and what else their releases bring with them."""
    folder = Path(os.environ.get("CRDS") or CRDS)
    found = [one for file in sorted(folder.rglob("*.yaml")) for one in read(file.read_text(encoding="utf-8"))]
    if not found:
        raise FileNotFoundError(f"{folder} contains no CRDs: run `make crds`, or set CRDS to another folder")
    return found


def identity(one: Manifest) -> str:
    return f"{one['kind']} {one['metadata'].get('namespace', '')}/{one['metadata']['name']}"


class Visit:
    """What was there before, and the way back to it."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl

    def look(self) -> list[str]:
        """All that is compared: whatever is not of this suite's own name."""
        found = self.kubectl("get", LISTED, "--all-namespaces", "--output", f"jsonpath={LINE}")
        nodes = self.kubectl("get", "nodes", "--output", f"jsonpath={NODE}")
        return sorted(line for line in [*found.splitlines(), *nodes.splitlines()] if OURS not in line)

    def begin(self) -> None:
        """Write down what is there, and bring the CRDs that are missing."""
        if self._remembered():
            self._clear()
        before = self.look()
        if "Namespace /goals" in before:
            raise RuntimeError(
                "the namespace goals is there: the suite brings the site itself and takes it away; delete it "
                "first (kubectl delete -k k8s/overlays/local), or make a cluster without it (make cluster-up SITE=no)"
            )
        self._remember({"before": before, "existing": []})
        self.kubectl.apply([one for one in definitions() if identity(one) not in before])
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", "customresourcedefinitions", "--all")
        existing = self._existing(one for manifests in renders().values() for one in manifests)
        self._remember({"before": before, "existing": existing})
        self.kubectl.apply([HOME])

    def end(self) -> list[str]:
        """Take away what was brought; give what differs from before."""
        before = self._remembered()["before"]
        self._clear()
        try:
            wait_until(lambda: self.look() == before, "the cluster is as it was", 60)
        except TimeoutError:
            return sorted(set(self.look()) ^ set(before))
        self.kubectl("delete", "configmap", OURS, "--namespace", "default")
        return []

    def _remembered(self) -> dict[str, list[str]]:
        found = self.kubectl.get("configmap", OURS, "--namespace", "default")
        return {key: json.loads(value) for key, value in found["data"].items()} if found else {}

    def _remember(self, lists: dict[str, list[str]]) -> None:
        metadata = {"name": OURS, "namespace": "default"}
        data = {key: json.dumps(value) for key, value in lists.items()}
        self.kubectl.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}])

    def _existing(self, manifests: Iterable[Manifest]) -> list[str]:
        """Those of some objects that are in the cluster; their kinds are known to it."""
        unique = {identity(one): {key: one[key] for key in ("apiVersion", "kind", "metadata")} for one in manifests}
        stdin = as_list(unique.values())
        got = self.kubectl("get", "--ignore-not-found", "--output", "json", "--filename", "-", stdin=stdin)
        found = json.loads(got or '{"items": []}')
        return [identity(one) for one in found.get("items", [found])]

    def _clear(self) -> None:
        """Delete whatever of ours is there and was not."""
        remembered = self._remembered()
        kept = {*remembered["before"], *remembered["existing"]}
        for name in (line.split()[1] for line in kept if line.startswith("Node ") and " true" not in line):
            self.kubectl("uncordon", name)
        self.kubectl("delete", LABELLED, "--all-namespaces", "--selector", OURS, "--grace-period=1")
        brought = {identity(one): one for manifests in renders().values() for one in manifests}
        spaces = [HOME, *(one for name, one in brought.items() if one["kind"] == "Namespace" and name not in kept)]
        self.kubectl.delete(spaces)
        gone = {one["metadata"]["name"] for one in spaces}
        groups = {name.partition(".")[2] for name in self.kubectl("api-resources", "--output", "name").split()}
        rest = [
            one
            for name, one in brought.items()
            if name not in kept
            and not gone & {one["metadata"].get("namespace"), one["metadata"]["name"]}
            and one["apiVersion"].rpartition("/")[0] in groups
        ]
        self.kubectl.delete([*rest, *(one for one in definitions() if identity(one) not in kept)])
