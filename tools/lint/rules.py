"""The list of rules: each has a name, the failure that it prevents, and a function that finds violations.

A rule over all objects is a function with `@rule`; most rules check one object at a time and have `@every` with a
function that yields these. A rule's name is the function's, its failure the docstring. Tables use `enter`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from tools.lint.inventory import Container, Inventory, Pod
from tools.lint.manifests import Finding, Manifest, name

Thing = TypeVar("Thing")
Findings = Iterator[tuple[Manifest, str]]
Things = Callable[[Inventory], Iterable[tuple[Manifest, str, Thing]]]
"""What a rule checks: the object to name in a finding, the place in it, and the thing itself."""


class Rule(NamedTuple):
    """A failure, and a function that finds its causes."""

    consequence: str
    find: Callable[[Inventory], Findings]


RULES: dict[str, Rule] = {}


def name_and_consequence(check: Callable[..., object]) -> tuple[str, str]:
    """Return the name of a rule and its consequence, from the function's name and docstring."""
    return check.__name__.strip("_").replace("_", "-"), (check.__doc__ or "").strip().rstrip(".")


def rule(find: Callable[[Inventory], Findings]) -> Callable[[Inventory], Findings]:
    """Register a rule over all objects."""
    identity, consequence = name_and_consequence(find)
    RULES[identity] = Rule(consequence, find)
    return find


def enter(
    identity: str, consequence: str, things: Things[Thing], check: Callable[[Inventory, Thing], Iterable[str]]
) -> None:
    """Register a rule that checks one thing at a time."""

    def find(inventory: Inventory) -> Findings:
        for one, where, thing in things(inventory):
            for problem in check(inventory, thing):
                yield one, f"{where}{problem}"

    RULES[identity] = Rule(consequence, find)


def every(things: Things[Thing]) -> Callable[[Callable[[Inventory, Thing], Iterable[str]]], None]:
    """Register a function that checks one thing at a time."""
    return lambda check: enter(*name_and_consequence(check), things, check)


def of(*kinds: str) -> Things[Manifest]:
    """Yield the objects of these kinds, or all objects."""
    return lambda inventory: ((one, "", one) for one in (inventory.of(*kinds) if kinds else inventory.objects))


def pods(inventory: Inventory) -> Iterator[tuple[Manifest, str, Pod]]:
    return ((pod.manifest, "", pod) for pod in inventory.workloads)


def containers(inventory: Inventory) -> Iterator[tuple[Manifest, str, Container]]:
    return ((one.pod.manifest, f"{one.spec['name']}: ", one) for one in inventory.containers)


def of_the_service(inventory: Inventory) -> Iterator[tuple[Manifest, str, Container]]:
    return (each for each in containers(inventory) if each[2].is_ours)


def find_broken(inventory: Inventory, only: str = "") -> Iterator[Finding]:
    """Run all rules, or one, over the objects of one cluster."""
    for identity, (consequence, find) in RULES.items() if not only else ((only, RULES[only]),):
        for manifest, problem in find(inventory):
            yield Finding(inventory.origin(manifest), name(manifest), problem, identity, consequence)
