"""Evaluates the network policies into who may talk to whom, and compares that with the reviewed table, reachability.md.

`python -m lint.reachability` prints the tables as the manifests make them, to be read and put into that file.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from lint.inventory import OPERATORS, Inventory, Pod, dig, matches, space
from lint.manifests import ROOT, Finding, Manifest, render_all
from lint.rules import Wrong, rule, why

FILE = "reachability.md"
OUTSIDE = Pod("outside", "", {}, {}, {}, {})
"""Whatever is no pod: users, nodes, the API server, the internet."""

OTHER = 1
"""Stands for every port that nobody speaks of."""

DENIED = "–"  # noqa: RUF001  a dash as people write it
NO_POD = "what is no pod"
AKS = ("argocd/goals", "argocd/server", "platform/namespaces", "components/loadtest")
KIND = ("overlays/local", "platform/namespaces", "components/loadtest")
NOT_IN_KIND = frozenset({"argocd", "plugin-barman-cloud"})
Cells = dict[tuple[str, str], str]


def title(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.name}" if pod.namespace else pod.name


def _is_peer(inventory: Inventory, peers: list[Manifest], namespace: str, pod: Pod) -> bool:
    """Tell whether a rule's `from` or `to` means this pod; an ipBlock means what is no pod (so Cilium reads it)."""
    if not peers:
        return True
    for peer in peers:
        if pod is OUTSIDE or "ipBlock" in peer:
            if pod is OUTSIDE and "ipBlock" in peer:
                return True
            continue
        spaces = peer.get("namespaceSelector")
        here = pod.namespace == namespace if spaces is None else matches(spaces, inventory.namespaces[pod.namespace])
        if here and matches(peer.get("podSelector") or {}, pod.labels):
            return True
    return False


def _has_port(ports: list[Manifest], number: int, protocol: str, target: Pod) -> bool:
    for one in ports:
        start: int | str | None = target.ports.get(str(one.get("port")), one.get("port"))
        if isinstance(start, str):
            continue  # a name that this pod does not know
        if one.get("protocol", "TCP") == protocol and (start is None or start <= number <= one.get("endPort", start)):
            return True
    return not ports


def is_open(inventory: Inventory, source: Pod, target: Pod, number: int) -> bool:
    """Tell whether a connection passes the policies at both ends; names are resolved over TCP and UDP."""
    for protocol in ("TCP", "UDP") if number == 53 else ("TCP",):  # noqa: PLR2004  DNS
        for pod, other, direction, field in ((source, target, "Egress", "to"), (target, source, "Ingress", "from")):
            policies = inventory.policies(pod, direction) if pod is not OUTSIDE else []
            rules = [(one, each) for one in policies for each in one["spec"].get(direction.lower()) or ()]
            if policies and not any(
                _has_port(each.get("ports", []), number, protocol, target)
                and _is_peer(inventory, each.get(field, []), space(one), other)
                for one, each in rules
            ):
                return False
    return True


def matrix(inventory: Inventory) -> Cells:
    """The open ports from each pod, and from outside, to each pod and to outside."""
    named = {
        port
        for one in inventory.of("NetworkPolicy")
        for each in dig(one, "spec.egress[]")
        if "to" not in each
        for port in dig(each, "ports[].port")
    }
    ends = [*inventory.pods, OUTSIDE]
    cells = {}
    for source in ends:
        for target in ends:
            numbers = sorted(set(target.ports.values()) if target is not OUTSIDE else named)
            open_ports = [str(number) for number in numbers if is_open(inventory, source, target, number)]
            if source is not OUTSIDE if target is OUTSIDE else target.ports:
                every = is_open(inventory, source, target, OTHER)
                cells[title(source), title(target)] = "any" if every else ", ".join(open_ports) or DENIED
    return cells


def tables(inventory: Inventory, cells: Cells) -> Iterator[str]:
    """Markdown: one table for each namespace that is talked to."""
    spaces = [*sorted({pod.namespace for pod in inventory.pods}), ""]
    for namespace in spaces:
        targets = [
            title(pod)
            for pod in [*inventory.pods, OUTSIDE]
            if pod.namespace == namespace and (pod.ports or pod is OUTSIDE)
        ]
        if not targets:
            continue
        yield f"### To {namespace or NO_POD}\n"
        yield f"| from | {' | '.join(one.removeprefix(namespace + '/') for one in targets)} |"
        yield f"| --- |{' --- |' * len(targets)}"
        rows: dict[str, list[str]] = {}
        for source in sorted({source for source, _ in cells}):
            if (source, targets[0]) in cells:
                rows.setdefault(" | ".join(cells[source, target] for target in targets), []).append(source)
        for row, sources in sorted(rows.items(), key=lambda each: (set(each[0]) <= set(DENIED + " |"), each[1])):
            yield f"| {', '.join(sources)} | {row} |"
        yield ""


