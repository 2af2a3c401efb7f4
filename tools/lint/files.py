"""Read a user's files. Anything that Kubernetes might read differently is reported, and never guessed."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tools.lint.manifests import Manifest

KINDS = {
    "admissionregistration.k8s.io": "ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding",
    "": "ConfigMap Namespace ResourceQuota Secret Service ServiceAccount",
    "apps": "Deployment",
    # part argocd
    "argoproj.io": "AppProject Application",
    # end argocd
    "autoscaling": "HorizontalPodAutoscaler",
    # part azure
    "barmancloud.cnpg.io": "ObjectStore",
    # end azure
    "batch": "CronJob Job",
    "cert-manager.io": "Certificate ClusterIssuer",
    "external-secrets.io": "ExternalSecret SecretStore",
    "gateway.networking.k8s.io": "BackendTLSPolicy Gateway HTTPRoute ReferenceGrant",
    "gateway.nginx.org": (
        "ClientSettingsPolicy NginxProxy ProxySettingsPolicy RateLimitPolicy SnippetsFilter UpstreamSettingsPolicy"
    ),
    "generators.external-secrets.io": "Password",
    "monitoring.coreos.com": "AlertmanagerConfig PodMonitor PrometheusRule ServiceMonitor",
    "networking.k8s.io": "NetworkPolicy",
    "policy": "PodDisruptionBudget",
    "postgresql.cnpg.io": "Backup Cluster ImageCatalog Publication ScheduledBackup Subscription",
    "rbac.authorization.k8s.io": "Role RoleBinding",
    "storage.k8s.io": "StorageClass",
}
"""The kinds of the platform, by API group; the rules do not cover other kinds."""

_READ_IN_TWO_WAYS = re.compile(
    r"""
    [yYnN]                                           # some parsers read a boolean
    | [-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?   # some parsers read 12:30 as 750
    | [-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+ # 1e3
    | [-+]?[0-9]+_[0-9_]*                            # 1_000
    | 0o[0-7]+ | 0[0-9]*[89][0-9]*                   # octal or decimal
    | [-+]?\.(inf|Inf|INF) | \.(nan|NaN|NAN)         # not valid in JSON
    """,
    re.VERBOSE,
)
_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))


class _Loader(yaml.CSafeLoader):
    """Rejects what Kubernetes rejects, and what parsers of YAML 1.1 and 1.2 read differently."""


def _refuse(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _read_scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if not node.style and _READ_IN_TWO_WAYS.fullmatch(node.value):
        raise _refuse(node, f"{node.value} is ambiguous in YAML: put it in quotes, or write it out")
    return yaml.CSafeLoader.yaml_constructors[node.tag](loader, node)


def _read_time(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _read_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen = set()
    for key, _ in node.value:
        if key.tag not in {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}:
            raise _refuse(key, f"the key {getattr(key, 'value', '')!s:.40} is not a string: put it in quotes")
        if key.value in seen:
            raise _refuse(key, f"duplicate key {key.value}")
        seen.add(key.value)
    loader.flatten_mapping(node)
    # A null means that the field is not set.
    given = loader.construct_mapping(node, deep=True)
    return {str(key): value for key, value in given.items() if value is not None}


def _read_list(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return list(loader.construct_sequence(node, deep=True))


_Loader.yaml_constructors = {
    **dict.fromkeys(_TAGS, _read_scalar),
    "tag:yaml.org,2002:timestamp": _read_time,
    "tag:yaml.org,2002:map": _read_mapping,
    "tag:yaml.org,2002:seq": _read_list,
    None: yaml.CSafeLoader.yaml_constructors[None],
}


def read_file(file: Path) -> list[Manifest]:
    """Return the objects of a file; raise `ValueError` with one line that names the file and what is not supported."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        documents = list(yaml.load_all(text, _Loader))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = f"{error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{file}:{line or ' '}{' '.join(str(error.problem).split())}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{file}: is nested too deeply") from None
    objects = [one for one in documents if one is not None]
    if not objects:
        raise ValueError(f"{file}: contains no object")
    for number, one in enumerate(objects, 1):
        if problem := _find_unsupported(one):
            raise ValueError(f"{file}: object {number}: {problem}")
    return objects


def _find_unsupported(one: Any) -> str:
    if not isinstance(one, dict):
        return f"is a {'list' if isinstance(one, list) else 'single value'}, not an object"
    version, kind, metadata = one.get("apiVersion"), one.get("kind"), one.get("metadata")
    if not isinstance(version, str) or not isinstance(kind, str):
        return "has no apiVersion and kind"
    group = version.rpartition("/")[0]
    if kind not in KINDS.get(group, "").split():
        return f"{version} {kind} is not a kind that the platform uses, so no rules cover it"
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str) or not metadata["name"]:
        return f"{kind} has no metadata.name (a generateName is not supported)"
    return ""


def read_files(files: Iterable[Path]) -> dict[str, list[Manifest]]:
    """The objects by file; a `ValueError` has a line for each file that cannot be checked."""
    found: dict[str, list[Manifest]] = {}
    problems = []
    for file in files:
        try:
            found[str(file)] = read_file(file)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\nerror: ".join(problems))
    return found
