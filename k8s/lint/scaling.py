"""How many pods there are: autoscalers and disruption budgets."""

import re

from lint.inventory import Inventory, dig, first, space
from lint.manifests import name
from lint.rules import Wrong, rule
from lint.workloads import is_served


def quantity(text: object) -> float:
    """A Kubernetes quantity as a number."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()  # type: ignore[union-attr]  # the schema has seen it
    return (
        float(number)
        * {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]
    )


@rule
def autoscaler_replicas(inventory: Inventory) -> Wrong:
    """Each apply sets the number of pods back, in the middle of the load that raised it."""
    for one in inventory.of("HorizontalPodAutoscaler"):
        target = inventory.get(one["spec"]["scaleTargetRef"]["kind"], space(one), one["spec"]["scaleTargetRef"]["name"])
        if first(target, "spec.replicas") is not None:
            yield target or one, f"has replicas, which {name(one)} owns"


@rule
def autoscaler_target(inventory: Inventory) -> Wrong:
    """Pods come and go at every breath, or never: the number means nothing."""
    for one in inventory.of("HorizontalPodAutoscaler"):
        target = (
            inventory.get(one["spec"]["scaleTargetRef"]["kind"], space(one), one["spec"]["scaleTargetRef"]["name"])
            or {}
        )
        requests = list(dig(target, "spec.template.spec.containers[].resources.requests"))
        if one["spec"].get("minReplicas", 1) < 2:  # noqa: PLR2004  one is none as soon as it moves
            yield one, "minReplicas is below 2: one pod that moves is an outage"
        for metric in dig(one, "spec.metrics[].resource"):
            share = first(metric, "target.averageUtilization")
            amount = first(metric, "target.averageValue")
            if metric["name"] == "cpu" and share is not None and not 50 <= share <= 90:  # noqa: PLR2004  said in the message
                yield one, f"CPU target {share} %: between 50 and 90 it neither trembles nor comes too late"
            if (
                amount is not None
                and metric["name"] == "memory"
                and quantity(amount) >= sum(quantity(each.get("memory", 0)) for each in requests)
            ):
                yield (
                    one,
                    f"memory target {amount} is the request or more: reached only shortly before the kill",
                )


@rule
def disruption_budget(inventory: Inventory) -> Wrong:
    """A drained node takes all pods at once, or cannot be drained at all."""
    budgets = [
        (one, inventory.select(one["spec"].get("selector", {}), space(one)))
        for one in inventory.of("PodDisruptionBudget")
    ]
    for one, pods in budgets:
        if not pods:
            yield one, "selects no pod"
        if any(pod.manifest.get("kind") == "Cluster" for pod in pods):
            yield one, "CloudNativePG makes the budgets of its instances itself; two for one pod block every eviction"
        if str(first(one, "spec.maxUnavailable", 1)) in {"0", "0%"} or first(one, "spec.minAvailable") == "100%":
            yield one, "allows no disruption: no node with such a pod can be drained"
    scaled = {(space(one), one["spec"]["scaleTargetRef"]["name"]) for one in inventory.of("HorizontalPodAutoscaler")}
    served = [pod for pod in inventory.workloads if pod.manifest["kind"] == "Deployment" and is_served(inventory, pod)]
    for pod in [
        *served,
        *(
            one
            for one in inventory.pods
            if one.manifest.get("kind") in {"Gateway", "Pooler"} and one.name != "ACME solver"
        ),
    ]:
        several = (pod.namespace, pod.name) in scaled or first(pod.manifest, "spec.replicas", 1 if pod.spec else 2) > 1
        covering = [one for one, pods in budgets if pod in pods]
        if several and not covering:
            yield pod.manifest, f"no PodDisruptionBudget covers its pods ({pod.name})"
        if len(covering) > 1:
            yield pod.manifest, f"{len(covering)} PodDisruptionBudgets cover its pods, and every eviction is refused"
