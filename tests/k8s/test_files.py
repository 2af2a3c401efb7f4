"""Files that somebody tries out: each gets a verdict, or one line that names it and what is not supported in it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tools.lint import __main__ as lint, files
from tools.lint.manifests import ROOT

Check = Callable[..., tuple[int, str, str]]

CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\n"
POD = """apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          image: registry.example/web@sha256:1111111111111111111111111111111111111111111111111111111111111111
          ports: [{name: http, containerPort: 8080}]
          resources: {requests: {memory: 64Mi}, limits: {memory: 64Mi}}
          volumeMounts: [{name: tmp, mountPath: /tmp}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 5}
      volumes: [{name: tmp, emptyDir: {sizeLimit: 16Mi}}]
"""
SERVICE = """apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
"""
POLICY = """apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [web]}]}
  policyTypes: [Egress]
  egress:
    - to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]
      ports: [{protocol: TCP, port: 80, endPort: 90}]
"""
SCALER = """apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web, namespace: shop}
spec: {minReplicas: 2, maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}
"""
JOB = """apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: shop}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: a, image: "a:1"}]}}}
"""
BUDGET = """apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: shop}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}
"""
BINDING = """apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: people, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: developers}]
"""
ROLE = """apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: shop}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]
"""
QUOTA = "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: a, namespace: shop}\nspec: {hard: {pods: '20'}}\n"
GATEWAY = """apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {gatewayClassName: nginx, addresses: [{value: 192.0.2.1}], listeners: [{name: http, port: 80, protocol: HTTP}]}
"""
UPSTREAM = """apiVersion: gateway.nginx.org/v1alpha1
kind: UpstreamSettingsPolicy
metadata: {name: NAME, namespace: shop}
spec: {targetRefs: [{group: "", kind: Service, name: web}], FIELD}
"""
# part azure
BACKUP = """apiVersion: postgresql.cnpg.io/v1
kind: ScheduledBackup
metadata: {name: a, namespace: shop}
spec: {schedule: "SCHEDULE", cluster: {name: db}}
"""
# end azure
SOUND = {
    text.split("kind: ")[1].split("\n")[0]: text
    for text in (CONFIG, POD, SERVICE, POLICY, SCALER, JOB, BUDGET, BINDING, ROLE, QUOTA, GATEWAY)
}


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Check files with these contents: the exit code, what was found, and what was said beside it."""

    def run(*contents: str | bytes) -> tuple[int, str, str]:
        paths = [tmp_path / f"file-{number}.yaml" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        code = lint.main([str(path) for path in paths])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CONFIG.encode("utf-16"), ": is not UTF-8 text"),
        (b"\xff\xfe", ": is not UTF-8 text"),
        (CONFIG + "data:\n\tkey: value\n", ":5: found character that cannot start any token"),
        (CONFIG + "data: {\n", ":5: "),
        (CONFIG + "data: {a: \x07}\n", ": unacceptable character"),
        (CONFIG + "data: *nothing\n", ":4: found undefined alias"),
        (CONFIG + "data: &a {a: *a}\n", "unconstructable recursive node"),
        (CONFIG + "data: " + "[" * 5000 + "]" * 5000, ": is nested too deeply"),
        (CONFIG + "data: {a: !!binary aGk=}\n", ":4: could not determine a constructor for the tag"),
        (CONFIG + "data: {a: !secret b}\n", ":4: could not determine a constructor for the tag '!secret'"),
        (CONFIG + "data: {a: b}\ndata: {c: d}\n", ":5: duplicate key data"),
        (CONFIG + "data: {a: b, a: b}\n", ":4: duplicate key a"),
        (CONFIG + "data: {on: b}\n", ":4: the key on is not a string"),
        (CONFIG + "data: {404: b}\n", ":4: the key 404 is not a string"),
        (CONFIG + "data: {1.5: b}\n", ":4: the key 1.5 is not a string"),
        (CONFIG + "data: {~: b}\n", ":4: the key ~ is not a string"),
        (CONFIG + "data: {[a]: b}\n", ":4: the key"),
        (CONFIG + "data: {y: b}\n", ":4: y is ambiguous in YAML"),
        *(
            (CONFIG + f"data: {{a: {value}}}\n", f":4: {value} is ambiguous in YAML")
            for value in ("12:30", "1e3", "1.5E3", "1_000", "0o17", "089", ".inf", "-.Inf", ".nan", "n", "12:30:15.5")
        ),
        ("", ": contains no object"),
        ("# nothing\n---\n---\n", ": contains no object"),
        ("- " + CONFIG.replace("\n", "\n  "), ": object 1: is a list, not an object"),
        ("hello\n", ": object 1: is a single value, not an object"),
        (CONFIG + "---\n7\n", ": object 2: is a single value, not an object"),
        ("kind: ConfigMap\n", ": object 1: has no apiVersion and kind"),
        ("apiVersion: 1\nkind: ConfigMap\n", ": object 1: has no apiVersion and kind"),
        (CONFIG.replace("name: a, ", ""), ": object 1: ConfigMap has no metadata.name"),
        (CONFIG.replace("name: a", "generateName: a-"), ": object 1: ConfigMap has no metadata.name (a generateName"),
        (CONFIG.replace("name: a", "name: 7"), ": object 1: ConfigMap has no metadata.name"),
        (CONFIG.replace("{name: a, namespace: shop}", "a"), ": object 1: ConfigMap has no metadata.name"),
        *(
            (
                f"apiVersion: {version}\nkind: {kind}\n",
                f": object 1: {version} {kind} is not a kind that the platform uses",
            )
            for version, kind in (
                ("v1", "List"),
                ("rbac.authorization.k8s.io/v1", "RoleBindingList"),
                ("apps/v1", "StatefulSet"),
                ("networking.k8s.io/v1", "Ingress"),
                ("example.com/v1", "Service"),
                ("kustomize.config.k8s.io/v1beta1", "Kustomization"),
            )
        ),
    ],
)
def test_what_is_not_supported_is_named_with_its_file(check: Check, content: str | bytes, said: str) -> None:
    code, out, err = check(SOUND["ConfigMap"], content)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert f"file-1.yaml{said}" in line or (said in line and "file-1.yaml:" in line)


