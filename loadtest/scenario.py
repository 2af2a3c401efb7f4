"""Scenarios: the load, its requests and their checks, read from TOML; a one-line message says why a file is invalid."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import quote, urlencode, urlsplit

from pydantic import Field, JsonValue, StringConstraints, TypeAdapter, ValidationError, field_validator, model_validator

from loadtest.checks import parse_check
from loadtest.executors import Duration, Load, Open, Span, Strict
from loadtest.thresholds import Threshold, parse_threshold

FOLDER = Path(__file__).resolve().parent / "scenarios"

BUILT_IN = frozenset({"uuid", "user", "iteration"})
"""Variables of every iteration: a random UUID (version 4), the number of the user, and the number of its iteration."""

_SOURCE = re.compile(r"(?P<source>body|header) (?P<what>.+)")
_ODD = re.compile(r"[^!-~]")
_FRAMING = frozenset({"content-length", "transfer-encoding"})
_VARIABLE = re.compile(r"\$\{(\w+)\}", re.ASCII)


class ScenarioError(ValueError):
    """A scenario or target that cannot be used; the message gives the reason in one line."""


class Target(NamedTuple):
    """The parts of the base URL."""

    scheme: str
    host: str
    port: int
    authority: str
    path: str

    @classmethod
    def parse(cls, url: str | None) -> Self:
        if not url:
            raise ScenarioError("there is no target; set it with --host, such as --host http://127.0.0.1:8080")
        # First of all: `urlsplit` silently drops tabs and line ends.
        if odd := _ODD.search(url):
            raise ScenarioError(
                f"the target {url!r} contains {odd[0]!r}; a URL may only contain visible ASCII: percent-encode the "
                "path, and write the host as in DNS (xn--...)"
            )
        try:
            parts = urlsplit(url)
            usual = {"http": 80, "https": 443}.get(parts.scheme)
            port = usual if parts.port is None else parts.port
        except ValueError as error:
            raise ScenarioError(f"the target `{url}` is not a URL: {error}") from None
        if not parts.hostname or not usual or not port or parts.query or parts.fragment or "@" in parts.netloc:
            raise ScenarioError(f"the target `{url}` is not a base URL; write http://host:port or https://host/path")
        return cls(parts.scheme, parts.hostname, port, parts.netloc, parts.path)


class Request(NamedTuple):
    """A request with all its values filled in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


def add_header(headers: dict[str, str], name: str, value: str) -> None:
    """Set a header unless it is already set, in any case (RFC 9110, 5.1)."""
    if name.lower() not in {given.lower() for given in headers}:
        headers[name] = value


class Source(NamedTuple):
    """The source of a value: a header by name, or a pattern for the body."""

    header: str | None
    pattern: re.Pattern[str] | None


Text = Annotated[str, StringConstraints(pattern=r"^[^\r\n]*$")]
Name = Annotated[str, StringConstraints(pattern=r"^[^\r\n{}]+$", max_length=100)]


