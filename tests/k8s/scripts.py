"""Runs a script of k8s as somebody would, but without a terminal to be asked at."""

import subprocess
from pathlib import Path

K8S = Path(__file__).resolve().parents[2] / "k8s"


def run(script: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [K8S / script, *arguments], capture_output=True, text=True, check=False, env=env, stdin=subprocess.DEVNULL
    )
