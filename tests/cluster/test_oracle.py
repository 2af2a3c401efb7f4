"""The API server is the oracle of `make k8s`: it refuses what the linter refuses, and accepts the rest."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.cluster.kubectl import Kubectl, KubectlError, warnings
from tests.cluster.visit import identity, renders
from tests.k8s.mutants import MUTANTS, Mutant, affected, break_copy, copy
from tools.lint import changes
from tools.lint.manifests import Manifest, RenderError, render

OF_THE_SERVER = ("schema", "immutable", "pod-security")
WHERE = ("overlays/local", "overlays/aks", "argocd/goals", "argocd/server", "components/loadtest")
"""Where a change of a file arrives: the first that it touches is compared with the server."""

DIFFERENT = {
    "  namespace: goals\n": "without a namespace it lands in the one that kubectl is set to",
}
"""Mutants that the server accepts, by what they replace, and why."""


def objects_of(folder: Path, mutant: Mutant) -> tuple[str, list[Manifest]]:
    """Where a mutant shows first, and what is rendered there."""
    root = copy(folder)
    break_copy(root, mutant)
    where = next(one for one in WHERE if (root / mutant.file).resolve() in affected(root, root / one))
    return where, render(root / where)


def refusal(kubectl: Kubectl, mutant: Mutant) -> str:
    """How the server, or kubectl before it, refuses a mutant; empty where it does not."""
    try:
        with tempfile.TemporaryDirectory(prefix="goals-mutant-") as folder:
            where, broken = objects_of(Path(folder).resolve(), mutant)
    except RenderError as error:
        return str(error)
    clean = {identity(one): one for one in renders()[where]}
    changed = [one for one in broken if one != clean.get(identity(one))]
    made: list[Manifest] = []
    try:
        if mutant.rule == "immutable":  # it shows when the next version comes
            made = changed
            kubectl.apply(made)
            changed = changes.with_image(made, "goals:dev", "registry.probe.test/goals:after")
        return "".join(warnings(kubectl.apply(changed, "--dry-run=server")))
    except KubectlError as error:
        return str(error)
    finally:
        kubectl.delete(made)


def test_each_mutant_that_the_linter_refuses_is_refused_by_the_server(
    namespaces: Kubectl, figures: Callable[..., None]
) -> None:
    mutants = [one for one in MUTANTS if one.rule in OF_THE_SERVER]
    accepted = [one for one in mutants if not refusal(namespaces, one)]
    unexplained = [one for one in accepted if one.old not in DIFFERENT]
    figures(mutants=len(mutants), refused=len(mutants) - len(accepted), differ="; ".join(DIFFERENT.values()))
    assert not unexplained
    assert len(DIFFERENT) == len(accepted) <= 10


def test_control_a_mutant_that_only_the_linter_minds_is_accepted(namespaces: Kubectl) -> None:
    """A check that finds fault with everything would pass the case above."""
    (mutant,) = (one for one in MUTANTS if one.new == 'pods: "10"')
    assert not refusal(namespaces, mutant)
