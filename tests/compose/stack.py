"""The project's own compose.yaml, run under another name and on other ports, and asked from outside and from inside."""

import contextlib
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from tests.conftest import ROOT

DOCKER = shutil.which("docker") or "docker"
PROJECT = "goals-test"
PORTS = (
    "HTTPS_PORT",
    "HTTP_PORT",
    "PROMETHEUS_PORT",
    "ALERTMANAGER_PORT",
    "GRAFANA_PORT",
    # part loadtest
    "LOCUST_PORT",
    # end loadtest
    "JAEGER_PORT",
)
ONE_SHOT = {"setup", "migrate", "load-gate"}
OURS = ("goals", "goals-loadtest", "goals-setup")
BY_MAKE = ("VERSION", "REVISION", "CREATED", "SOURCE_DATE_EPOCH")
"""What `make` adds to the environment, and `docker compose` by itself does without."""


class Stack:
    """The services and how to reach them; `without` names those that are unavailable here, each with the reason."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.ports = ports
        self.without: dict[str, str] = {}
        self.figures: dict[str, str] = {}
        self.authority = folder / "ca.crt"
        self.environment = {name: value for name, value in os.environ.items() if name not in BY_MAKE} | {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "TAG": PROJECT,  # images of its own, which the first `up` has to build
            "COMPOSE_FILE": f"compose.yaml{os.pathsep}tests/compose/compose.test.yaml",
            "COMPOSE_ENV_FILES": os.devnull,  # the user's own .env takes no part
            **{name: str(port) for name, port in self.ports.items()},
        }
        if not has_tls("postgres:18"):
            self.without["TLS to PostgreSQL"] = "the server in postgres:18 is built without it"
            self.environment |= {"DATABASE_TLS": "off", "DATABASE_TLS_MODE": "disable"}
        image = self.config()["services"]["grafana"]["image"]
        if not has_image(image):
            self.without["Grafana"] = f"{image} is not here and cannot be pulled"

    @property
    def services(self) -> list[str]:
        """What `docker compose up` starts, less what is unavailable."""
        return [
            name
            for name, service in self.config()["services"].items()
            if not service.get("profiles") and not (name == "grafana" and "Grafana" in self.without)
        ]

    def compose(self, *arguments: str, check: bool = True, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        return run("compose", *arguments, check=check, timeout=timeout, environment=self.environment)

    def config(self) -> dict[str, Any]:
        """compose.yaml as Compose understands it, every profile included."""
        loaded: dict[str, Any] = json.loads(self.compose("--profile", "*", "config", "--format", "json").stdout)
        return loaded

    def up(self) -> str:
        """Start everything and wait; return what Compose printed."""
        done = self.compose("up", "--detach", "--wait", *self.services, timeout=420)
        self.compose("cp", "setup:/setup/trust/ca.crt", str(self.authority))
        return done.stdout + done.stderr

    def down(self, *arguments: str) -> None:
        self.compose("--profile", "*", "down", "--remove-orphans", *arguments)

    def remove(self) -> None:
        """Remove containers, networks, data and images."""
        self.down("--volumes")
        run("image", "rm", "--force", *(f"{name}:{PROJECT}" for name in OURS), check=False)

    def replicas(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        return self.compose("ps", "--quiet", service).stdout.split()

    def read(self, container: str, path: str) -> str:
        """A file as the container's own account sees it."""
        return run("exec", container, "cat", path).stdout

    def inspect(self) -> list[dict[str, Any]]:
        """All containers of the project, those that have ended included."""
        found: list[dict[str, Any]] = json.loads(
            run("inspect", *self.compose("ps", "--all", "--quiet").stdout.split()).stdout
        )
        return found

    # part loadtest
    def gate(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the load gate; its exit code is the verdict."""
        return self.compose("run", "--rm", "--no-deps", "load-gate", *options, check=False)

    @contextlib.contextmanager
    def loading(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """The original Go app's load on the gateway while the body runs; it must outlast the body."""
        command = [DOCKER, "compose", "run", "--rm", "--no-deps", "load-gate", *options]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=pipe, stderr=pipe, text=True) as load:
            assert load.stderr is not None
            try:
                # Compose tells of the container first; the load has begun with the first line of its progress.
                assert any(" requests/s " in line for line in load.stderr), "the load did not begin"
                yield load
                assert load.poll() is None, "the load ended too early to have seen everything"
            except BaseException:
                load.terminate()
                raise
            finally:
                load.communicate()

    def summary(self, scenario: str) -> dict[str, Any]:
        """What the gate's last run of a scenario has measured."""
        path = f"out/load/{scenario}/summary.json"
        text = self.compose("run", "--rm", "--no-deps", "--entrypoint", "cat", "load-gate", path).stdout
        loaded: dict[str, Any] = json.loads(text)
        return loaded

    # end loadtest

    @contextlib.contextmanager
    def browsing(self, **options: Any) -> Iterator[httpx2.Client]:
        """A client of the gateway's published port that believes the made authority and no other."""
        context = ssl.create_default_context(cafile=self.authority)
        url = f"https://localhost:{self.ports['HTTPS_PORT']}"
        with httpx2.Client(base_url=url, verify=context, trust_env=False, timeout=10, **options) as client:
            yield client

    def ask(self, port: str, path: str, **parameters: str) -> Any:
        """What a service's API answers at its published port, as JSON."""
        url = f"http://127.0.0.1:{self.ports[port]}{path}"
        response = httpx2.get(url, params=parameters, trust_env=False, timeout=10)
        response.raise_for_status()
        return response.json()


def run(
    *arguments: str, check: bool = True, timeout: float = 120, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [DOCKER, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert not check or done.returncode == 0, (
        f"docker {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    )
    return done


def has_image(image: str) -> bool:
    return any(run(*words, image, check=False).returncode == 0 for words in (("image", "inspect"), ("pull", "--quiet")))


def has_tls(image: str) -> bool:
    """Tell whether the PostgreSQL of an image is built with TLS: without it, it says so before it looks at anything."""
    command = (
        "run",
        "--rm",
        "--network=none",
        "--user=999",
        "--entrypoint=postgres",
        image,
        "-C",
        "ssl",
        "-c",
        "ssl=on",
    )
    return "SSL is not supported by this build" not in run(*command, check=False).stderr
