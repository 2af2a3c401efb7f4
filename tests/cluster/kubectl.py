"""kubectl, held to the one context that this suite may touch."""

import json
import os
import subprocess
from collections.abc import Iterable
from typing import Any

from tools.lint.manifests import Manifest

CONTEXT = os.environ.get("CLUSTER_CONTEXT") or "kind-goals"
OURS = "goals-cluster-test"
"""The label and the name of what the suite adds to the site."""


def refusal(context: str, confirmed: str) -> str:
    """Why a context is left alone; empty where it is ours, or where somebody has typed its name twice."""
    if context in {"kind-goals", confirmed}:
        return ""
    return f"{context} may be somebody's cluster, and the suite drains its nodes: CONFIRM_CONTEXT={context} allows it"


def as_list(manifests: Iterable[Manifest]) -> str:
    """What apply and delete take from their input; of an empty list they would make an error."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})


HOME = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": OURS, "labels": {"pod-security.kubernetes.io/enforce": "privileged", OURS: "yes"}},
}
"""Where the suite's own pods live, some of which look at a node from inside."""


def warnings(printed: str) -> list[str]:
    """What the server warns of."""
    return [line for line in printed.splitlines() if line.startswith("Warning")]


class KubectlError(Exception):
    """A command that failed; the message is kubectl's own."""


class Kubectl:
    """Call it with a command's words; it gives what was printed."""

    def __init__(self, context: str = CONTEXT) -> None:
        self.context = context

    def run(self, *words: str, stdin: str = "", seconds: float = 180) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        command = ["kubectl", "--context", self.context, *words]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=seconds)

    def __call__(self, *words: str, stdin: str = "", seconds: float = 180) -> str:
        done = self.run(*words, stdin=stdin, seconds=seconds)
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def get(self, *words: str) -> Any:
        """Give an object, or a list's items; an object that is not there is `None`."""
        printed = self("get", "--output", "json", "--ignore-not-found", *words)
        found = json.loads(printed) if printed else None
        return found["items"] if found and found["kind"] == "List" else found

    def apply(self, manifests: Iterable[Manifest], *options: str) -> str:
        """Apply objects server-side, as the README does; give what the server warns of."""
        several = list(manifests)
        command = ("apply", "--server-side", *options, "--filename", "-")
        done = self.run(*command, stdin=as_list(several)) if several else None
        if done and done.returncode:
            raise KubectlError(done.stderr.strip())
        return done.stderr if done else ""

    def delete(self, manifests: Iterable[Manifest], *options: str) -> None:
        """Delete objects, whether or not they are there, and wait until they are gone."""
        if several := list(manifests):
            command = ("delete", "--ignore-not-found", "--timeout", "150s", *options, "--filename", "-")
            self(*command, stdin=as_list(several))

    def python(self, namespace: str, pod: str, program: str, *words: str, stdin: str = "") -> str:
        """Run a program in a pod of the service's image."""
        return self(
            "exec", "--stdin", "--namespace", namespace, pod, "--", "python", "-c", program, *words, stdin=stdin
        )
