"""The API as an OpenAPI 3.1 document, generated from the schemas that validate requests."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from goals import __version__
from goals.schemas import GoalBody, GoalChange, GoalListOut, GoalOut, GoalPath, KeyHeader, ListQuery, Problem


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameters(shape: type[BaseModel], place: str) -> list[dict[str, Any]]:
    """Return the fields of a model as parameters in `place`: query, path or header."""
    schema = shape.model_json_schema()
    parameters = []
    for name, field in schema["properties"].items():
        # An optional parameter may be omitted, but cannot be null.
        rule = {key: value for key, value in field.get("anyOf", [field])[0].items() if key not in {"title", "default"}}
        if "default" in field and field["default"] is not None:
            rule["default"] = field["default"]
        parameters.append({"name": name, "in": place, "required": name in schema.get("required", ()), "schema": rule})
    return parameters


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


def _answer(description: str, schema: str, **headers: str) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()},
        "content": {"application/json": {"schema": _reference(schema)}},
    }


_PROBLEMS = {
    400: "Malformed request: invalid JSON or encoding.",
    403: "The request comes from another site.",
    404: "No such goal.",
    408: "The body did not arrive in time.",
    410: "The goal that was added with this idempotency key has been removed since.",
    412: "The goal has changed: `If-Match` does not match.",
    413: "The body is too large.",
    414: "The URL is too long.",
    415: "The body is not JSON in UTF-8.",
    422: "Invalid fields; `errors` names the first of them.",
    431: "The header fields are too large.",
    503: "Overloaded, or the database is unavailable. Retry after the given time; reusing the idempotency key is safe.",
}


def _problems(*statuses: int) -> dict[str, Any]:
    return {
        str(status): {
            "description": _PROBLEMS[status],
            "content": {"application/problem+json": {"schema": _reference("Problem")}},
        }
        for status in sorted(statuses)
    }


def _body(schema: str) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": _reference(schema)}}}


_ANY_PROBLEMS = (400, 408, 413, 414, 422, 431, 503)  # a body may come with any method
_BODY_PROBLEMS = (*_ANY_PROBLEMS, 403, 415)
_UNCHANGED = {"304": {"description": "Not modified: `If-None-Match` still matches."}}
_ETAG = "Identifies this representation, for `If-None-Match` and `If-Match`."
_READ = {
    "ETag": f"{_ETAG} Omitted if `Cache-Status` is present.",
    "Cache-Status": "`goals-standby; hit` (RFC 9211): the primary database is unavailable, and a standby answered. "
    "The response has every acknowledged change, and may have changes that will be undone.",
}
_IF_NONE_MATCH = _header(
    "If-None-Match", "ETags that the client has; the response is 304 if one of them still matches."
)
_IF_MATCH = _header("If-Match", "Change or remove the goal only if it still has one of these ETags.")
_GOAL_LINK = {
    operation: {"operationId": operation, "parameters": {"goal_id": "$response.body#/id"}}
    for operation in ("getGoal", "patchGoal", "deleteGoal")
}


def _describe() -> dict[str, Any]:
    _, schemas = models_json_schema(
        [
            (GoalBody, "validation"),
            (GoalChange, "validation"),
            (GoalOut, "serialization"),
            (GoalListOut, "serialization"),
            (Problem, "serialization"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "goals",
            "version": __version__,
            "summary": "A goal tracker.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            "/api/v1/goals": {
                "get": {
                    "operationId": "getGoals",
                    "summary": "Goals, newest first; the `Link` header with rel=next leads to older ones.",
                    "parameters": [*_parameters(ListQuery, "query"), _IF_NONE_MATCH],
                    "responses": {
                        "200": _answer("A page of goals.", "GoalListOut", Link="The next page.", **_READ),
                        **_UNCHANGED,
                        **_problems(*_ANY_PROBLEMS),
                    },
                },
                "post": {
                    "operationId": "postGoal",
                    "summary": "Add a goal; a repeat with the same key returns the goal of the first request.",
                    "parameters": _parameters(KeyHeader, "header"),
                    "requestBody": _body("GoalBody"),
                    "responses": {
                        "201": {
                            **_answer("The goal.", "GoalOut", ETag=_ETAG, Location="Its address."),
                            "links": _GOAL_LINK,
                        },
                        **_problems(410, *_BODY_PROBLEMS),
                    },
                },
            },
            "/api/v1/goals/{goal_id}": {
                "parameters": _parameters(GoalPath, "path"),
                "get": {
                    "operationId": "getGoal",
                    "summary": "A goal.",
                    "parameters": [_IF_NONE_MATCH],
                    "responses": {
                        "200": _answer("The goal.", "GoalOut", **_READ),
                        **_UNCHANGED,
                        **_problems(404, *_ANY_PROBLEMS),
                    },
                },
                "patch": {
                    "operationId": "patchGoal",
                    "summary": "Change the fields that are given.",
                    "parameters": [_IF_MATCH],
                    "requestBody": _body("GoalChange"),
                    "responses": {
                        "200": _answer("The changed goal.", "GoalOut", ETag=_ETAG),
                        **_problems(404, 412, *_BODY_PROBLEMS),
                    },
                },
                "delete": {
                    "operationId": "deleteGoal",
                    "summary": "Remove a goal.",
                    "parameters": [_IF_MATCH],
                    "responses": {
                        "204": {"description": "The goal has been removed."},
                        **_problems(403, 404, 412, *_ANY_PROBLEMS),
                    },
                },
            },
        },
        "components": {"schemas": schemas["$defs"]},
    }


DOCUMENT = _describe()