def test_each_file_that_cannot_be_read_is_named(
    check: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = check("- a", "- b")
    assert code == 2
    assert [line.partition(".yaml")[0][-6:] for line in err.splitlines()] == ["file-0", "file-1"]
    closed = tmp_path / "closed.yaml"
    closed.write_text(CONFIG)
    closed.chmod(0)
    unreadable = [tmp_path, tmp_path / "absent.yaml", *([closed] if os.geteuid() else [])]
    assert lint.main([str(path) for path in unreadable]) == 2
    lines = capsys.readouterr().err.splitlines()
    for path, line in zip(unreadable, lines, strict=True):
        assert line.startswith(f"error: {path}: cannot be read: ")


def test_what_all_read_alike_is_read(check: Check) -> None:
    text = 'data: {"1230": "1e3", "on": "y", a: 2026-01-01, "404": "0o17", <<: {b: merged}}\n'
    assert check("\ufeff" + CONFIG + text)[:2] == (0, "")
    assert check(CONFIG + "data: {a: 017}\n")[0] == 1  # a number to all, and a ConfigMap holds texts


def said_of(check: Check, text: str, old: str, new: str) -> str:
    assert old in text
    code, out, _ = check(text.replace(old, new, 1))
    assert code == 1
    return out


@pytest.mark.parametrize("kind", SOUND)
def test_what_the_api_server_takes_is_not_called_refused(check: Check, kind: str) -> None:
    code, out, _ = check(SOUND[kind])
    assert code in {0, 1}
    assert "[schema:" not in out


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (POD, "name: web,", "name: My_Web,"),
        (POD, "namespace: shop", "namespace: the.shop"),
        (POD, "labels: {app: web}", "labels: {app: web, team: my team}"),
        (POD, "namespace: shop}", f"namespace: shop, labels: {{a: {'b' * 64}}}}}"),
        (POD, "namespace: shop}", "namespace: shop, annotations: {a b: c}}"),
        (POD, "- name: web", "- name: Web"),
        (POD, "image: registry.", "image: 'registry example'  # "),
        (POD, "        - name: web", "        - {name: web, image: 'a:1'}\n        - name: web"),
        (POD, "name: http, c", "name: http-metrics-internal, c"),
        (POD, "containerPort: 8080", "containerPort: 70000"),
        (POD, "containerPort: 8080}", "containerPort: 8080}, {name: http, containerPort: 8081}"),
        (POD, "containerPort: 8080", "containerPort: 8080, protocol: http"),
        (POD, "requests: {memory: 64Mi}", "requests: {memory: 512MB}"),
        (POD, "requests: {memory: 64Mi}", "requests: {memory: 65Mi}"),
        (POD, "requests: {memory: 64Mi}", "requests: {memory: -1}"),
        (POD, "sizeLimit: 16Mi", "sizeLimit: 16MB"),
        (POD, "name: tmp, mountPath", "name: config, mountPath"),
        (POD, "mountPath: /tmp}", "mountPath: /tmp}, {name: tmp, mountPath: /tmp}"),
        (POD, "{name: tmp, emptyDir", "{name: tmp}, {name: tmp, emptyDir"),
        (POD, "periodSeconds: 5", "periodSeconds: 0"),
        (POD, "readinessProbe: {", "livenessProbe: {successThreshold: 2, "),
        (POD, "readinessProbe: {", "readinessProbe: {exec: {command: [a]}, "),
        (POD, "          ports", "          imagePullPolicy: always\n          ports"),
        (POD, "          ports", "          env: [{name: 'a=b', value: c}]\n          ports"),
        (
            POD,
            "          ports",
            "          env: [{name: a, value: b, valueFrom: {fieldRef: {fieldPath: a}}}]\n          ports",
        ),
        (POD, "      volumes", "      restartPolicy: Never\n      volumes"),
        (POD, "      volumes", "      terminationGracePeriodSeconds: -1\n      volumes"),
        (POD, "  selector", "  replicas: -1\n  selector"),
        (POD, "  selector", "  strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}\n  selector"),
        (POD, "  selector", "  strategy: {type: rolling}\n  selector"),
        (POD, "  selector", "  strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}\n  selector"),
        (POD, "selector: {matchLabels: {app: web}}", "selector: {}"),
        (SERVICE, "name: web,", "name: 1web,"),
        (SERVICE, "name: web,", "name: web.shop,"),
        (SERVICE, "port: 80,", "port: 0,"),
        (SERVICE, "targetPort: http}", "targetPort: 70000}"),
        (SERVICE, "targetPort: http}", "targetPort: HTTP}"),
        (SERVICE, "{name: http, port: 80, targetPort: http}", "{port: 80}, {port: 81}"),
        (SERVICE, "{name: http, port: 80,", "{name: a, port: 80}, {name: http, port: 80,"),
        (SERVICE, "{name: http, port: 80,", "{name: http, port: 81}, {name: http, port: 80,"),
        (SERVICE, "ports: [{name: http, port: 80, targetPort: http}]", "ports: []"),
        (SERVICE, "spec: {", "spec: {type: Internal, "),
        (POLICY, "operator: In", "operator: Equals"),
        (POLICY, "values: [web]", "values: []"),
        (POLICY, "operator: In, values: [web]", "operator: Exists, values: [web]"),
        (POLICY, "cidr: 10.0.0.0/8", "cidr: 10.0.0.1/8"),
        (POLICY, "cidr: 10.0.0.0/8", "cidr: everywhere"),
        (POLICY, "except: [10.1.0.0/16]", "except: [11.1.0.0/16]"),
        (POLICY, "endPort: 90", "endPort: 70"),
        (POLICY, "policyTypes: [Egress]", "policyTypes: [Outgoing]"),
        (SCALER, "minReplicas: 2", "minReplicas: 5"),
        (SCALER, "minReplicas: 2, maxReplicas: 3", "maxReplicas: 0"),
        (JOB, "restartPolicy: Never", "restartPolicy: Always"),
        (JOB, "spec: {template", "spec: {backoffLimit: -1, template"),
        (BUDGET, "maxUnavailable: 1", "maxUnavailable: 1, minAvailable: 1"),
        (BINDING, "kind: Group", "kind: People"),
        (BINDING, "{apiGroup: rbac.authorization.k8s.io, kind: Group, name", "{kind: ServiceAccount, name"),
        (ROLE, "verbs: [get]", "verbs: []"),
        (ROLE, "name: reader", "name: a/b"),
        (QUOTA, "pods: '20'", "pods: many"),
        (CONFIG, "namespace: shop}", "namespace: shop}\ndata: {'a/b': c}"),
    ],
)
def test_what_the_api_server_refuses_beyond_the_schema_is_found(check: Check, text: str, old: str, new: str) -> None:
    assert "[schema:" in said_of(check, text, old, new)