class Step(Strict):
    """One request and the checks of its response. `${name}` in path, headers, form, json and body is filled in.

    With `attempts` above 1, the same request is sent again while there is no response or a status of 500 or above, as
    if a person pressed the button again. The pause before it grows, or is the one in `Retry-After`. `journal` names
    parts of the response for the journal: a header, or everything that a pattern finds in the body.
    """

    name: Name = ""
    method: Literal["GET", "POST", "PATCH", "DELETE"] = "GET"
    path: Annotated[Text, StringConstraints(pattern=r"^(/[!-~]*)?$")]
    headers: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$")], Text] = Field(default_factory=dict)
    form: dict[str, str] | None = None
    json_: dict[str, JsonValue] | None = Field(None, alias="json")
    body: str | None = None
    checks: dict[Name, str] = Field(default_factory=dict)
    save: dict[Annotated[str, StringConstraints(pattern=r"^[a-z_]+$")], str] = Field(default_factory=dict)
    journal: dict[Annotated[str, StringConstraints(pattern=r"^[a-z_]+$")], str] = Field(default_factory=dict)
    attempts: Annotated[int, Field(ge=1, le=100)] = 1

    @field_validator("headers")
    @classmethod
    def _headers(cls, headers: dict[str, str]) -> dict[str, str]:
        seen: dict[str, str] = {}
        for name in headers:
            if name.lower() in _FRAMING:
                raise ValueError(f"`{name}` cannot be set: it is derived from the body")
            if (other := seen.setdefault(name.lower(), name)) != name:
                raise ValueError(f"`{other}` and `{name}` are the same header: header names are case-insensitive")
        return headers

    @field_validator("json_", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("JSON has no dates, times, `nan` or `inf`; write dates and times as text") from None
        return value

    @field_validator("checks")
    @classmethod
    def _check(cls, checks: dict[str, str]) -> dict[str, str]:
        for text in checks.values():
            parse_check(text)
        return checks

    @field_validator("save")
    @classmethod
    def _names(cls, save: dict[str, str]) -> dict[str, str]:
        for name in save.keys() & BUILT_IN:
            raise ValueError(f"`{name}` is built into every iteration and cannot be saved; choose another name")
        return save

    @field_validator("save", "journal")
    @classmethod
    def _sources(cls, sources: dict[str, str]) -> dict[str, str]:
        for text in sources.values():
            parse_source(text)
        return sources

    @model_validator(mode="after")
    def _body(self) -> Self:
        bodies = [body for body in (self.form, self.json_, self.body) if body is not None]
        if len(bodies) > 1:
            raise ValueError("a step may only have one of `form`, `json` and `body`")
        if bodies and self.method in {"GET", "DELETE"}:
            raise ValueError(f"a {self.method} cannot have a body")
        return self

    @property
    def label(self) -> str:
        """The name under which the step is measured."""
        return self.name or f"{self.method} {self.path or '/'}"

    @property
    def variables(self) -> frozenset[str]:
        texts = [self.path, *self.headers.values(), self.body or ""]
        texts += [json.dumps(body, ensure_ascii=False) for body in (self.form, self.json_) if body is not None]
        return frozenset(name for text in texts for name in _VARIABLE.findall(text))

    def render(self, target: Target, values: Mapping[str, str]) -> Request:
        """Return the request with its values filled in, each encoded for its place."""
        quoted = {name: quote(value, safe="") for name, value in values.items()}
        headers = {name: _fill(text, values) for name, text in self.headers.items()}
        body = b""
        if self.form is not None:
            body = urlencode({name: _fill(text, values) for name, text in self.form.items()}).encode()
            add_header(headers, "Content-Type", "application/x-www-form-urlencoded")
        elif self.json_ is not None:
            body = json.dumps(_fill_json(self.json_, values)).encode()
            add_header(headers, "Content-Type", "application/json")
        elif self.body is not None:
            body = _fill(self.body, values).encode()
        path = f"{target.path.rstrip('/')}{_fill(self.path, quoted)}" if self.path else target.path
        return Request(self.method, path or "/", headers, body)


class Task(Strict):
    """Steps that belong together; an iteration performs one task, chosen by weight."""

    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    step: Annotated[list[Step], Field(min_length=1)]

    @model_validator(mode="after")
    def _variables(self) -> Self:
        known = set(BUILT_IN)
        for step in self.step:
            if unknown := step.variables - known:
                raise ValueError(f"`${{{min(unknown)}}}` in step `{step.label}` is not saved by an earlier step")
            known.update(step.save)
        return self


class Condition(Strict):
    """A threshold, as plain text or with k6's options."""

    threshold: str
    abort_on_fail: bool = Field(default=False, alias="abortOnFail")
    delay_abort: Span = Field(default=0.0, alias="delayAbortEval")

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return {"threshold": value} if isinstance(value, str) else value


class Scenario(Strict):
    """A scenario's file."""

    description: str
    load: Load
    task: Annotated[list[Task], Field(min_length=1)]
    timeout: Duration = 30.0
    pause: Duration | None = None
    """Average think time after each iteration; it varies from half of this to one and a half times."""
    objectives: bool = True
    """Use the thresholds of the service level objectives for metrics without a threshold in the scenario."""
    thresholds: dict[str, list[Condition]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names(self) -> Self:
        steps = [step for task in self.task for step in task.step]
        methods: dict[str, str] = {}
        for step in steps:
            if methods.setdefault(step.label, step.method) != step.method:
                raise ValueError(f"two steps with different methods have the name `{step.label}`")
        known = {
            "name": set(methods),
            "check": {name for step in steps for name in step.checks},
            "method": set(methods.values()),
            "expected_response": {"true", "false"},
        }
        for threshold in self.parse_thresholds():
            for tag, value in threshold.tags.items():
                if value not in known[tag]:
                    raise ValueError(f"`{threshold.selector}`: no step of this scenario has the {tag} `{value}`")
        if self.load.seconds < 1:
            raise ValueError("the load lasts less than a second")
        if self.pause and isinstance(self.load, Open):
            raise ValueError("`pause` is only for closed loops; arrivals have a rate")
        return self

    def parse_thresholds(self) -> list[Threshold]:
        return _parse_thresholds(self.thresholds)


def _parse_thresholds(thresholds: Mapping[str, list[Condition]]) -> list[Threshold]:
    return [
        parse_threshold(selector, condition.threshold, abort=condition.abort_on_fail, delay=condition.delay_abort)
        for selector, conditions in thresholds.items()
        for condition in conditions
    ]


_CONDITIONS: TypeAdapter[dict[str, list[Condition]]] = TypeAdapter(dict[str, list[Condition]])


def parse_conditions(content: Mapping[type, Mapping[str, Any]]) -> list[Threshold]:
    """Parse the thresholds of classes, written as in a scenario; raise a `ScenarioError` that names the class."""
    found: list[Threshold] = []
    for owner, thresholds in content.items():
        try:
            found += _parse_thresholds(_CONDITIONS.validate_python(dict(thresholds)))
        except ValidationError as error:
            raise ScenarioError(f"{owner.__name__}.thresholds: {_explain(error)}") from None
        except ValueError as error:
            raise ScenarioError(f"{owner.__name__}.thresholds: {error}") from None
    return [threshold for place, threshold in enumerate(found) if threshold not in found[:place]]  # those inherited


def parse_source(text: str) -> Source:
    """Read `header NAME`, or `body REGULAR-EXPRESSION` whose one group is the value."""
    match = _SOURCE.fullmatch(text)
    if not match:
        raise ValueError(f"`{text}` is not a source; write `header NAME` or `body REGULAR-EXPRESSION`")
    if match["source"] == "header":
        return Source(match["what"], None)
    try:
        pattern = re.compile(match["what"])
    except re.error as error:
        raise ValueError(f"`{match['what']}` is not a regular expression: {error}") from None
    if pattern.groups != 1:
        raise ValueError(f"`{match['what']}` needs exactly one group, which is the value to save")
    return Source(None, pattern)


def list_scenarios() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def read_scenario(name: str, *, users: int | None = None, seconds: float | None = None) -> Scenario:
    """Read a scenario by the name of a file in `scenarios/`, or by the path of another file.

    `users` and `seconds` replace the scenario's values if its executor has them; otherwise, or if the file is invalid,
    a `ScenarioError` is raised.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        known = ", ".join(list_scenarios())
        raise ScenarioError(
            f"there is no scenario `{name}`; choose one of {known}, or the path of a .toml file"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path}: {error}") from None
    load = content.get("load")
    if isinstance(load, dict):
        for option, key, value in (("-u", "vus", users), ("-t", "duration", seconds)):
            if value is not None and key not in load:
                raise ScenarioError(f"{option} cannot be used with `{name}`: its load has no `{key}`")
            if value is not None:
                load[key] = f"{value}s" if key == "duration" else value
    try:
        return Scenario.model_validate(content)
    except ValidationError as error:
        raise ScenarioError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    # Report an unknown key first: a missing key is often only misspelt.
    errors = sorted(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"])
    message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: values[match[1]], text) if "${" in text else text


def _fill_json(value: Any, values: Mapping[str, str]) -> Any:
    match value:
        case str():
            return _fill(value, values)
        case dict():
            return {name: _fill_json(item, values) for name, item in value.items()}
        case list():
            return [_fill_json(item, values) for item in value]
    return value
