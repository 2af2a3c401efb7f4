"""The rules as a whole: what they say of a tutorial's platform, that each works, and what must stay closed."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from goals.limits import Limits
from tests.k8s import mutants
from tools.lint import __main__ as lint, limits, reachability
from tools.lint.inventory import Inventory, get_path, matches
from tools.lint.manifests import ROOT, Finding, read
from tools.lint.rules import RULES, find_broken, name_and_consequence
from tools.lint.schemas import Schemas
from tools.lint.service import LIMITS, SETTINGS, problem, routes
from tools.lint.tree import TREE
from tools.lint.workloads import quantity

ORIGINAL = Path(__file__).with_name("original.yaml")

DEFECTS = {
    "a beta version of HTTPRoute": ("stable-version", "HTTPRoute default/web"),
    "a route on plain http as well": ("section-name", "HTTPRoute default/web"),
    "no redirect": ("redirect", "Gateway default/front"),
    "a password in a manifest": ("secret-in-git", "Secret default/app-credentials"),
    "two passwords that must agree": ("database-credentials", "Deployment default/web"),
    "a password made after the database that needs it": ("configuration", "Cluster default/pg"),
    "a table made by hand": ("migration", "Deployment default/web"),
    "no TLS to the database": ("database-tls", "Deployment default/web"),
    "no synchronous replication, no anti-affinity, no resources": ("database-quorum", "Cluster default/pg"),
    "an image of PostgreSQL that changes": ("image", "Cluster default/pg"),
    "replicas against the autoscaler": ("autoscaler-replicas", "Deployment default/web"),
    "a hair trigger, a memory target, one replica": ("autoscaler-target", "HorizontalPodAutoscaler default/web"),
    "public metrics": ("public-metrics", "ServiceMonitor default/web"),
    "a monitor that Prometheus does not pick up": ("monitor-label", "ServiceMonitor default/web"),
    "no security context": ("pod-security", "Deployment default/web"),
    "a writable container with a token": ("hardening", "Deployment default/web"),
    "no disruption budget": ("disruption-budget", "Deployment default/web"),
    "no network policies": ("default-deny", ""),
    "no quotas": ("quota", "Deployment default/web"),
    "a pull at each start": ("pull-policy", "Deployment default/web"),
    "the tag latest": ("image", "Deployment default/web"),
    "one address for both probes": ("probe", "Deployment default/web"),
    "one Gateway in two files": ("duplicate", "Gateway default/front"),
    "everything in default": ("default-namespace", "Deployment default/web"),
    "too few connections for so many pods": ("connections", "Cluster default/pg"),
    "idle connections that outlive the service's": ("gateway-limits", "HTTPRoute default/web"),
    # part azure
    "no backups, a disk of 1 GiB": ("database-backup", "Cluster default/pg"),
    "production of Let's Encrypt at the first try": ("acme-staging", "ClusterIssuer letsencrypt"),
    "a solver without sectionName": ("acme-solver", "ClusterIssuer letsencrypt"),
    # end azure
    # part argocd
    "an unneeded ReferenceGrant": ("unused-grant", "ReferenceGrant argocd/argocd"),
    "a Gateway sought where the controller is": ("parent", "HTTPRoute argocd/argocd"),
    "a beta version of ReferenceGrant": ("stable-version", "ReferenceGrant argocd/argocd"),
    "Argo CD without TLS": ("argocd-insecure", "ConfigMap argocd/argocd-cmd-params-cm"),
    "Argo CD's plain port": ("backend-tls", "HTTPRoute argocd/argocd"),
    "a chart without a version, from its old address": ("application-version", "Application argocd/gateway"),
    "no server-side apply": ("application-apply", "Application argocd/gateway"),
    # end argocd
}  # fmt: skip


RULE = {"every", "rule", "tree_rule"}
"""What makes a function a rule."""

BARE = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, namespace: b}
spec: {selector: {}, template: {spec: {containers: [{name: a}, {name: b, image: goals}]}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: a, namespace: b}
spec: {scaleTargetRef: {kind: Deployment, name: a}, maxReplicas: 30}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: none, namespace: b}
spec: {scaleTargetRef: {kind: Deployment, name: none}, maxReplicas: 3}
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: b}
spec: {containers: [{name: c}]}
---
apiVersion: postgresql.cnpg.io/v1
kind: Cluster
metadata: {name: a, namespace: b}
spec: {instances: 1}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: b}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: a, namespace: b}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a, namespace: b}
spec: {parentRefs: [{name: c}], rules: [{backendRefs: [{name: a}]}, {backendRefs: [{name: none}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: b, namespace: b}
spec: {}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a, namespace: b}
spec:
  podSelector: {}
  ingress: [{from: [{podSelector: {}}], ports: [{protocol: TCP}, {port: http}]}, {}]
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: a, namespace: b}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: User, name: someone}, {kind: ServiceAccount, name: default, namespace: b}]
# part argocd
---
apiVersion: argoproj.io/v1alpha1
kind: Application
metadata: {name: a, namespace: b, annotations: {argocd.argoproj.io/sync-wave: soon}}
spec: {project: default, destination: {}}
# end argocd
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: a, namespace: b}
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: {name: a, namespace: b}
spec: {selector: {}, endpoints: [{}]}
"""


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    return Schemas(Path(os.environ.get("CRDS") or lint.CRDS))


