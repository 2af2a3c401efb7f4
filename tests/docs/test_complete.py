"""What there is, is documented; what is documented, is there."""

import re
from pathlib import Path

import pytest
import yaml

# part drills
from drills.catalogue import DRILLS

# end drills
from goals.limits import Limits
from goals.settings import Settings
from tests.conftest import ROOT
from tests.prose import prose
from tools.documents import documents, parse

TEXT = {document: document.read_text(encoding="utf-8") for document in documents()}
CODE = {piece for document in TEXT for _, piece in parse(document)[1]}
CODE |= {line for document in TEXT for block in parse(document)[0] for line in block.text.splitlines()}
OPERATIONS = TEXT[ROOT / "docs/operations.md"]


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {heading}"
    return found[1]


@prose
def test_readme_stays_short() -> None:
    readme = TEXT[ROOT / "README.md"]
    assert len(readme.splitlines()) <= 150
    assert len(readme.split()) <= 1200


def test_every_target_is_documented() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.MULTILINE))
    named = {
        word for piece in CODE for words in re.findall(r"\bmake((?: +[\w=.-]+)+)", piece) for word in words.split()
    }
    assert targets - named == set()


def test_every_alert_has_a_row_with_its_runbook_and_severities() -> None:
    rules = yaml.safe_load((ROOT / "observability/goals.rules.yaml").read_text(encoding="utf-8"))
    alerts: dict[str, set[str]] = {}
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                alerts.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    rows = re.findall(
        r"^\| \[(\w+)\]\(runbooks/(\w+)\.md\) \| ([\w, ]+) \|", section(OPERATIONS, "Alerts"), re.MULTILINE
    )
    assert {name: set(severities.split(", ")) for name, _, severities in rows} == alerts
    assert all(name == runbook for name, runbook, _ in rows)
    assert {path.stem for path in (ROOT / "docs/runbooks").glob("*.md")} == set(alerts)


# part loadtest
def test_every_scenario_is_documented() -> None:
    scenarios = {path.stem for path in (ROOT / "loadtest/scenarios").glob("*.toml")}
    assert scenarios
    assert {name for name in scenarios if not re.search(rf"\b{name}\b", TEXT[ROOT / "docs/loadtest.md"])} == set()
    named = {name for piece in CODE for name in re.findall(r"\bSCENARIO=(\w+)", piece)}
    assert named <= scenarios


# end loadtest
# part drills
def test_every_drill_that_the_documents_name_exists() -> None:
    named = {name for piece in CODE for name in re.findall(r"\bDRILL=(\w+)", piece)}
    assert named
    assert named <= set(DRILLS)


# end drills
def test_every_setting_that_the_documents_name_exists() -> None:
    named = {name for piece in CODE for name in re.findall(r"\b(?:GOALS|DB)_[A-Z_]+\b", piece)}
    assert named
    assert named <= {name.upper() for name in Settings.model_fields}


def test_every_metric_that_the_documents_name_is_explained() -> None:
    named = {
        name for piece in CODE for name in re.findall(r"\b(?:goals|http|db|add_goal|remove_goal)_\w+_total\b", piece)
    }
    assert named
    assert {name for name in named if name not in TEXT[ROOT / "docs/metrics.md"]} == set()


def test_every_time_limit_is_the_codes() -> None:
    rows = re.findall(r"^\| [^|]+ \| ([\d.]+|the remainder of [\d.]+) \| `([a-z_]+)` \|", OPERATIONS, re.MULTILINE)
    assert rows
    for said, name in rows:
        assert float(said.rpartition(" ")[2]) == getattr(Limits(), name), name


# part drills
def test_every_answer_to_a_stuck_database_is_one_that_the_drill_expects() -> None:
    answers = section(OPERATIONS, "What the service does when PostgreSQL fails")
    answered = set(re.findall(r"^\| [^|]+ \| (\w{5}) \|", answers, re.MULTILINE))
    drill = (ROOT / "drills/stuck.py").read_text(encoding="utf-8")
    assert answered == set(re.findall(r'"(\d{2}[0-9A-Z]{3})"', drill))


# end drills
@prose
def test_every_decision_is_in_the_list_under_a_number_of_its_own() -> None:
    folder = ROOT / "docs/adr"
    files = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert len({name[:4] for name in files}) == len(files)
    listed = re.findall(r"^- \[(\d{4})\]\(([^)]+)\): (.+)$", TEXT[folder / "README.md"], re.MULTILINE)
    titles = {name: TEXT[folder / name].partition("\n")[0] for name in files}
    assert [(name[:4], name, titles[name]) for name in files] == [
        (number, name, f"# {int(number)}. {title}") for number, name, title in listed
    ]
    for name in files:
        status = TEXT[folder / name].splitlines()[2]
        assert re.fullmatch(r"(Accepted|Replaced by \d{4}), \d{4}-\d\d-\d\d\.", status), f"{name}: {status}"
        for part in ("**Context.**", "**Decision.**", "**Consequences.**"):
            assert part in TEXT[folder / name], f"{name}: {part}"


def test_every_job_of_the_pipeline_calls_what_ci_runs() -> None:
    """What .ci/run does on one machine, the workflows do on several, and ci.yaml does nothing beside."""
    run, clean_room = (
        re.sub(r"(?m)^ *#.*", "", (ROOT / ".ci" / program).read_text(encoding="utf-8"))
        for program in ("run", "newcomer")
    )
    assert ".ci/clean-room" in run
    run += clean_room
    texts = [run]
    names = ["ci", "nightly"]
    # part k8s
    # part drills
    names.append("cluster")
    # end drills
    # end k8s
    for name in names:
        workflow = yaml.safe_load((ROOT / f".github/workflows/{name}.yaml").read_text(encoding="utf-8"))
        texts.append("\n".join(step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]))
    ours, pipeline, nightly, *others = (
        {word for words in re.findall(r"\bmake((?: [a-z0-9-]+)+)", text) for word in words.split()} for text in texts
    )
    assert pipeline <= ours
    assert ".ci/clean-room" in texts[2]
    nightly |= {word for word in ours if f"make {word}" in clean_room}
    assert ours <= pipeline.union(nightly, *others)
    # part loadtest
    assert ".ci/smoke" in run
    assert ".ci/smoke" in texts[1]
    # end loadtest


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yaml")), ids=lambda path: path.name)
def test_a_workflow_starts_without_rights_and_every_job_has_a_limit(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        assert "permissions" in job


# part k8s
def test_the_policy_and_the_documents_name_the_workflow_that_signs() -> None:
    policy = yaml.safe_load((ROOT / "docs/examples/imagevalidatingpolicy.yaml").read_text(encoding="utf-8"))
    (identity,) = policy["spec"]["attestors"][0]["cosign"]["keyless"]["identities"]
    (said,) = re.findall(r"--certificate-identity (\S+)", TEXT[ROOT / "docs/supply-chain.md"])
    assert re.fullmatch(identity["subjectRegExp"], said)
    assert not re.fullmatch(identity["subjectRegExp"], said.replace("refs/tags/v1.2.3", "refs/heads/main"))
    signs = (ROOT / ".github/workflows/release.yaml").read_text(encoding="utf-8")
    assert "cosign sign" in signs
    assert 'https://github.com/$GITHUB_REPOSITORY/.github/workflows/release.yaml@$GITHUB_REF"' in signs
    assert identity["issuer"] in signs


# end k8s
