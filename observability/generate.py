"""Generate the rules, the PrometheusRule and the dashboards from `slo.toml` and the code."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from goals.app import PUBLIC_ROUTES
from goals.telemetry import REQUEST_BOUNDS
from observability import dashboards, rules, slo

HERE = Path(__file__).parent
HEADER = "# Generated from slo.toml and rules.py by `make slo`; do not edit.\n"


def render(objectives: slo.Objectives) -> dict[Path, str]:
    """Return every generated file by its path relative to this folder; raise a `ValueError` for invalid objectives."""
    if objectives.latency.threshold_seconds not in REQUEST_BOUNDS:
        bounds = ", ".join(f"{bound:g}" for bound in REQUEST_BOUNDS)
        raise ValueError(f"latency.threshold_seconds must be a bucket of the duration histogram, one of {bounds}")
    known = {route.path for route in PUBLIC_ROUTES}
    for route in objectives.requests.excluded_routes:
        if route not in known:
            raise ValueError(
                f"requests.excluded_routes: there is no route {route}; the routes are {', '.join(sorted(known))}"
            )
    groups = rules.build_groups(objectives)
    # part k8s
    custom_resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "goals", "labels": {"release": "kube-prometheus-stack"}},
        "spec": {"groups": groups},
    }
    # end k8s
    files = {
        Path("goals.rules.yaml"): HEADER + _dump({"groups": groups}),
        # part k8s
        Path("prometheusrule.yaml"): HEADER + _dump(custom_resource),
        # end k8s
    }
    for dashboard in dashboards.build(objectives):
        files[Path("dashboards", f"{dashboard['uid']}.json")] = json.dumps(dashboard, indent=2) + "\n"
    return files


class _Dumper(yaml.SafeDumper):
    """Repeats values instead of using anchors, and keeps multi-line expressions readable."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _dump(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120)


def main() -> int:
    try:
        files = render(slo.read())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path, text in files.items():
        (HERE / path).write_text(text, encoding="utf-8")
        print(f"observability/{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
