"""The rules mean what they say: Prometheus's own tool tries each alert, and broken rules do not pass."""

import copy
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.conftest import FOLDER

HERE = Path(__file__).parent
SUITES = ("indicators", "pages", "tickets", "symptoms")
GROUPS = yaml.safe_load((FOLDER / "goals.rules.yaml").read_text())["groups"]
Rule = dict[str, Any]
Groups = list[dict[str, Any]]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)  # noqa: S607  from the system


def belongs(rule: Rule, suite: str) -> bool:
    """Whether a suite tries this rule; the others are left out when it runs, to save time."""
    if "record" in rule:
        return suite != "symptoms"
    if rule["alert"].endswith("BudgetBurn"):
        return suite == ("pages" if rule["labels"]["long"] in {"1h", "6h"} else "tickets")
    return suite == "symptoms"


def run_suite(suite: str, groups: Groups, folder: Path) -> subprocess.CompletedProcess[str]:
    chosen = [group | {"rules": [rule for rule in group["rules"] if belongs(rule, suite)]} for group in groups]
    folder.mkdir()
    (folder / "goals.rules.yaml").write_text(yaml.safe_dump({"groups": chosen}))
    (folder / "test.yaml").write_text((HERE / f"{suite}.test.yaml").read_text())
    return promtool("test", "rules", folder / "test.yaml")


def break_rule(rule: Rule) -> Iterator[tuple[str, Rule]]:
    """Ways to get a rule wrong that still load."""
    name = rule.get("record") or rule["alert"]
    if "record" in rule:
        yield f"{name} is always 0", rule | {"expr": "vector(0)"}
        yield f"{name} is always 1", rule | {"expr": "vector(1)"}
        return
    yield f"{name} never fires", rule | {"expr": "vector(0) > 1"}
    yield f"{name} always fires", rule | {"expr": "vector(1)"}
    yield f"{name} has another severity", rule | {"labels": rule["labels"] | {"severity": "info"}}
    yield f"{name} has lost its summary", rule | {"annotations": rule["annotations"] | {"summary": ""}}
    if "for" in rule:
        yield f"{name} does not wait", {key: value for key, value in rule.items() if key != "for"}
        yield f"{name} waits too long", rule | {"for": "4h"}
    if "\nand" in rule["expr"]:
        yield f"{name} does not look at the short window", rule | {"expr": re.sub(r"\nand goals.*", "", rule["expr"])}
        doubled = re.sub(r"> ([0-9.]+)\n", lambda limit: f"> {float(limit[1]) * 2}\n", rule["expr"])
        yield f"{name} has doubled limits", rule | {"expr": doubled}


def broken() -> Iterator[tuple[str, str, Groups]]:
    """Each mutant: what is wrong with it, the suite that must see it, and its rules."""
    for number, group in enumerate(GROUPS):
        for place, rule in enumerate(group["rules"]):
            suite = next(suite for suite in SUITES if belongs(rule, suite))
            for wrong, mutant in break_rule(rule):
                groups = copy.deepcopy(GROUPS)
                groups[number]["rules"][place] = mutant
                yield f"{wrong} ({rule.get('labels')})", suite, groups


def test_prometheus_accepts_the_rules_and_the_configuration() -> None:
    for arguments in (("check", "rules", FOLDER / "goals.rules.yaml"), ("check", "config", FOLDER / "prometheus.yml")):
        result = promtool(*arguments)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_silent_and_fires_when_it_must(tmp_path: Path) -> None:
    for suite in SUITES:
        # With all rules together, as in production.
        folder = tmp_path / suite
        folder.mkdir()
        for file in (FOLDER / "goals.rules.yaml", HERE / f"{suite}.test.yaml"):
            (folder / file.name).write_text(file.read_text())
        result = promtool("test", "rules", folder / f"{suite}.test.yaml")
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.timeout(600)
def test_broken_rules_do_not_pass(tmp_path: Path) -> None:
    for suite in SUITES:
        whole = run_suite(suite, GROUPS, tmp_path / suite)
        assert whole.returncode == 0, whole.stdout + whole.stderr
    mutants = [*broken()]
    with ThreadPoolExecutor() as threads:
        results = threads.map(
            lambda number: run_suite(mutants[number][1], mutants[number][2], tmp_path / str(number)).returncode,
            range(len(mutants)),
        )
    survivors = [wrong for (wrong, _, _), code in zip(mutants, results, strict=True) if code == 0]
    assert survivors == []
    assert len(mutants) > 100
