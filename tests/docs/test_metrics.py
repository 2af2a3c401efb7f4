"""The table of metrics against what a running service says of itself."""

import re
import time
from collections import defaultdict

import httpx2

from tests.conftest import ROOT
from tests.docs.conftest import Clone

ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (.+) \|$", re.MULTILINE)


def test_every_metric_is_documented_and_nothing_else(clone: Clone) -> None:
    with httpx2.Client() as client:
        client.post(f"{clone.page}/add_goal", data={"goal_name": "Be counted"})
        client.get(clone.page).raise_for_status()
        until = time.monotonic() + 30
        exposed = ""
        while not all(name in exposed for name in ("goals_eventloop_delay", "goals_ids_used_ratio")):
            assert time.monotonic() < until, exposed
            time.sleep(0.2)  # these are measured in the background
            exposed = client.get(f"{clone.operators}/metrics").text
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", exposed, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\w+) (.+)$", exposed, re.MULTILINE))
    labels: dict[str, set[str]] = defaultdict(set)
    for name, inside in re.findall(r"^(\w+?)(?:_bucket|_sum|_count)?\{([^}]*)\}", exposed, re.MULTILINE):
        labels[name] |= set(re.findall(r'(\w+)="', inside)) - {"le"}

    rows = ROW.findall((ROOT / "docs/metrics.md").read_text(encoding="utf-8"))
    assert {name: kind for name, kind, *_ in rows} == kinds
    for name, _, documented, what in rows:
        assert what == helps[name].rstrip("."), name
        assert labels[name] <= set(re.findall(r"\w+", documented)), name
