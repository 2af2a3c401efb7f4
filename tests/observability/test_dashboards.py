"""The dashboards hold together, and Grafana's own types accept them."""

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.observability.conftest import FOLDER
from tests.observability.queries import DASHBOARDS, panels

Dashboard = dict[str, Any]
COMPILER = FOLDER / "node_modules/typescript/bin/tsc"


def check_types(dashboards: dict[str, Dashboard], folder: Path) -> str:
    """Compile the dashboards as literals of Grafana's types; gives the compiler's complaints."""
    for name, dashboard in dashboards.items():
        lines = [
            f'import type {{ DashboardFile, Panels }} from "{FOLDER / "grafana"}";',
            f"export const dashboard: DashboardFile = {json.dumps(dashboard)};",
        ]
        for panel in dashboard["panels"]:
            if panel["type"] != "row":
                own = {"options": panel["options"], "custom": panel["fieldConfig"]["defaults"].get("custom", {})}
                lines.append(f'export const panel{panel["id"]}: Panels["{panel["type"]}"] = {json.dumps(own)};')
        (folder / f"{name}.ts").write_text("\n".join(lines))
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"]
    command = ["node", str(COMPILER), *options, *map(str, folder.glob("*.ts"))]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_grafanas_types_accept_the_dashboards(tmp_path: Path) -> None:
    assert check_types(DASHBOARDS, tmp_path) == ""


def _first(kind: str, dashboard: Dashboard) -> Dashboard:
    found: list[Dashboard] = [panel for panel in dashboard["panels"] if panel["type"] == kind]
    return found[0]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda dashboard: dashboard.update(refresh=30), id="a number for a text"),
        pytest.param(lambda dashboard: dashboard.update(titel="Goals"), id="an unknown field"),
        pytest.param(lambda dashboard: dashboard["panels"][0]["gridPos"].update(w="4"), id="a text for a number"),
        pytest.param(
            lambda dashboard: dashboard["templating"]["list"][0].update(type="source"), id="an unknown kind of variable"
        ),
        pytest.param(
            lambda dashboard: _first("timeseries", dashboard)["options"]["tooltip"].update(mode="all"),
            id="an unknown mode of the tooltip",
        ),
        pytest.param(
            lambda dashboard: _first("timeseries", dashboard)["fieldConfig"]["defaults"]["custom"].update(lineWidht=1),
            id="a misspelt style",
        ),
        pytest.param(
            lambda dashboard: _first("stat", dashboard)["options"].update(colorMode="values"),
            id="an unknown colour mode",
        ),
        pytest.param(
            lambda dashboard: _first("heatmap", dashboard)["options"].update(cellgap=1), id="a misspelt option"
        ),
    ],
)
def test_grafanas_types_refuse_a_slip(spoil: Callable[[Dashboard], None], tmp_path: Path) -> None:
    dashboard = copy.deepcopy(DASHBOARDS["goals-service"])
    spoil(dashboard)
    assert "error TS" in check_types({"spoilt": dashboard}, tmp_path)


def test_panels_say_what_they_show_in_which_unit_and_follow_the_reader() -> None:
    for where, panel in panels():
        assert panel["title"], where
        assert panel["description"].endswith("."), where
        assert panel["fieldConfig"]["defaults"]["unit"], where
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", where
            assert "[1" not in target["expr"], f"{where}: a fixed range; use $__rate_interval"


def test_panels_do_not_overlap() -> None:
    for name, dashboard in DASHBOARDS.items():
        taken: dict[tuple[int, int], str] = {}
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, f"{name} / {panel['title']} is out of the page"
            for cell in (
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            ):
                assert cell not in taken, f"{name} / {panel['title']} lies on {taken[cell]}"
                taken[cell] = panel["title"]
