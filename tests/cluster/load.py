"""Load on the service from a pod inside the cluster, with the journal that tells what was acknowledged."""

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from drills.journal import Attempt, Verdict, read_journal, reconcile
from drills.scenarios import visitors
from tests.cluster.kubectl import OURS
from tests.cluster.pods import restricted
from tests.cluster.site import Site
from tests.cluster.visit import renders
from tools.lint.manifests import Manifest
from tools.polling import wait_until

OUT = "/loadtest/out"
PLAY = """
for scenario in /scenarios/*.toml; do
  name=$(basename $scenario .toml)
  locust --headless --scenario $scenario --host http://goals:8080 --stop-timeout 30 \\
    --journal $OUT/$name.jsonl --out $OUT/$name >$OUT/$name.log 2>&1 &
  players="$players $!"
done
trap 'kill -TERM $players' USR1
while ! wait; do :; done
touch $OUT/over
trap - USR1
exec tail -f /dev/null
"""
"""Several kinds of clients at once, until USR1 comes; then it stays, so that the journals can be read."""

VISITORS = {
    "dense": visitors(10, pause="60ms"),
    # Well below the 5 s after which the service closes an idle connection, even where this pod waits its turn.
    "sparse": visitors(30, pause="1200ms"),
    "fresh": visitors(5, pause="80ms", close=True),
}
"""Who try once: some at once, some whose connection is mostly idle, some with a new one each time."""


class Load:
    """The clients of some scenarios, by their names; `spec` is of their pod."""

    def __init__(self, site: Site, folder: Path, scenarios: Mapping[str, str] = VISITORS, **spec: Any) -> None:
        self._site = site
        self._folder = folder
        # A name of its own: a pod that is gone by the API server's word may still be asked by its name for a while.
        self._name = f"{OURS}-load-{secrets.token_hex(3)}"
        labels = {"app.kubernetes.io/name": "loadtest"}
        files = {f"{name}.toml": text for name, text in scenarios.items()}
        metadata = {"name": self._name, "namespace": "goals", "labels": {OURS: "yes"}}
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files}
        spec |= {
            "volumes": [
                {"name": "scenarios", "configMap": {"name": self._name}},
                *({"name": name, "emptyDir": {}} for name in ("out", "tmp")),
            ]
        }
        container = {
            "image": "goals-loadtest:dev",
            "command": ["sh", "-c", PLAY],
            "env": [{"name": "OUT", "value": OUT}],
            "volumeMounts": [
                {"name": "scenarios", "mountPath": "/scenarios"},
                {"name": "out", "mountPath": OUT},
                {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  of a pod of its own
            ],
        }
        policies = [one for one in renders()["components/loadtest"] if one["kind"] == "NetworkPolicy"]
        self._manifests: list[Manifest] = [*policies, config, restricted(self._name, "goals", labels, spec, container)]

    def __enter__(self) -> Self:
        self._site.sql("TRUNCATE goals")
        self._site.kubectl.apply(self._manifests)
        wait_until(lambda: self.count() > 300, "the load is on", 120)
        return self

    def __exit__(self, *_: object) -> None:
        self._site.kubectl.delete(self._manifests)

    def _shell(self, command: str) -> str:
        return self._site.kubectl("exec", "--namespace", "goals", self._name, "--", "sh", "-c", command)

    def count(self) -> int:
        """How many requests have ended."""
        done = self._site.kubectl.run(
            "exec", "--namespace", "goals", self._name, "--", "sh", "-c", f"cat {OUT}/*.jsonl | wc -l"
        )
        return int(done.stdout or 0) if done.returncode == 0 else 0

    def until(self, requests: int) -> None:
        """Wait for so many more."""
        wanted = self.count() + requests
        wait_until(lambda: self.count() >= wanted, f"{requests} more requests", 300)

    def stop(self) -> list[Attempt]:
        """End it after what is under way, and read the journals."""
        self._shell("kill -USR1 1")
        wait_until(lambda: self._shell(f"ls {OUT}").split().count("over"), "the load ends", 60)
        file = self._folder / f"journal-{time.monotonic_ns()}.jsonl"
        file.write_text(self._shell(f"cat {OUT}/*.jsonl"), encoding="utf-8")
        return [one for one in read_journal(file) if not one.is_cut_off]

    def verdict(self, attempts: list[Attempt]) -> Verdict:
        """Hold what was acknowledged against what is stored."""
        return reconcile(attempts, self._site.names())


def failed(attempts: list[Attempt]) -> list[str]:
    """What did not succeed."""
    return [f"{one.ended:.1f} {one.step}: {one.status} {one.error or ''}" for one in attempts if one.shows_error]