def reviewed(lines: Iterable[str]) -> tuple[Cells, Cells]:
    """The cells of the file: those of AKS, and those that are different in kind."""
    aks: Cells = {}
    kind: Cells = {}
    namespace, targets = "", list[str]()
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("### To "):
            namespace, targets = line.removeprefix("### To ").strip(), []
        elif line.startswith("## "):
            namespace, targets = "", []
        elif line.startswith("| from | to |"):
            targets = ["kind"]
        elif line.startswith("| from |"):
            targets = [one if namespace == NO_POD else f"{namespace}/{one}" for one in cells[1:]]
        elif targets == ["kind"] and line.startswith("| ") and "---" not in line:
            kind[cells[0], cells[1]] = cells[2]
        elif line.startswith("| ") and "---" not in line:
            aks |= {
                (source, target): cell
                for source in cells[0].split(", ")
                for target, cell in zip(targets, cells[1:], strict=True)
            }
    return aks, kind


def inventories(renders: dict[str, list[Manifest]]) -> tuple[Inventory, Inventory]:
    """What is on AKS and what is in kind, with a load test going on in each."""
    everywhere = {one["from"] for one in OPERATORS["pods"]}
    return (
        Inventory({where: renders[where] for where in AKS}),
        Inventory({where: renders[where] for where in KIND}, frozenset(everywhere - NOT_IN_KIND)),
    )


def differences(aks: Cells, kind: Cells) -> Cells:
    return {key: value for key, value in kind.items() if value != aks.get(key, DENIED)}


def find_unreviewed(root: Path, renders: dict[str, list[Manifest]]) -> Iterator[Finding]:
    """Somebody who should not can reach the database, or somebody who must cannot."""
    aks, kind = (matrix(one) for one in inventories(renders))
    said_aks, said_kind = reviewed((root / FILE).read_text(encoding="utf-8").splitlines())
    for where, said, is_so in (("AKS", said_aks, aks), ("kind", said_kind, differences(aks, kind))):
        for key in sorted(said.keys() | is_so.keys()):
            if said.get(key) != is_so.get(key):
                problem = (
                    f"{is_so.get(key, 'as on AKS')} by the manifests, {said.get(key, 'nothing')} in the table ({where})"
                )
                yield Finding(FILE, " → ".join(key), problem, *why("reachability", find_unreviewed))


@rule
def policy_end(inventory: Inventory) -> Wrong:
    """One end is open and the other is not, or nobody is there: what the policy is for does not work."""
    for policy in inventory.of("NetworkPolicy"):
        chosen = inventory.select(policy["spec"].get("podSelector") or {}, space(policy))
        if not chosen:
            yield policy, "selects no pod"
            continue
        for direction, field in (("ingress", "from"), ("egress", "to")):
            for each in dig(policy, f"spec.{direction}[]"):
                for peer in each.get(field, ()):
                    peers = [pod for pod in inventory.pods if _is_peer(inventory, [peer], space(policy), pod)]
                    if not peers and "ipBlock" not in peer:
                        yield policy, f"{field}: selects no pod"
                    for port in [one for one in each.get("ports", ()) if "port" in one] if peers else ():
                        targets, sources = (chosen, peers) if direction == "ingress" else (peers, chosen)
                        listening = [(pod, pod.ports.get(str(port["port"]), port["port"])) for pod in targets]
                        listening = [(pod, number) for pod, number in listening if number in pod.ports.values()]
                        if not listening:
                            yield (
                                policy,
                                f"port {port['port']}: no pod meant listens on it (is it the Service's port?)",
                            )
                        elif not any(
                            is_open(inventory, source, pod, number) for pod, number in listening for source in sources
                        ):
                            other = "sender may not send" if direction == "ingress" else "receiver does not let it in"
                            yield policy, f"port {port['port']}: the {other}"


def main() -> int:
    """Print the tables."""
    folders = [ROOT / where for where in sorted({*AKS, *KIND})]
    first, second = inventories(render_all(ROOT, folders))
    aks, kind = matrix(first), matrix(second)
    print("## On AKS\n")
    print("\n".join(tables(first, aks)))
    print("## What is different in kind\n\n| from | to | ports |\n| --- | --- | --- |")
    for (source, target), value in sorted(differences(aks, kind).items()):
        print(f"| {source} | {target} | {value} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
