"""The page on the codebase against the imports, and what no contract of import-linter can say."""

import re
import tomllib

import grimp
import pytest

from tests.conftest import ROOT
from tests.prose import prose

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]
AREAS = [
    folder.name
    for folder in sorted([*ROOT.iterdir(), *(ROOT / "services").iterdir()])
    if (folder / "__init__.py").exists() and folder.name != "tests"
]


@pytest.fixture(scope="module")
def imports() -> set[tuple[str, str]]:
    graph = grimp.build_graph(*AREAS, "tests", cache_dir=None)
    return {(one, other) for one in graph.modules for other in graph.find_modules_directly_imported_by(one)}


def test_the_areas_arrows_are_the_imports(imports: set[tuple[str, str]]) -> None:
    drawn = set(re.findall(r'^  (\w+)(?:\[".*?"\])? --> (\w+)', PAGE, re.MULTILINE))
    found = {(one.split(".")[0], other.split(".")[0]) for one, other in imports}
    assert drawn == {(one, other) for one, other in found if one not in {other, "tests"}}


def test_every_area_is_in_a_contract() -> None:
    (layers,) = (one["layers"] for one in CONTRACTS if one["type"] == "layers" and "containers" not in one)
    assert {area for layer in layers for area in layer.split(" | ")} == {*AREAS, "tests"}


def test_the_modules_are_in_the_rows_that_the_contract_gives_them() -> None:
    (layers,) = (one["layers"] for one in CONTRACTS if one.get("containers") == ["goals"])
    rows = re.findall(r"^\| ((?:`\w+` ?)+) \|", PAGE, re.MULTILINE)
    assert [sorted(re.findall(r"\w+", row)) for row in rows] == [sorted(layer.split(" | ")) for layer in layers]
    modules = {path.stem for path in (ROOT / "services/goals").glob("*.py")} - {"__init__"}
    assert {name for row in rows for name in re.findall(r"\w+", row)} == modules


@prose
def test_each_step_of_a_path_is_an_import(imports: set[tuple[str, str]]) -> None:
    steps = re.findall(r"`(\w+) → (\w+)`", PAGE)
    assert len(steps) > 10
    assert [step for step in steps if (f"goals.{step[0]}", f"goals.{step[1]}") not in imports] == []


def test_no_test_module_imports_another(imports: set[tuple[str, str]]) -> None:
    between = {(one, other) for one, other in imports if other.rpartition(".")[2].startswith("test_")}
    assert between == set()


@prose
def test_the_page_fits_on_a_screen() -> None:
    assert PAGE.count("\n") <= 70
