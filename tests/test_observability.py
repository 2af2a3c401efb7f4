"""The objectives' file and what is made from it: rules, dashboards, and a runbook for each alert."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from goals.app import PUBLIC_ROUTES
from observability import generate, slo
from tests.conftest import ROOT
from tests.prose import prose

FOLDER = ROOT / "observability"
RUNBOOKS = ROOT / "docs/runbooks"
EXAMPLE = ROOT / "tests/slo.toml"
ALERTS = [
    rule
    for group in yaml.safe_load((FOLDER / "goals.rules.yaml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def test_the_committed_files_are_what_the_generator_writes() -> None:
    files = generate.render(slo.read())
    for path, text in files.items():
        assert (FOLDER / path).read_text(encoding="utf-8") == text, f"{path} differs: run `make slo`"
    written = {path.relative_to(FOLDER) for path in (FOLDER / "dashboards").iterdir()}
    assert written == {path for path in files if path.parts[0] == "dashboards"}


# part k8s
def test_kubernetes_gets_every_dashboard_and_the_same_rules() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    listed = {file for generator in kustomization["configMapGenerator"] for file in generator["files"]}
    assert listed == {f"dashboards/{path.name}" for path in (FOLDER / "dashboards").iterdir()}
    resource = yaml.safe_load((FOLDER / "prometheusrule.yaml").read_text())
    assert resource["spec"] == yaml.safe_load((FOLDER / "goals.rules.yaml").read_text())
    assert resource["metadata"]["labels"] == {"release": "kube-prometheus-stack"}


# end k8s
def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    assert {rule["alert"] for rule in ALERTS} == {path.stem for path in RUNBOOKS.glob("*.md")}
    for rule in ALERTS:
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{rule['alert']}.md")


@prose
def test_each_runbook_says_what_it_means_and_how_it_ends() -> None:
    for path in RUNBOOKS.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        headings = re.findall("^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
        commands = re.findall(r"## First three commands\n\n```sh\n(.*?)```", text, re.DOTALL)
        assert [block.count("\n") for block in commands] in ([], [3]), path
        first = ["First three commands"] * len(commands)
        assert headings == [path.stem, *first, "What it is, and what to do", "How it ends"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threshold_seconds = 0.25", "threshold_seconds = 0.3", "must be a bucket of the duration histogram"),
        ("objective = 0.95", "objective = 0.9", "latency: a burn rate of 14.4 cannot be reached with a budget of 0.1"),
        ("objective = 0.999", "objective = 1", "availability.objective: Input should be less than 1"),
        ("objective = 0.999", "objectives = 0.999", "availability.objective: Field required"),
        ('short = "5m"', 'short = "5 minutes"', "burn.0.short: String should match"),
        (
            'short = "5m"',
            'short = "1h"',
            "burn.0: Value error, the short window (1h) must be shorter than the long one (1h)",
        ),
        (
            'long = "1h"\nshort = "5m"',
            'long = "5m"\nshort = "1h"',
            "the short window (1h) must be shorter than the long",
        ),
        ('long = "1d"\nshort = "2h"', 'long = "90m"\nshort = "2h"', "burn.2: Value error, the short window"),
        (
            '["/health"]',
            '["/helth"]',
            "requests.excluded_routes: there is no route /helth; the routes are /, /add",
        ),
        ('["/health"]', '["/health", "/api/v1/goals/42"]', "there is no route /api/v1/goals/42;"),
        ('["/health"]', '["/livez"]', "there is no route /livez;"),
        ("https://github.com/OWNER", "https://{{ $externalURL }}", "links.runbooks: String should match"),
        ("https://github.com/OWNER", "https://wiki/${page}", "links.runbooks: String should match"),
        ("https://github.com/OWNER", "github.com", "links.runbooks: String should match"),
        ("/docs/runbooks", "/docs/runbooks/", "links.runbooks: String should match"),
        ("/docs/runbooks", "/docs?page=", "links.runbooks: String should match"),
        ('["/health"]', "[]", "requests.excluded_routes: Tuple should have at least 1 item"),
    ],
)
def test_a_slip_in_the_objectives_is_told_by_its_place(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "slo.toml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        generate.render(slo.read(file))


def test_every_route_of_ours_can_be_excluded_and_is_escaped(tmp_path: Path) -> None:
    routes = sorted({route.path for route in PUBLIC_ROUTES})
    file = tmp_path / "slo.toml"
    text = EXAMPLE.read_text(encoding="utf-8").replace('["/health"]', json.dumps(routes))
    file.write_text(text, encoding="utf-8")
    rules = yaml.safe_load(generate.render(slo.read(file))[Path("goals.rules.yaml")])
    expression = rules["groups"][0]["rules"][0]["expr"]
    pattern = json.loads(re.search(r'http_route!~("[^"]*")', expression)[1])  # type: ignore[index]  # it is there
    for route in routes:
        assert re.fullmatch(pattern, route)
    assert not re.fullmatch(pattern, "/openapi_json")
    assert r"/api/v1/goals/\\{goal_id\\}" in expression


def test_the_generator_says_a_slip_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "slo.toml"
    file.write_text("[availability\n", encoding="utf-8")
    monkeypatch.setattr(slo, "FILE", file)
    assert generate.main() == 1
    assert capsys.readouterr().err.startswith(f"error: {file}: ")


def test_other_rates_and_objectives_come_out_in_rules_and_dashboards() -> None:
    document = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    document["availability"]["objective"] = 0.99
    document["latency"]["threshold_seconds"] = 0.5
    document["burn"] = document["burn"][1:]
    files = generate.render(slo.Objectives.model_validate(document))
    rules = files[Path("goals.rules.yaml")]
    assert 'le="0.5"' in rules
    assert "took longer than 500 ms" in rules
    assert "14.4" not in rules
    assert '"value": 14.4' not in files[Path("dashboards/goals-slo.json")]
    assert "0.99 of the requests are not answered by a 5xx" in files[Path("dashboards/goals-slo.json")]
