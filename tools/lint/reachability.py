"""Evaluate which pods may connect to which, by the network policies, and compare that with reachability.md.

`python -m tools.lint.reachability` prints the tables of the manifests, to be reviewed and put into that file.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.lint.inventory import OPERATORS, Inventory, Pod, get_path, matches, namespace_of
from tools.lint.manifests import ROOT, Finding, Manifest, render_all
from tools.lint.rules import Findings, name_and_consequence, rule

FILE = "reachability.md"
OUTSIDE = Pod("outside", "", {}, {}, {}, {})
"""Everything that is not a pod: users, nodes, the API server, the internet."""

OTHER = 1
"""Stands for every port that no policy and no pod names."""

DENIED = "–"  # noqa: RUF001  a typographic dash
NO_POD = "anything that is not a pod"
# part azure
AKS = ("argocd/goals", "argocd/server", "platform/namespaces", "components/loadtest", "components/restore-check")
NOT_IN_KIND = frozenset({"argocd", "plugin-barman-cloud"})
# end azure
KIND = ("overlays/local", "platform/namespaces", "components/loadtest")
PARTS = {"On AKS": AKS, "Differences in kind": KIND}
Cells = dict[tuple[str, str], str]


def title(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.name}" if pod.namespace else pod.name


def _means(inventory: Inventory, peer: Manifest, namespace: str, pod: Pod) -> bool:
    """Return whether a peer of a policy's rule selects this pod; as in Cilium, an ipBlock never selects a pod."""
    if pod is OUTSIDE or "ipBlock" in peer:
        return pod is OUTSIDE and "ipBlock" in peer
    spaces = peer.get("namespaceSelector")
    here = pod.namespace == namespace if spaces is None else matches(spaces, inventory.namespaces[pod.namespace])
    return here and matches(peer.get("podSelector") or {}, pod.labels)


def _has_port(ports: list[Manifest], number: int, protocol: str, target: Pod) -> bool:
    for one in ports:
        start: int | str | None = target.ports.get(str(one.get("port")), one.get("port"))
        if isinstance(start, str):
            continue  # the pod has no port of this name
        if one.get("protocol", "TCP") == protocol and (start is None or start <= number <= one.get("endPort", start)):
            return True
    return not ports


def is_open(inventory: Inventory, source: Pod, target: Pod, number: int) -> bool:
    """Return whether the policies at both ends allow a connection; DNS needs both TCP and UDP."""
    for protocol in ("TCP", "UDP") if number == 53 else ("TCP",):  # noqa: PLR2004  DNS
        for pod, other, direction, field in ((source, target, "egress", "to"), (target, source, "ingress", "from")):
            policies = inventory.policies(pod, direction) if pod is not OUTSIDE else []
            rules = [(namespace_of(one), each) for one in policies for each in one["spec"].get(direction) or ()]
            if policies and not any(
                _has_port(each.get("ports", []), number, protocol, target)
                and (not each.get(field) or any(_means(inventory, peer, here, other) for peer in each[field]))
                for here, each in rules
            ):
                return False
    return True


def matrix(inventory: Inventory) -> Cells:
    """Return the open ports from each pod, and from outside, to each pod that listens and to outside."""
    egress = (
        each for one in inventory.of("NetworkPolicy") for each in get_path(one, "spec.egress[]") if "to" not in each
    )
    named = {port for each in egress for port in get_path(each, "ports[].port")}
    ends, cells = [*inventory.pods, OUTSIDE], {}
    for source in ends:
        for target in ends:
            numbers = sorted(named if target is OUTSIDE else set(target.ports.values()))
            if target.ports or (target is OUTSIDE and source is not OUTSIDE):
                open_ports = [str(number) for number in numbers if is_open(inventory, source, target, number)]
                every = is_open(inventory, source, target, OTHER)
                cells[title(source), title(target)] = "any" if every else ", ".join(open_ports) or DENIED
    return cells


def tables(cells: Cells) -> Iterator[str]:
    """Yield Markdown: one table for each target namespace; a missing cell is empty."""
    targets = list(dict.fromkeys(target for _, target in cells))
    for namespace in sorted({target.rpartition("/")[0] for target in targets}, key=lambda one: (not one, one)):
        columns = [target for target in targets if target.rpartition("/")[0] == namespace]
        yield f"### To {namespace or NO_POD}\n"
        yield f"| from | {' | '.join(one.rpartition('/')[2] for one in columns)} |"
        yield f"| --- |{' --- |' * len(columns)}"
        rows: dict[str, list[str]] = {}
        for source in sorted({source for source, target in cells if target in columns}):
            rows.setdefault(" | ".join(cells.get((source, one), "") for one in columns), []).append(source)
        for row, sources in sorted(rows.items(), key=lambda each: (set(each[0]) <= set(DENIED + " |"), each[1])):
            yield f"| {', '.join(sources)} | {row} |"
        yield ""


