"""The site as k8s/README.md brings it, with a stand-in for the database where CloudNativePG is not installed."""

import base64
import copy
import functools
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme

from tests.cluster.kubectl import OURS, Kubectl
from tests.cluster.needs import missing
from tests.cluster.visit import renders
from tools.lint.manifests import ROOT, Manifest, read
from tools.polling import wait_until

STANDIN = Path(__file__).with_name("standin")
SELECTOR = "app.kubernetes.io/name=goals,app.kubernetes.io/component=web"
Say = Callable[[str], None]


def secret(name: str, **data: str | bytes) -> Manifest:
    encoded = {key: base64.b64encode(one.encode() if isinstance(one, str) else one) for key, one in data.items()}
    metadata = {"name": name, "namespace": "goals", "labels": {OURS: "yes"}}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "data": {key.replace("_", "."): one.decode() for key, one in encoded.items()},
    }


class Site:
    """The namespace goals and what it stands on. `password` is the role's, as the stand-in was made with it."""

    def __init__(self, kubectl: Kubectl, say: Say) -> None:
        self.kubectl = kubectl
        self.say = say
        self.standin = missing("CloudNativePG", kubectl)
        """Why the database is a stand-in; empty where it is CloudNativePG's."""
        self.password = secrets.token_urlsafe(24)
        self.seconds: dict[str, float] = {}
        """How long each step took."""
        self.waited_for = ""
        """What a pod waited for before the database's Secrets were there, and as what kubectl showed it."""

    # Coming up.

    def bring(self) -> None:
        for name, folder in (("namespaces", "platform/namespaces"), ("overlay applied", "overlays/local")):
            self._step(name, functools.partial(self.kubectl, "apply", "--server-side", "-k", str(ROOT / folder)))
        if self.standin:
            self._step("a pod waits for its Secrets", self._until_pod_waits)
            self._step("stand-in database ready", self.bring_database)
        else:
            self._step("database ready", lambda: self._wait("cluster/goals-db", "condition=Ready"))
        self._step("service ready", self.until_rolled_out)
        if not missing("gateway", self.kubectl):
            self._step("gateway ready", self._until_gateway)

    def _step(self, name: str, do: Callable[[], object]) -> None:
        began = time.monotonic()
        do()
        self.seconds[name] = round(time.monotonic() - began, 1)
        self.say(f"{name} after {self.seconds[name]} s")

    def _until_pod_waits(self) -> None:
        def waits() -> bool:
            events = self.kubectl.get("events", "--namespace", "goals", "--field-selector", "reason=FailedMount") or ()
            wanted = 'secret "goals-db-app" not found'
            shown = self.kubectl("get", "pods", "--namespace", "goals", "--no-headers")
            self.waited_for = next((f"{shown}: {one['message']}" for one in events if wanted in one["message"]), "")
            return bool(self.waited_for)

        wait_until(waits, "a pod waits for goals-db-app", 60)

    def bring_database(self) -> None:
        """Make the stand-in with new keys, and wait for it."""
        authority = trustme.CA()
        server = authority.issue_cert("goals-db-rw", "goals-db-rw.goals", "goals-db-rw.goals.svc")
        app = {"host": "goals-db-rw", "port": "5432", "dbname": "goals_database", "username": "goals_user"}
        chain = b"".join(one.bytes() for one in server.cert_chain_pems)
        self.kubectl.apply(
            [
                secret("goals-db-ca", ca_crt=authority.cert_pem.bytes()),
                secret("goals-db-server", tls_crt=chain, tls_key=server.private_key_pem.bytes()),
                secret("goals-db-app", **app, password=self.password),
                *read((STANDIN / "database.yaml").read_text(encoding="utf-8")),
            ]
        )
        self.until_database()

    def until_database(self) -> None:
        self.kubectl("rollout", "status", "statefulset/goals-db", "--namespace", "goals", "--timeout=170s")

    def until_rolled_out(self) -> None:
        self.kubectl("rollout", "status", "deployment/goals", "--namespace", "goals", "--timeout=300s", seconds=310)

    def _wait(self, what: str, condition: str, namespace: str = "goals") -> None:
        self.kubectl("wait", f"--for={condition}", what, "--namespace", namespace, "--timeout=600s", seconds=610)

    def _until_gateway(self) -> None:
        self._wait("gateway/edge", "condition=Programmed", "edge")
        self.kubectl("rollout", "status", "deployment/edge-nginx", "--namespace", "edge", "--timeout=300s", seconds=310)

    # Changing it, and back.

    def rendered(self, kind: str, name: str) -> Manifest:
        """A copy of an object of the overlay."""
        found = (one for one in renders()["overlays/local"] if (one["kind"], one["metadata"]["name"]) == (kind, name))
        return copy.deepcopy(next(found))

    def apply(self, *manifests: Manifest) -> None:
        """Apply objects as the overlay's, so that nobody else owns a field afterwards."""
        self.kubectl.apply(manifests)

    def scale(self, number: int) -> None:
        """Let the autoscaler keep so many pods, and wait until there are as many, ready, and no others."""
        self.let_scale(number, number)
        self.kubectl("scale", "deployment/goals", "--namespace", "goals", f"--replicas={number}")  # it looks every 15 s
        wait_until(lambda: len(self.pods()) == number == len(self.ready_pods()), f"{number} pods", 180)

    def let_scale(self, least: int, most: int) -> None:
        """Set the autoscaler's borders, and a window so short that it can be seen to scale in."""
        scaler = self.rendered("HorizontalPodAutoscaler", "goals")
        scaler["spec"] |= {"minReplicas": least, "maxReplicas": most}
        scaler["spec"]["behavior"]["scaleDown"] |= {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Pods", "value": 10, "periodSeconds": 15}],
        }
        self.apply(scaler)

    def pods(self) -> list[Any]:
        return list(self.kubectl.get("pods", "--namespace", "goals", "--selector", SELECTOR) or ())

    def ready_pods(self) -> list[Any]:
        return [
            one
            for one in self.pods()
            if not one["metadata"].get("deletionTimestamp")
            and any(
                each["type"] == "Ready" and each["status"] == "True" for each in one["status"].get("conditions", ())
            )
        ]

    def restarts(self) -> int:
        return sum(each["restartCount"] for one in self.pods() for each in one["status"].get("containerStatuses", ()))

    # The database.

    def stop_database(self) -> None:
        """Take the stand-in away; its data stay."""
        self.kubectl("scale", "statefulset/goals-db", "--namespace", "goals", "--replicas=0")
        self.kubectl("wait", "--for=delete", "pod/goals-db-1", "--namespace", "goals", "--timeout=120s")

    def start_database(self) -> None:
        self.kubectl("scale", "statefulset/goals-db", "--namespace", "goals", "--replicas=1")
        self.until_database()

    def sql(self, statement: str, database: str = "goals_database") -> str:
        """Run a statement in the primary, as the superuser."""
        primary = "cnpg.io/cluster=goals-db,cnpg.io/instanceRole=primary"
        (pod,) = self.kubectl.get("pods", "--namespace", "goals", "--selector", primary)
        host = ["--host=/tmp"] if self.standin else []
        psql = ["psql", *host, "--username=postgres", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
        where = ("--namespace", "goals", pod["metadata"]["name"], "--container", "postgres")
        return self.kubectl("exec", *where, "--", *psql, database, f"--command={statement}").strip()

    def names(self) -> list[str]:
        """The names of all goals."""
        found: list[str] = json.loads(self.sql("SELECT coalesce(json_agg(goal_name), '[]') FROM goals"))
        return found