def test_a_name_that_leads_nowhere_is_found_and_one_that_may_lead_somewhere_is_not(check: Check) -> None:
    claim = "volumes: [{name: tmp, persistentVolumeClaim: {claimName: data}}]"
    assert "no PersistentVolumeClaim shop/data" in said_of(
        check, POD, "volumes: [{name: tmp, emptyDir: {sizeLimit: 16Mi}}]", claim
    )
    assert check(BINDING)[:2] == (0, "")
    assert "no Role shop/view" in said_of(check, BINDING, "kind: ClusterRole", "kind: Role")


def test_pods_of_a_workload_that_is_refused_are_not_called_missing(check: Check) -> None:
    _, out, _ = check(POD.replace("memory: 64Mi}, limits", "memory: 65Mi}, limits"), SERVICE, BUDGET)
    assert "selects no pod" not in out
    _, out, _ = check(SERVICE, BUDGET)
    assert out.count("selects no pod") == 2


def test_a_port_that_no_pod_names_may_be_open_all_the_same(check: Check) -> None:
    unnamed = POD.replace("ports: [{name: http, containerPort: 8080}]", "stdin: false").replace(
        "port: http", "port: 8080"
    )
    _, out, _ = check(unnamed, SERVICE.replace("targetPort: http", "targetPort: 8080"))
    assert "[service-port:" not in out
    assert "[probe:" not in out
    _, out, _ = check(unnamed, SERVICE)
    assert "no selected pod listens on http" in out


