"""What a case may need of a cluster, and whether it is there: asked of the cluster, never assumed."""

import contextlib
import functools
from collections.abc import Callable

from tests.cluster.kubectl import HOME, OURS, Kubectl
from tests.cluster.pods import PORT, Target, listener, reach, start
from tools.polling import wait_until

IMAGES = ("goals:dev", "goals-loadtest:dev", "goals-standin:dev")
OPERATORS = {
    "CloudNativePG": ("cnpg-system", "app.kubernetes.io/name=cloudnative-pg"),
    "gateway": ("nginx-gateway", "app.kubernetes.io/name=nginx-gateway-fabric"),
    "cert-manager": ("cert-manager", "app.kubernetes.io/name=cert-manager"),
    "Prometheus operator": ("monitoring", "app=kube-prometheus-stack-operator"),
}


def _nodes(kubectl: Kubectl) -> str:
    """A kubelet reports an image some time after it was loaded."""
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not _lacking(kubectl), "the nodes have the images", 30)
    return _lacking(kubectl)


def _lacking(kubectl: Kubectl) -> str:
    found = [one for one in kubectl.get("nodes") or () if not one["spec"].get("unschedulable")]
    if len(found) < 2:
        return f"{len(found)} nodes take pods; it needs two"
    for node in found:
        names = {name for image in node["status"].get("images", ()) for name in image.get("names") or ()}
        missing = [one for one in IMAGES if not {one, f"docker.io/library/{one}"} & names]
        if missing:
            return f"{node['metadata']['name']} has no image {', '.join(missing)}: make cluster-images, then load them"
    return ""


def _policies(kubectl: Kubectl) -> str:
    """Start two pods that may talk, forbid it, and look."""
    there = _nodes(kubectl)
    if there:
        return there
    names = ("policies-asked", "policies-asker")
    pods = [listener(name, OURS, {}) for name in names]
    deny = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": OURS},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    }
    kubectl.apply([HOME])
    try:
        target = Target(start(kubectl, pods)[names[0]]["status"]["podIP"], PORT)
        if reach(kubectl, OURS, names[1], [target]) != [True]:
            return "pods cannot talk to one another even without a policy"
        kubectl.apply([deny])
        wait_until(lambda: reach(kubectl, OURS, names[1], [target]) == [False], "the policy is enforced", 20)
    except TimeoutError:
        return "this cluster's network does not enforce NetworkPolicies"
    finally:
        kubectl.delete([*pods, deny])
    return ""


def _metrics(kubectl: Kubectl) -> str:
    done = kubectl.run("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes")
    return "" if not done.returncode and '"usage"' in done.stdout else "there is no metrics API (metrics-server)"


def _operator(name: str, kubectl: Kubectl) -> str:
    namespace, selector = OPERATORS[name]
    found = kubectl.get("deployments", "--namespace", namespace, "--selector", selector) or ()
    available = any(one["status"].get("availableReplicas") for one in found)
    return "" if available else f"{name} is not installed"


NEEDS: dict[str, Callable[[Kubectl], str]] = {
    "nodes": _nodes,
    "policies": _policies,
    "metrics": _metrics,
    **{name: functools.partial(_operator, name) for name in OPERATORS},
}
"""Each gives why it is not there, or nothing. An API server alone needs no entry."""


@functools.cache
def missing(need: str, kubectl: Kubectl) -> str:
    """The same, asked once in a run."""
    return NEEDS[need](kubectl)
