"""Every cell of k8s/reachability.md, tried from a pod with the row's labels to a listener with the column's."""

import itertools
import re
from collections import ChainMap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from tests.cluster.kubectl import OURS, Kubectl
from tests.cluster.pods import PORT, Target, as_root, listener, reach, start
from tests.cluster.site import Site
from tests.cluster.visit import identity, renders
from tools.lint import reachability
from tools.lint.inventory import Pod
from tools.lint.manifests import ROOT, Manifest
from tools.lint.reachability import DENIED, OUTSIDE, title

pytestmark = pytest.mark.needs("policies")

NOT_TRIED = {
    "6443 from what is not in kind": "the table of kind names the API server's port for what is there only",
}
"""Cells, or ports of cells, that cannot be tried, and why."""

ROUNDS = 3
"""A policy is enforced a moment after it is applied: what differs is tried again, so often at most."""


class Trial(NamedTuple):
    """A connection, and whether the table lets it through."""

    source: str
    target: str
    port: int
    protocol: str
    wanted: bool


def name(row: str) -> str:
    return "row-" + re.sub(r"\W+", "-", row.lower())


def trials(pods: list[Pod]) -> Iterator[Trial]:
    """All of the table's cells, port by port; a port that nobody speaks of stands for every other."""
    *others, kind = reachability.reviewed((ROOT / reachability.FILE).read_text(encoding="utf-8"))
    cells = ChainMap(kind, *others)
    outside = {
        int(port)
        for (_, target), cell in cells.items()
        if target == title(OUTSIDE)
        for port in re.findall(r"\d+", cell)
    }
    for (source, target), cell in cells.items():
        column = next(pod for pod in [*pods, OUTSIDE] if title(pod) == target)
        numbers = outside if column is OUTSIDE else set(column.ports.values())
        if column is OUTSIDE and (source, target) not in kind:
            numbers = numbers - {6443}
        for number in sorted(numbers | {PORT}):
            wanted = cell == "any" or (cell != DENIED and str(number) in cell.split(", "))
            for protocol in ("TCP", "UDP") if number == 53 else ("TCP",):
                yield Trial(source, target, number, protocol, wanted)


def labels(pod: Pod) -> dict[str, str]:
    """Those that policies ask for: the Service of the database's primary must not lead to a stand-in."""
    return {key: value for key, value in pod.labels.items() if key != "cnpg.io/instanceRole"}


class Stage:
    """A pod for each row and column, in its namespace, with its labels."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self.pods = reachability.inventories(renders())[0].pods
        nodes = [one["metadata"]["name"] for one in kubectl.get("nodes") if not one["spec"].get("unschedulable")]
        # What is no pod is on a node of its own, so that what comes from it and goes to it passes a network.
        last, others = nodes[-1], itertools.cycle(nodes[:-1])
        ports = (80, 443, 2381, 6443, 9100, 10249, 10250, 10257, 10259)
        self.outside = as_root(listener("row-outside", OURS, {}, ports, nodeName=last, hostNetwork=True))
        self.manifests = [
            listener(prefix + name(title(pod)), pod.namespace, labels(pod), pod.ports.values(), nodeName=next(others))
            for pod in self.pods
            for prefix in ("", "twin-")  # a pod and another one of its kind
        ]
        self.found: dict[str, Manifest] = {}

    def start(self) -> None:
        self.found = start(self.kubectl, [*self.manifests, self.outside])

    def reach(self, source: str, several: list[Trial]) -> list[bool]:
        pod = next(one for one in [*self.pods, OUTSIDE] if title(one) == source)
        names = [("twin-" if one.target == source else "") + name(one.target) for one in several]
        addresses = [self.found[one]["status"]["podIP"] for one in names]
        targets = [Target(address, one.port, one.protocol) for address, one in zip(addresses, several, strict=True)]
        return reach(self.kubectl, pod.namespace or OURS, name(title(pod)), targets)

    def differing(self, several: list[Trial]) -> list[Trial]:
        """Those that do not come out as the table says."""
        rows: dict[str, list[Trial]] = {}
        for one in several:
            rows.setdefault(one.source, []).append(one)
        with ThreadPoolExecutor(max_workers=6) as pool:
            answers = pool.map(self.reach, rows, rows.values())
        return [
            one
            for row, reached in zip(rows.values(), answers, strict=True)
            for one, is_open in zip(row, reached, strict=True)
            if is_open != one.wanted
        ]

    def settled(self, several: list[Trial]) -> list[Trial]:
        """The same, once the policies have had their time."""
        for _ in range(ROUNDS):
            several = self.differing(several) if several else []
        return several


@pytest.fixture(scope="module")
def stage(kubectl: Kubectl, site: Site) -> Iterator[Stage]:
    """All rows and columns, with the policies of the load test and of the check of the backups."""
    stage = Stage(kubectl)
    optional = [*renders()["components/loadtest"], *renders()["components/restore-check"]]
    policies = [one for one in optional if one["kind"] == "NetworkPolicy"]
    kubectl.apply(policies)
    try:
        stage.start()
        yield stage
    finally:
        kubectl.delete([*policies, *stage.manifests, stage.outside])


def test_every_cell_is_as_the_table_says(stage: Stage, figures: Callable[..., None]) -> None:
    every = list(trials(stage.pods))
    figures(
        connections=len(every),
        open=sum(one.wanted for one in every),
        cells=len({(one.source, one.target) for one in every}),
        not_tried="; ".join(f"{cell} ({why})" for cell, why in NOT_TRIED.items()),
    )
    assert not stage.settled(every)


@pytest.mark.parametrize(
    ("namespace", "policy", "target"),
    [
        pytest.param("goals", "database-from-goals", "goals/goals-db", id="one that opens"),
        pytest.param(
            "external-secrets",
            "default-deny",
            "external-secrets/External Secrets certificates",
            id="one that closes",
            marks=pytest.mark.full,
        ),
    ],
)
def test_control_a_policy_left_out_shows(stage: Stage, namespace: str, policy: str, target: str) -> None:
    wanted = f"NetworkPolicy {namespace}/{policy}"
    left_out = next(one for one in renders()["overlays/local"] if identity(one) == wanted)
    concerned = [one for one in trials(stage.pods) if one.target == target]
    stage.kubectl.delete([left_out])
    try:
        assert any(stage.differing(concerned) for _ in range(ROUNDS))
    finally:
        stage.kubectl.apply([left_out])
