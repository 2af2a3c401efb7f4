"""Pods of the suite's own: they bear whatever labels a case needs, listen, and ask for others."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.cluster.kubectl import OURS, Kubectl
from tools.lint.manifests import Manifest

PORT = 4444
"""What every one of them listens on, and nobody else here."""

LISTEN = """
import asyncio, os, sys
here = os.environ["ADDRESS"]
class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport): self.transport = transport
    def datagram_received(self, data, address): self.transport.sendto(data, address)
async def greet(reader, writer): writer.close()
async def listen():
    for port in map(int, sys.argv[1:]):
        try:
            await asyncio.start_server(greet, here, port, backlog=256)
            if port == 53:
                await asyncio.get_running_loop().create_datagram_endpoint(Echo, (here, port))
        except OSError as error:  # a port of the node that a program of its own has
            print(port, error, flush=True)
    await asyncio.Event().wait()
asyncio.run(listen())
"""
"""Listens on the ports that it is given; on 53 over UDP, too."""

REACH = """
import asyncio, json, sys
async def reach(address, port, protocol):
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(3):
            if protocol == "TCP":
                _, writer = await asyncio.open_connection(address, port)
                writer.close()
            else:
                answer = loop.create_future()
                class Once(asyncio.DatagramProtocol):
                    def datagram_received(self, data, address): answer.done() or answer.set_result(data)
                    def error_received(self, error): answer.done() or answer.set_exception(error)
                transport, _ = await loop.create_datagram_endpoint(Once, remote_addr=(address, port))
                for _ in range(3):
                    transport.sendto(b"?")
                    await asyncio.wait([answer], timeout=0.8)
                    if answer.done(): break
                await answer
                transport.close()
        return True
    except OSError:  # a TimeoutError is one
        return False
async def reach_all():
    print(json.dumps(await asyncio.gather(*(reach(*one) for one in json.load(sys.stdin)))))
asyncio.run(reach_all())
"""
"""Tries all addresses at once, each for three seconds, which is two tries of TCP's own; refused is not reached."""

SERVICE_IMAGE = "goals:dev"


class Target(NamedTuple):
    """Where a connection is tried."""

    address: str
    port: int
    protocol: str = "TCP"


def restricted(name: str, namespace: str, labels: Mapping[str, str], spec: Manifest, container: Manifest) -> Manifest:
    """A pod of one container that meets the strictest profile of Pod Security."""
    secure = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {**labels, OURS: "yes"}},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
                "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
            },
            **spec,
            "containers": [{"name": "main", "image": SERVICE_IMAGE, "securityContext": secure, **container}],
        },
    }


def listener(name: str, namespace: str, labels: Mapping[str, str], ports: Iterable[int] = (), **spec: Any) -> Manifest:
    """A pod that listens on these ports and on `PORT`, the last of them, so that all are open when it has started.

    It never becomes ready: whatever its labels say, no Service leads to it.
    """
    words = [LISTEN, *map(str, sorted(ports)), str(PORT)]
    container = {
        "command": ["python", "-c"],
        "args": words,
        "env": [{"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "startupProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1, "failureThreshold": 120},
    }
    return restricted(
        name, namespace, labels, {"readinessGates": [{"conditionType": f"{OURS}/never"}], **spec}, container
    )


def as_root(pod: Manifest, **more: Any) -> Manifest:
    """The same pod with the rights that a namespace without Pod Security gives it."""
    pod["spec"]["securityContext"] = {"runAsUser": 0}
    pod["spec"]["containers"][0]["securityContext"] = more
    return pod


def start(kubectl: Kubectl, pods: Sequence[Manifest]) -> dict[str, Manifest]:
    """Make pods, wait until they have started, and give them as they are, by name."""
    kubectl.apply(pods)
    for namespace in {one["metadata"]["namespace"] for one in pods}:
        names = [f"pod/{one['metadata']['name']}" for one in pods if one["metadata"]["namespace"] == namespace]
        started = "--for=jsonpath={.status.containerStatuses[0].started}=true"
        kubectl("wait", started, "--timeout=170s", "--namespace", namespace, *names)
    found = kubectl.get("pods", "--all-namespaces", "--selector", OURS)
    ours = {one["metadata"]["name"] for one in pods}
    return {one["metadata"]["name"]: one for one in found if one["metadata"]["name"] in ours}


def reach(kubectl: Kubectl, namespace: str, name: str, targets: Sequence[Target]) -> list[bool]:
    """Which of the targets a pod can reach."""
    answers: list[bool] = json.loads(kubectl.python(namespace, name, REACH, stdin=json.dumps(targets)))
    return answers