def test_a_digest_is_a_version(check: Check) -> None:
    assert "[image:" not in check(POD)[1]
    assert "no version" in check(POD.partition("@")[0] + "\n" + POD.partition("1" * 64)[2])[1]


@pytest.mark.parametrize(
    ("fields", "clash"),
    [
        (("zoneSize: 1m", "keepAlive: {connections: 16}"), False),
        (("keepAlive: {time: 1m}", "keepAlive: {time: 2m}"), True),
    ],
)
def test_policies_clash_only_where_they_set_the_same(check: Check, fields: tuple[str, str], *, clash: bool) -> None:
    policies = [UPSTREAM.replace("NAME", f"p{number}").replace("FIELD", field) for number, field in enumerate(fields)]
    assert ("[policy-overlap:" in check(SERVICE, *policies)[1]) == clash


# part azure
@pytest.mark.parametrize(("schedule", "is_right"), [("0 0 2 * * *", True), ("@daily", True), ("0 2 * * *", False)])
def test_a_schedule_of_cloudnativepg_has_seconds(check: Check, schedule: str, *, is_right: bool) -> None:
    assert ("[backup-schedule:" in check(BACKUP.replace("SCHEDULE", schedule))[1]) != is_right


# end azure
def test_the_kinds_that_are_supported_are_those_of_the_platform() -> None:
    kustomized: set[tuple[str, str]] = set()
    for path in ROOT.rglob("*.yaml"):
        for one in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if isinstance(one, dict) and isinstance(one.get("kind"), str) and "metadata" in one:
                kustomized.add((str(one["apiVersion"]).rpartition("/")[0], one["kind"]))
    supported = {(group, kind) for group, kinds in files.KINDS.items() for kind in kinds.split()}
    assert kustomized <= supported
