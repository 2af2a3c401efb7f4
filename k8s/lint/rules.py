"""The list of rules: each is a function whose name is the rule's and whose docstring is the failure it prevents."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lint.inventory import Inventory
from lint.manifests import Finding, Manifest, name

Wrong = Iterator[tuple[Manifest, str]]
Check = Callable[[Inventory], Wrong]
RULES: dict[str, Check] = {}


class Why(NamedTuple):
    """What a finding says beside what is wrong."""

    rule: str
    harm: str


def rule(check: Check) -> Check:
    """Enter a function into the list."""
    RULES[check.__name__.replace("_", "-")] = check
    return check


def why(identity: str, check: Callable[..., object]) -> Why:
    return Why(identity, (check.__doc__ or "").strip().rstrip("."))


def find_broken(inventory: Inventory, only: str = "") -> Iterator[Finding]:
    """Run all rules, or one, over what is in one cluster at one time."""
    for identity, check in RULES.items() if not only else ((only, RULES[only]),):
        for manifest, problem in check(inventory):
            yield Finding(inventory.origin(manifest), name(manifest), problem, *why(identity, check))