def reviewed(text: str) -> list[Cells]:
    """Return the cells of the file, part by part."""
    parts: list[Cells] = []
    namespace, targets = "", list[str]()
    for line in text[text.index(f"## {next(iter(PARTS))}") :].splitlines():
        source, *row = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            parts.append({})
        elif line.startswith("### To "):
            namespace = f"{line.removeprefix('### To ')}/".removeprefix(f"{NO_POD}/")
        elif source == "from":
            targets = [f"{namespace}{one}" for one in row]
        elif "---" not in line:
            cells = dict(zip(targets, row, strict=bool(row)))
            parts[-1] |= {(one, target): cell for one in source.split(", ") for target, cell in cells.items() if cell}
    return parts


def inventories(renders: dict[str, list[Manifest]]) -> list[Inventory]:
    """Return an inventory for each part of the file."""
    # part azure
    everywhere = {one["from"] for one in OPERATORS["pods"]}
    # end azure
    return [
        # part azure
        Inventory({where: renders[where] for where in AKS}),
        # end azure
        Inventory({where: renders[where] for where in KIND}, frozenset(everywhere - NOT_IN_KIND)),
    ]


def evaluated(renders: dict[str, list[Manifest]]) -> list[Cells]:
    """Return the cells that follow from the manifests: all of the first part, and those that differ in another."""
    whole, *others = map(matrix, inventories(renders))
    return [whole, *({key: cell for key, cell in one.items() if cell != whole.get(key, DENIED)} for one in others)]


def find_unreviewed(root: Path, renders: dict[str, list[Manifest]]) -> Iterator[Finding]:
    """A pod that must not reach another one can, such as the database, or one that must cannot."""
    said = reviewed((root / FILE).read_text(encoding="utf-8"))
    for part, table, is_so in zip(PARTS, said, evaluated(renders), strict=True):
        for key in sorted(key for key in table.keys() | is_so.keys() if table.get(key) != is_so.get(key)):
            problem = f"{is_so.get(key, 'nothing')} in the manifests, {table.get(key, 'nothing')} in the table ({part})"
            yield Finding(FILE, " → ".join(key), problem, "reachability", name_and_consequence(find_unreviewed)[1])


@rule
def policy_end(inventory: Inventory) -> Findings:
    """The policy has no effect: only one end of the connection is open, or it selects no pod."""
    for policy in inventory.of("NetworkPolicy"):
        chosen = inventory.select(policy["spec"].get("podSelector") or {}, namespace_of(policy))
        if not chosen:
            yield policy, "selects no pod"
            continue
        for peer, ports, is_ingress in _flows(policy):
            peers = [pod for pod in inventory.pods if _means(inventory, peer, namespace_of(policy), pod)]
            if not peers and "ipBlock" not in peer:
                yield policy, f"a peer of its {'ingress' if is_ingress else 'egress'} selects no pod: {peer}"
            for port in ports if peers else ():
                targets, sources = (chosen, peers) if is_ingress else (peers, chosen)
                ends = [(pod, pod.ports.get(str(port), port)) for pod in targets]
                ends = [(pod, number) for pod, number in ends if number in pod.ports.values()]
                if not ends:
                    yield policy, f"port {port}: no selected pod listens on it (is it the Service's port?)"
                elif not any(is_open(inventory, source, *end) for end in ends for source in sources):
                    other = "sender's egress denies it" if is_ingress else "receiver's ingress denies it"
                    yield policy, f"port {port}: the {other}"


def _flows(policy: Manifest) -> Iterator[tuple[Manifest, list[Any], bool]]:
    """Yield the peers that a policy names, with their ports, and whether they are senders."""
    for direction, field in (("ingress", "from"), ("egress", "to")):
        for each in get_path(policy, f"spec.{direction}[]"):
            for peer in each.get(field, ()):
                yield peer, list(get_path(each, "ports[].port")), direction == "ingress"


def main() -> int:
    """Print the tables."""
    rendered = render_all(ROOT, {ROOT / one for folders in PARTS.values() for one in folders})
    for part, cells in zip(PARTS, evaluated(rendered), strict=True):
        print(f"## {part}\n", *tables(cells), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