@pytest.fixture(scope="module")
def said(schemas: Schemas) -> list[Finding]:
    objects = read(ORIGINAL.read_text(encoding="utf-8"))
    inventory = Inventory(lint.sound({"original": objects}, schemas))
    return [*lint.check_objects("original", objects, schemas), *find_broken(inventory)]


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_of_a_platform_from_a_tutorial_is_reported(defect: str, said: list[Finding]) -> None:
    rule, what = DEFECTS[defect]
    assert [one for one in said if one.rule == rule and what in {one.what, ""}]


def test_the_tutorial_passes_the_schemas_so_that_only_rules_can_find_its_defects(said: list[Finding]) -> None:
    assert [str(one) for one in said if one.rule == "schema"] == []


def test_objects_that_say_no_more_than_they_must_are_judged_and_break_nothing(schemas: Schemas) -> None:
    objects = read(BARE)
    assert [(one, schemas.problems(one)) for one in objects if not schemas.is_sound(one)] == []
    rules = {one.rule for one in find_broken(Inventory({"bare": objects}))}
    assert {"parent", "policy-end", "backend", "connections", "pod-security", "quota", "database-quorum"} <= rules


def test_a_finding_is_one_line_with_file_object_problem_rule_and_harm(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint.main([str(ORIGINAL)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) > len(DEFECTS)
    (line,) = [one for one in lines if "monitor-label" in one]
    assert line == (
        f"{ORIGINAL}: ServiceMonitor default/web: metadata.labels.release is not set; it must be set"
        " [monitor-label: Prometheus silently ignores the monitor or rule; its alerts never fire]"
    )


def test_each_rule_says_what_it_prevents_and_a_mutant_shows_that_it_works() -> None:
    consequences = {
        **{name: one.consequence for name, one in RULES.items()},
        **dict(map(name_and_consequence, TREE.values())),
    }
    assert len(consequences) == len(RULES) + len(TREE)
    assert [name for name, consequence in consequences.items() if not consequence] == []
    assert {one.rule for one in mutants.MUTANTS} == {*consequences, *mutants.OTHERS}


def test_each_mutant_still_finds_the_text_that_it_breaks() -> None:
    for mutant in mutants.MUTANTS:
        if mutant.file == mutants.CODE:
            assert mutant.old in LIMITS
        elif mutant.old:
            beside = mutants.BESIDE.get(mutant.rule, {})
            text = beside.get(mutant.file) or (ROOT / mutant.file).read_text(encoding="utf-8")
            assert mutant.old in text, mutant
            assert text.replace(mutant.old, mutant.new, 1) != text, mutant


def test_the_rules_are_tables_and_short_functions() -> None:
    """What they stand on (reading, rendering, what operators make, evaluating policies) is not counted."""
    functions, tables = list[int](), list[int]()
    for file in sorted((ROOT.parent / "tools/lint").glob("*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        rules = [one for one in body if isinstance(one, ast.FunctionDef) and RULE.intersection(decorators(one))]
        functions += [(one.end_lineno or 0) - one.decorator_list[0].lineno + 1 for one in rules]
        if rules or file.name == "fields.py":
            values = [one for one in body if isinstance(one, ast.Assign | ast.AnnAssign)]
            tables += [(one.end_lineno or 0) - one.lineno + 1 for one in values]
    print(f"{sum(functions)} lines in {len(functions)} functions, {sum(tables)} in tables")  # noqa: T201  `-rP` shows it
    assert sum(functions) + sum(tables) <= 800
    assert max(functions) <= 25


def decorators(function: ast.FunctionDef) -> list[str]:
    return [ast.unparse(one).partition("(")[0] for one in function.decorator_list]


# The reviewed table.


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], str]:
    return reachability.reviewed((ROOT / reachability.FILE).read_text(encoding="utf-8"))[0]


def senders(table: dict[tuple[str, str], str], target: str, port: str) -> set[str]:
    return {source for (source, to), ports in table.items() if to == target and {port, "any"} & {*ports.split(", ")}}


def test_the_database_is_reached_by_those_who_need_it_and_nobody_else(table: dict[tuple[str, str], str]) -> None:
    owners = {"goals/goals", "goals/migrate", "goals/restore-check", "goals/goals-db", "cnpg-system/CloudNativePG"}
    assert senders(table, "goals/goals-db", "5432") == owners
    assert senders(table, "goals/goals-db", "9187") == {"monitoring/Prometheus"}


def test_the_ops_port_is_for_prometheus_and_the_public_one_for_the_gateway(
    table: dict[tuple[str, str], str],
) -> None:
    assert senders(table, "goals/goals", "9464") == {"monitoring/Prometheus"}
    assert senders(table, "goals/goals", "8080") == {"edge/gateway edge", "goals/loadtest", "goals/loadtest-workers"}


def test_from_outside_only_the_gateway_and_the_webhooks_are_reached(table: dict[tuple[str, str], str]) -> None:
    reached = {
        to: ports for (source, to), ports in table.items() if source == "outside" and ports != reachability.DENIED
    }
    del reached["kube-system/DNS"]  # the cluster's own; no policy of ours rules it
    assert reached.pop("edge/gateway edge") == "80, 443"
    assert set(reached.values()) <= {"9443", "10250"}


def test_the_service_reaches_the_database_and_names_and_nothing_else(table: dict[tuple[str, str], str]) -> None:
    reached = {to for (source, to), ports in table.items() if source == "goals/goals" and ports != reachability.DENIED}
    assert reached == {"goals/goals-db", "kube-system/DNS"}


# What the rules stand on, and where ours give them nothing to find.


def broken(objects: str, *rules: str) -> dict[str, list[str]]:
    inventory = Inventory({"theirs": read(objects)})
    return {rule: [str(one.problem) for one in find_broken(inventory, rule)] for rule in rules}


CROSSING = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: b}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: a}
spec: {rules: [{backendRefs: [{name: web, namespace: b, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: web, namespace: b}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: "", kind: Service}]}
"""


def test_a_grant_is_for_who_asks_and_what_is_asked_for() -> None:
    rules = ("backend", "grant", "unused-grant")
    assert broken(CROSSING, *rules) == {rule: [] for rule in rules}
    for old, new in (
        ("kind: Service}]}", "kind: Service, name: api}]}"),
        ("HTTPRoute, namespace: a", "HTTPRoute, namespace: c"),
    ):
        found = broken(CROSSING.replace(old, new), *rules)
        assert {rule: len(problems) for rule, problems in found.items()} == {
            "backend": 0,
            "grant": 1,
            "unused-grant": 1,
        }
    (problem,) = broken(CROSSING.replace("port: 80}]}]", "port: 8080}]}]"), "backend")["backend"]
    assert problem == "Service b/web has no 8080, only 80, http"


TWICE = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: a}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: web}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: a}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: one, namespace: a}
spec: {selector: {matchLabels: {app: web}}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: other, namespace: a}
spec: {selector: {matchLabels: {app: web}}}
"""


def test_a_port_that_a_policy_names_is_the_one_that_the_pod_calls_so() -> None:
    policy = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: a}
spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]}
"""
    named = TWICE.replace(
        "{name: web, image: web}", "{name: web, image: web, ports: [{name: http, containerPort: 80}]}"
    )
    inventory = Inventory({"theirs": read(f"{named}---{policy}")})
    (pod,) = inventory.workloads
    assert reachability.is_open(inventory, pod, pod, 80)
    assert not reachability.is_open(inventory, pod, pod._replace(ports={"web": 80}), 80)


def test_two_budgets_for_one_pod_are_one_too_many() -> None:
    (problem,) = broken(TWICE, "disruption-budget")["disruption-budget"]
    assert problem == "2 PodDisruptionBudgets cover its pods, and every eviction is rejected"


def test_a_policy_of_the_gateway_for_another_service_is_not_held_against_ours() -> None:
    theirs = """
apiVersion: gateway.nginx.org/v1alpha1
kind: UpstreamSettingsPolicy
metadata: {name: web, namespace: a}
spec: {targetRefs: [{group: "", kind: Service, name: web}], keepAlive: {timeout: 60s}}
"""
    assert broken(f"{TWICE}---{theirs}", "gateway-limits") == {"gateway-limits": []}
    ours = f"{TWICE}---{theirs}".replace("image: web", "image: goals")
    (problem,) = broken(ours, "gateway-limits")["gateway-limits"]
    assert problem == "keepAlive.timeout (60 s) must be below keep_alive (5 s)"


def test_limits_are_read_from_the_code() -> None:
    assert LIMITS["keep_alive"] == Limits().keep_alive
    assert SETTINGS["GOALS_DRAIN_SECONDS"] == 6.0
    assert "/metrics" in routes()[9464]
    assert "/metrics" not in routes()[8080]
    script = "import sys; from tools.lint import limits, service; print('goals.app' in sys.modules)"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_service_itself_says_what_is_wrong_with_a_value_and_this_machine_has_no_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOALS_PORT", "nonsense")
    assert problem({"SSL": "verify-full", "DB_CA_FILE": "/not/here"}) == ""
    assert "GOALS_POOL_SIZE" in problem({"GOALS_POOL_SIZE": "1000"})
    assert os.environ["GOALS_PORT"] == "nonsense"


@pytest.mark.parametrize(("text", "value"), [("4s", 4), ("1m30s", 90), ("500ms", 0.5), (6, 6), ("1.5", 1.5)])
def test_durations_are_read_as_nginx_compose_and_kubernetes_write_them(text: object, value: float) -> None:
    assert limits.seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "4x", "s"])
def test_what_is_no_duration_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is text"):
        limits.seconds(text)


def test_selectors_are_read_as_kubernetes_reads_them() -> None:
    labels = {"app": "web", "tier": "front"}
    assert matches({}, labels)
    assert matches({"matchLabels": {"app": "web"}}, labels)
    assert not matches({"matchLabels": {"app": "web", "tier": "back"}}, labels)
    for operator, key, values, expected in (
        ("In", "app", ["web", "api"], True),
        ("NotIn", "app", ["web"], False),
        ("NotIn", "absent", ["web"], True),
        ("Exists", "tier", [], True),
        ("DoesNotExist", "tier", [], False),
    ):
        one = {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}
        assert matches(one, labels) is expected, operator


def test_paths_lead_through_lists_and_stop_where_something_is_missing() -> None:
    one = {"spec": {"rules": [{"refs": [{"name": "a"}]}, {}, {"refs": [{"name": "b"}]}], "none": None}}
    assert list(get_path(one, "spec.rules[].refs[].name")) == ["a", "b"]
    assert list(get_path(one, "spec.none.deeper")) == list(get_path(None, "spec")) == []


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "compose.yaml").write_text(mutants.GOOD_COMPOSE)
    (tmp_path / "nginx.conf").write_text(mutants.GOOD_NGINX)
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_a_consistent_compose_is_silent_and_so_is_none(compose: Path) -> None:
    assert list(limits.find_in_compose(compose)) == []
    (compose / "compose.yaml").unlink()
    assert list(limits.find_in_compose(compose)) == []


def test_compose_may_give_the_gateways_configuration_in_a_folder(compose: Path) -> None:
    (compose / "conf.d/empty").mkdir(parents=True)
    (compose / "conf.d/site.conf").write_text(mutants.GOOD_NGINX.replace("4s", "5s"))
    file = compose / "compose.yaml"
    file.write_text(mutants.GOOD_COMPOSE.replace("./nginx.conf:/etc/nginx/nginx.conf:ro", "./conf.d:/etc/nginx/conf.d"))
    (finding,) = limits.find_in_compose(compose)
    assert "keepalive_timeout (5 s) must be below keep_alive (5 s)" in finding.problem


def test_a_configuration_that_cannot_be_read_is_said(compose: Path) -> None:
    file = compose / "compose.yaml"
    for volumes in (
        "[{type: bind, source: ./nginx.conf, target: /etc/nginx/nginx.conf}]",
        "['data:/var/cache/nginx']",
        "[]",
    ):
        file.write_text(mutants.GOOD_COMPOSE.replace("['./nginx.conf:/etc/nginx/nginx.conf:ro']", volumes))
        (finding,) = limits.find_in_compose(compose)
        assert "no mounted file has an upstream, so its limits cannot be checked" in finding.problem


def test_a_drain_that_compose_changes_must_fit_its_grace_period(compose: Path) -> None:
    file = compose / "compose.yaml"
    file.write_text(
        mutants.GOOD_COMPOSE.replace(
            "grace_period: 30s", "grace_period: 30s, environment: ['GOALS_DRAIN_SECONDS=${DRAIN:-60}']"
        )
    )
    (finding,) = limits.find_in_compose(compose)
    assert finding.what == "goals"
    assert "must be below stop_grace_period (30 s)" in finding.problem


def test_a_finding_names_the_file_that_says_it_and_all_renders_it_came_out_in() -> None:
    wrong = [
        Finding(where, "Service goals/goals", "is wrong", "rule", "consequence")
        for where in ("overlays/local", "overlays/aks")
    ]
    (one,) = lint.merge(wrong)
    assert one.where == "base/service.yaml (in overlays/local, overlays/aks)"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("1", 1), (2, 2), ("100m", 0.1), (".5", 0.5), ("-1k", -1e3), ("5n", 5e-9), ("1e9", 1e9), ("1E3", 1e3)),
        *(("1.5Gi", 1.5 * 2**30), ("1T", 1e12), ("1Pi", 2**50), ("1E", 1e18)),
    ],
)
def test_a_quantity_is_read_as_kubernetes_does(text: object, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "one", "1X", "1 Gi", ".", "1ee3", None])
def test_what_is_no_quantity_is_neither_more_nor_less_than_one(text: object) -> None:
    assert not quantity(text) < 1
    assert not quantity(text) >= 1
