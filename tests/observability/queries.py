"""What the rules and the dashboards ask Prometheus, taken from the committed files."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser
import yaml
from promql_parser import MatchOp

from tests.observability.conftest import FOLDER

DASHBOARDS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text()) for file in sorted((FOLDER / "dashboards").glob("*.json"))
}
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "goals.rules.yaml").read_text())["groups"] for rule in group["rules"]
]
# What Grafana would put in: the ranges fit the scrape interval of the live run, and everything is chosen.
_VARIABLES = {"$__rate_interval": "1m", "$__interval": "15s", "$job": ".+", "$instance": ".+"}


class Query(NamedTuple):
    """One expression; `where` names its place for a message, `legend` is the panel's template."""

    where: str
    expr: str
    legend: str = ""


class Selector(NamedTuple):
    metric: str
    matchers: tuple[tuple[str, bool, str], ...]
    """Label, whether its value must be equal, value."""


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            if panel["type"] != "row":
                yield f"{name} / {panel['title']}", panel


def panel_queries() -> list[Query]:
    return [
        Query(f"{where} {target['refId']}", substitute(target["expr"]), target["legendFormat"])
        for where, panel in panels()
        for target in panel["targets"]
    ]


def annotation_queries() -> list[Query]:
    return [
        Query(f"{name} / {annotation['name']}", substitute(annotation["target"]["expr"]))
        for name, dashboard in DASHBOARDS.items()
        for annotation in dashboard["annotations"]["list"]
    ]


def variable_queries() -> list[Query]:
    """The selector of each variable, with the label it lists as the legend."""
    found = []
    for name, dashboard in DASHBOARDS.items():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert match, variable
                found.append(Query(f"{name} / ${variable['name']}", substitute(match[1]), match[2]))
    return found


def rule_queries() -> list[Query]:
    return [Query(f"rule {rule.get('record') or rule['alert']}", rule["expr"]) for rule in RULES]


def substitute(expr: str) -> str:
    return re.sub(r"\$\w+", lambda variable: _VARIABLES[variable[0]], expr)


def selectors(expr: str) -> list[Selector]:
    """Every selector of an expression, from its syntax tree."""
    return [
        Selector(
            str(node.name),
            tuple((match.name, match.op == MatchOp.Equal, match.value) for match in node.matchers.matchers),
        )
        for node in _walk(promql_parser.parse(expr))
        if isinstance(node, promql_parser.VectorSelector)
    ]


def groupings(expr: str) -> list[tuple[set[str], list[Selector]]]:
    """The labels of every `by`, each with the selectors it groups."""
    return [
        (set(node.modifier.labels), selectors(node.expr.prettify()))
        for node in _walk(promql_parser.parse(expr))
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None
    ]


def _walk(tree: promql_parser.Expr) -> list[promql_parser.Expr]:
    found: list[promql_parser.Expr] = []

    def visit(node: promql_parser.Expr) -> bool:
        found.append(node)
        return True

    promql_parser.walk(tree, visit)
    return found
