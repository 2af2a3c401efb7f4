"""A Prometheus in the cluster that does what the operator would make of the ServiceMonitor and the rules."""

import json
import re
import urllib.parse
from typing import Any, Self

import yaml

from tests.cluster.kubectl import OURS, Kubectl
from tests.cluster.pods import restricted
from tests.cluster.visit import renders
from tools.lint.inventory import first, get_path
from tools.lint.manifests import ROOT, Manifest

NAME = f"{OURS}-prometheus"
FASTER = 12
"""How much faster than in the rules time passes: 5m are 25 s, so that an alert can be waited for."""

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def image() -> str:
    """The one that compose.yaml pins."""
    compose = yaml.safe_load((ROOT.parent / "compose.yaml").read_text(encoding="utf-8"))
    return str(compose["services"]["prometheus"]["image"])


def rendered(kind: str) -> list[Manifest]:
    return [one for one in renders()["overlays/local"] if one["kind"] == kind]


def scrapes(monitor: Manifest) -> list[Manifest]:
    """The jobs that the operator writes for a ServiceMonitor."""
    labels = first(monitor, "spec.selector.matchLabels")
    chosen = {"__meta_kubernetes_service_label_" + re.sub(r"\W", "_", key): value for key, value in labels.items()}
    return [
        {
            "job_name": f"serviceMonitor/{monitor['metadata']['namespace']}/{monitor['metadata']['name']}/{number}",
            "kubernetes_sd_configs": [
                {"role": "endpointslice", "namespaces": {"names": first(monitor, "spec.namespaceSelector.matchNames")}}
            ],
            "scrape_interval": "2s",
            "scrape_timeout": "2s",
            "metrics_path": endpoint["path"],
            "sample_limit": first(monitor, "spec.sampleLimit", 0),
            "relabel_configs": [
                *(
                    {"source_labels": [key], "regex": re.escape(value), "action": "keep"}
                    for key, value in chosen.items()
                ),
                {
                    "source_labels": ["__meta_kubernetes_endpointslice_port_name"],
                    "regex": endpoint["port"],
                    "action": "keep",
                },
                {"source_labels": ["__meta_kubernetes_service_name"], "target_label": "job"},
                {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
            ],
        }
        for number, endpoint in enumerate(get_path(monitor, "spec.endpoints[]"))
    ]


def hasten(groups: list[Manifest]) -> list[Manifest]:
    """The same rules where time passes faster."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{max(int(found[2]) * UNITS[found[3]] // FASTER, 1)}s{found[4]}"

    text = json.dumps(groups)
    text = re.sub(r'("for": ")(\d+)([smhd])(")', shorter, text)
    hastened: list[Manifest] = json.loads(re.sub(r"(\[)(\d+)([smhd])(\])", shorter, text))
    return hastened


def manifests() -> list[Manifest]:
    """The pod, with the labels by which the policies know Prometheus, and what it may look at."""
    rules = [group for one in rendered("PrometheusRule") for group in one["spec"]["groups"]]
    config = {
        "global": {"evaluation_interval": "2s"},
        "rule_files": ["/etc/prometheus/rules.yaml"],
        "scrape_configs": [job for one in rendered("ServiceMonitor") for job in scrapes(one)],
    }
    files = {"prometheus.yml": yaml.safe_dump(config), "rules.yaml": yaml.safe_dump({"groups": hasten(rules)})}
    here = {"name": NAME, "namespace": "monitoring", "labels": {OURS: "yes"}}
    there = here | {"namespace": "goals"}
    rights = [
        {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME}
    pod = restricted(
        NAME,
        "monitoring",
        {"app.kubernetes.io/name": "prometheus"},
        {
            "serviceAccountName": NAME,
            "automountServiceAccountToken": True,
            "volumes": [{"name": "config", "configMap": {"name": NAME}}, {"name": "data", "emptyDir": {}}],
        },
        {
            "image": image(),
            "args": ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"],
            "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 1},
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/prometheus"},
                {"name": "data", "mountPath": "/prometheus"},
            ],
        },
    )
    rbac = "rbac.authorization.k8s.io/v1"
    subjects = [{"kind": "ServiceAccount", "name": NAME, "namespace": "monitoring"}]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": here},
        {"apiVersion": rbac, "kind": "Role", "metadata": there, "rules": rights},
        {"apiVersion": rbac, "kind": "RoleBinding", "metadata": there, "roleRef": role, "subjects": subjects},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": here, "data": files},
        pod,
    ]


class Prometheus:
    """Its API, asked from inside its pod: no policy lets anybody else in."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl

    def __enter__(self) -> Self:
        self.kubectl.apply(manifests())
        self.kubectl("wait", "--for=condition=Ready", f"pod/{NAME}", "--namespace", "monitoring", "--timeout=120s")
        return self

    def __exit__(self, *_: object) -> None:
        self.kubectl.delete(manifests())

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:9090/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        printed = self.kubectl("exec", "--namespace", "monitoring", NAME, "--", "wget", "-qO-", url)
        return json.loads(printed)["data"]

    def firing(self) -> set[str]:
        """The alerts that fire."""
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}

    def up(self) -> dict[str, str]:
        """Whether each pod that is scraped answers, by its name."""
        targets = self.ask("targets", state="active")["activeTargets"]
        return {one["labels"]["pod"]: one["health"] for one in targets}
