"""Validate objects like the API server, against the pinned Kubernetes version and the CRDs of the pinned operators.

Unknown fields are errors, as with `kubectl apply --validate=strict`: a misspelt field would be silently dropped.
The CRDs' CEL rules and the operators' webhooks are not run; only a cluster runs them.
"""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from tools.lint.manifests import Manifest, read

KUBERNETES = "1.36"
"""The platform's Kubernetes version, on AKS and in kind."""

CLUSTER_WIDE = frozenset(
    {
        "Namespace",
        "StorageClass",
        "ClusterRole",
        "ClusterRoleBinding",
        "PriorityClass",
        "GatewayClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
)
"""The cluster-scoped built-in kinds that are used here."""

_IGNORED = frozenset({"description", "nullable", "format", "example", "externalDocs", "title"})
_TEXT = {"type": "string"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_METADATA = {"name": _TEXT, "namespace": _TEXT, "labels": _TEXTS, "annotations": _TEXTS}
_OBJECT = {"apiVersion": _TEXT, "kind": _TEXT, "metadata": {"type": "object", "properties": _METADATA}}


class Schemas:
    """The schemas of one folder of CRDs; each is parsed when its first object is checked."""

    def __init__(self, folder: Path) -> None:
        """Read the files; raise `FileNotFoundError` if the folder contains no CRDs."""
        self._texts = {file: file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.yaml"))}
        self._seen: dict[str, list[str]] = {}
        if not self._texts:
            raise FileNotFoundError(f"{folder} contains no CRDs: run `make crds`, or set CRDS to another folder")

    def problems(self, manifest: Manifest) -> list[str]:
        """Return one line for each problem of an object; the result is cached."""
        identity = json.dumps(manifest, sort_keys=True)
        if identity not in self._seen:
            self._seen[identity] = list(self._problems(manifest))
        return self._seen[identity]

    def is_sound(self, manifest: Manifest) -> bool:
        """Return whether an object matches the schema of its kind, ignoring its namespace."""
        return not any(problem for problem in self.problems(manifest) if not problem.startswith("metadata.namespace"))

    def newer(self, manifest: Manifest) -> str:
        """Return the stable version that is served in addition to a custom resource's alpha or beta, if any."""
        group, _, version = str(manifest.get("apiVersion")).rpartition("/")
        definition = self._definition(group, str(manifest.get("kind"))) if re.search("alpha|beta", version) else None
        served = [one["name"] for one in (definition or {}).get("versions", ()) if one["served"]]
        return next((f"{group}/{one}" for one in served if re.fullmatch(r"v\d+", one)), "")

    def _problems(self, manifest: Manifest) -> Iterator[str]:
        version, kind = manifest.get("apiVersion"), manifest.get("kind")
        if not isinstance(version, str) or not isinstance(kind, str):
            yield "apiVersion and kind are missing"
            return
        group = version.rpartition("/")[0]
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            cluster_wide = kind in CLUSTER_WIDE
        except kubernetes_validate.ValidationError as error:
            yield f"{_path(error.path)}{error.message}"
            return
        except kubernetes_validate.SchemaNotFoundError:
            definition = self._definition(group, kind)
            if definition is None:
                yield f"no such kind in Kubernetes {KUBERNETES} or the CRDs: {version} {kind}"
                return
            served = [one["name"] for one in definition["versions"] if one["served"]]
            if version.rpartition("/")[2] not in served:
                yield f"{version} is not served; use {group}/{' or '.join(served)}"
                return
            validator = self._validator(version, kind)
            for mistake in validator.iter_errors(_filled(manifest, validator.schema)):
                yield f"{_path(mistake.absolute_path)}{mistake.message[:300]}"
            cluster_wide = definition["scope"] == "Cluster"
        namespace = (manifest.get("metadata") or {}).get("namespace")
        if cluster_wide and namespace:
            yield f"metadata.namespace: {kind} is cluster-scoped"
        if not cluster_wide and not namespace:
            yield "metadata.namespace is missing: the current namespace of kubectl would be used"

    @functools.cache  # noqa: B019  one instance for each run
    def _validator(self, version: str, kind: str) -> jsonschema.Draft202012Validator:
        group, _, name = version.rpartition("/")
        versions = (self._definition(group, kind) or {})["versions"]
        strict = _strict(next(one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == name))
        return jsonschema.Draft202012Validator({**strict, "properties": {**strict["properties"], **_OBJECT}})

    @functools.cache  # noqa: B019  one instance for each run
    def _definition(self, group: str, kind: str) -> dict[str, Any] | None:
        """Return the `spec` of a CRD; the search in the text avoids parsing 13 MB of others."""
        wanted = re.compile(rf"^\s+kind: {re.escape(kind)}$", re.MULTILINE)
        for text in self._texts.values():
            if f"group: {group}\n" not in text or not wanted.search(text):
                continue
            for spec in (one["spec"] for one in read(text) if one.get("kind") == "CustomResourceDefinition"):
                if (spec["group"], spec["names"]["kind"]) == (group, kind):
                    return dict(spec)
        return None


def _strict(schema: dict[str, Any], *, closed: bool = True) -> dict[str, Any]:
    """Return a CRD's schema as plain JSON Schema that rejects unknown fields.

    Fields that Kubernetes preserves are allowed. Inside allOf, anyOf and oneOf all fields are allowed, because each
    of their parts lists only some of the fields.
    """
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key.startswith("x-kubernetes-") or key in _IGNORED:
            continue
        if key == "properties":
            result[key] = {name: _strict(one, closed=closed) for name, one in value.items()}
        elif key in {"items", "additionalProperties", "not"} and isinstance(value, dict):
            result[key] = _strict(value, closed=closed)
        elif key in {"allOf", "anyOf", "oneOf"}:
            result[key] = [_strict(one, closed=False) for one in value]
        elif not (key in {"exclusiveMinimum", "exclusiveMaximum"} and isinstance(value, bool)):
            result[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable") and "type" in result:
        result["type"] = [result["type"], "null"]
    keeps = schema.get("x-kubernetes-preserve-unknown-fields")
    if closed and "properties" in result and "additionalProperties" not in result and not keeps:
        result["additionalProperties"] = False
    return result


def _filled(value: Any, schema: Any) -> Any:
    """Return a value with the defaults that the API server sets before validation."""
    if isinstance(value, list):
        return [_filled(one, schema.get("items", {})) for one in value]
    if not isinstance(value, dict):
        return value
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    defaults = {key: one["default"] for key, one in known.items() if "default" in one}
    inner = others if isinstance(others, dict) else {}
    return {key: _filled(one, known.get(key, inner)) for key, one in {**defaults, **value}.items()}


def _path(parts: Any) -> str:
    text = ".".join(str(part) for part in parts)
    return f"{text}: " if text else ""
