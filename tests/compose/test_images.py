"""The images: what is in them, what is not, and what they say of themselves."""

import json
import os
import subprocess
from datetime import datetime

import pytest

from tests.compose.stack import Stack, run
from tests.conftest import ROOT

TAG = os.environ.get("TAG", "dev")
LARGEST_OVER_BASE = 150_000_000
OURS = ("goals", "goals-loadtest")


def inspect(image: str) -> dict[str, object]:
    found: list[dict[str, object]] = json.loads(run("image", "inspect", image).stdout)
    return found[0]


def python(image: str, program: str) -> str:
    """What a program prints that the image's own Python runs, without a network and without writing anything."""
    return run(
        "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--entrypoint=python", image, "-c", program
    ).stdout


def test_the_service_is_small(stack: Stack) -> None:
    sizes = [int(str(inspect(image)["Size"])) for image in (f"goals:{TAG}", "python:3.13-slim")]
    stack.figures["goals image over its base"] = f"{(sizes[0] - sizes[1]) / 1e6:.0f} MB (objective: 150)"
    assert sizes[0] - sizes[1] <= LARGEST_OVER_BASE


@pytest.mark.parametrize("image", OURS)
def test_images_run_as_an_account_without_rights_and_without_a_shell(image: str) -> None:
    config = inspect(f"{image}:{TAG}")["Config"]
    assert isinstance(config, dict)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"][0] != "/bin/sh"
    assert config.get("Healthcheck", {"Test": ["CMD"]})["Test"][0] == "CMD"


@pytest.mark.parametrize("image", OURS)
def test_nothing_can_be_installed_or_built_in_an_image(image: str) -> None:
    program = """
import importlib.util, shutil
print([name for name in ("pip", "ensurepip", "setuptools", "wheel", "uv") if importlib.util.find_spec(name)])
print([name for name in ("pip", "pip3", "cc", "gcc", "make", "ld", "git") if shutil.which(name)])
"""
    assert python(f"{image}:{TAG}", program).split("\n")[:2] == ["[]", "[]"]


@pytest.mark.parametrize(("image", "folder"), [("goals", "/app"), ("goals-loadtest", "/loadtest")])
def test_files_are_compiled_bear_one_date_and_belong_to_root(image: str, folder: str) -> None:
    program = f"""
import json, os, pathlib
files = [path for path in pathlib.Path({folder!r}).rglob("*") if path.name != "out"]
sources = [path for path in files if path.suffix == ".py" and ".venv" not in path.parts]
print(json.dumps({{
    "owners": sorted({{path.lstat().st_uid for path in files}}),
    "writable": os.access({folder!r}, os.W_OK),
    "dates": sorted({{path.lstat().st_mtime for path in files}}),
    "sources": len(sources) > 10,
    "uncompiled": [str(path) for path in sources if not list(path.parent.glob(f"__pycache__/{{path.stem}}.*.pyc"))],
}}))
"""
    assert json.loads(python(f"{image}:{TAG}", program)) == {
        "owners": [0],
        "writable": False,
        "dates": [0],
        "sources": True,
        "uncompiled": [],
    }


@pytest.mark.parametrize("image", OURS)
def test_images_say_what_they_are(image: str) -> None:
    found = inspect(f"{image}:{TAG}")
    config = found["Config"]
    assert isinstance(config, dict)
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    revision = os.environ.get("REVISION", "unknown")
    assert labels["title"] == image
    assert labels["revision"] == revision
    assert labels["version"] == os.environ.get("VERSION", "0.0.0")
    assert labels["licenses"] == "MIT"
    assert image != "goals" or f"GOALS_REVISION={revision}" in config["Env"]
    created = datetime.fromisoformat(labels["created"])
    assert created == datetime.fromisoformat(str(found["Created"]))
    assert created.timestamp() == int(os.environ.get("SOURCE_DATE_EPOCH", "0"))


def test_the_same_sources_give_the_same_layers() -> None:
    again = "goals:built-again"
    options = ("--build-arg", f"SOURCE_DATE_EPOCH={os.environ.get('SOURCE_DATE_EPOCH', '0')}", "--tag", again)
    run("buildx", "build", "--file", "services/goals/Dockerfile", "--no-cache-filter", "source", *options, ".")
    try:
        assert inspect(again)["RootFS"] == inspect(f"goals:{TAG}")["RootFS"]
    finally:
        run("image", "rm", again)


def test_one_image_runs_every_command() -> None:
    document = json.loads(run("run", "--rm", "--network=none", "--read-only", f"goals:{TAG}", "openapi").stdout)
    assert document["openapi"].startswith("3.1")
    for command in ("serve", "migrate"):
        # Nothing is configured: each says so in one line.
        done = run("run", "--rm", "--network=none", "--read-only", f"goals:{TAG}", command, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("image", OURS)
def test_the_bill_of_materials_lists_every_installed_distribution(image: str) -> None:
    subprocess.run(["make", "sbom"], cwd=ROOT, check=True, capture_output=True)  # noqa: S607  the command under test
    bill = json.loads((ROOT / f"out/sbom/{image}/sbom.json").read_text(encoding="utf-8"))
    listed = {(component["name"].lower(), component["version"]) for component in bill["components"]}
    program = """
import importlib.metadata, json
print(json.dumps([[found.name.lower(), found.version] for found in importlib.metadata.distributions()]))
"""
    installed = {tuple(found) for found in json.loads(python(f"{image}:{TAG}", program))}
    assert len(installed) > 20
    assert installed == listed
