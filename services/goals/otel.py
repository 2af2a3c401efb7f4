"""Checks OpenTelemetry's variables, because its SDK reports an invalid value with a traceback or ignores it."""

import importlib.metadata
import re
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from goals.errors import ConfigurationError

_PAIR = re.compile(r"[ \t]*[^\s=,;]+[ \t]*=[^,]*")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# The SDK's own defaults, where one variable bounds another.
_QUEUE_SIZE, _BATCH_SIZE = "2048", "512"

Rule = Callable[[str], bool]


def _is_number(least: int) -> Rule:
    return lambda value: re.fullmatch(r"\+?[0-9]{1,18}", value, re.ASCII) is not None and int(value) >= least


def _is_seconds(value: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", value, re.ASCII) is not None and float(value) > 0


def _is_share(value: str) -> bool:
    return re.fullmatch(r"[01]|[01]?\.[0-9]+|1\.0*", value, re.ASCII) is not None and float(value) <= 1


def _is_one_of(*words: str) -> Rule:
    return lambda value: value.lower() in words


def _is_list_of_pairs(value: str) -> bool:
    return all(_PAIR.fullmatch(pair) and not _BROKEN_ESCAPE.search(pair) for pair in value.split(",") if pair.strip())


def _is_list_of_plugins(group: str) -> Rule:
    def is_list(value: str) -> bool:
        installed = {plugin.name for plugin in importlib.metadata.entry_points(group=group)}
        return installed.issuperset(name.strip() for name in value.split(","))

    return is_list


def _is_file(value: str) -> bool:
    return Path(value).is_file()


# Each entry: a pattern for the variable's name, the requirement as text, and the requirement as a function.
_ALWAYS: list[tuple[str, str, Rule]] = [
    ("OTEL_SDK_DISABLED", "must be true or false", _is_one_of("true", "false")),
    ("OTEL_RESOURCE_ATTRIBUTES", "must be comma-separated key=value pairs", _is_list_of_pairs),
    (
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",
        "names a detector that is not installed",
        _is_list_of_plugins("opentelemetry_resource_detector"),
    ),
    ("OTEL_PYTHON_CONTEXT", "is not installed", _is_list_of_plugins("opentelemetry_context")),
    ("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "must be true or false", _is_one_of("true", "false")),
    (
        "OTEL_(SPAN_|EVENT_|LINK_)?(ATTRIBUTE|EVENT|LINK)_(VALUE_LENGTH|COUNT)_LIMIT",
        "must be a whole number, 0 or greater",
        _is_number(0),
    ),
    (
        "OTEL_B(SP|LRP)_(SCHEDULE_DELAY|EXPORT_TIMEOUT|MAX_QUEUE_SIZE|MAX_EXPORT_BATCH_SIZE)",
        "must be a whole number, 1 or greater",
        _is_number(1),
    ),
    ("OTEL_METRIC_EXPORT_(INTERVAL|TIMEOUT)", "must be a whole number, 1 or greater", _is_number(1)),
]
_WITH_A_COLLECTOR: list[tuple[str, str, Rule]] = [
    ("OTEL_TRACES_EXPORTER", "must be otlp or none here", _is_one_of("otlp", "none")),
    (
        "OTEL_EXPORTER_OTLP_(TRACES_)?PROTOCOL",
        "must be http/protobuf, the only protocol that this service supports",
        _is_one_of("http/protobuf"),
    ),
    (
        "OTEL_EXPORTER_OTLP_(TRACES_)?COMPRESSION",
        "must be none, gzip or deflate",
        _is_one_of("none", "gzip", "deflate"),
    ),
    ("OTEL_EXPORTER_OTLP_(TRACES_)?TIMEOUT", "must be a number of seconds above 0", _is_seconds),
    ("OTEL_EXPORTER_OTLP_(TRACES_)?HEADERS", "must be comma-separated key=value pairs", _is_list_of_pairs),
    ("OTEL_EXPORTER_OTLP_(TRACES_)?(CERTIFICATE|CLIENT_KEY|CLIENT_CERTIFICATE)", "is not a file", _is_file),
    (
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_(TRACES_)?CREDENTIAL_PROVIDER",
        "is not installed",
        _is_list_of_plugins("opentelemetry_otlp_credential_provider"),
    ),
    (
        "OTEL_TRACES_SAMPLER",
        "must be a sampler of the SDK: always_on, always_off, traceidratio, or one of them as parentbased_…",
        _is_one_of(
            *(
                f"{parent}{name}"
                for parent in ("", "parentbased_")
                for name in ("always_on", "always_off", "traceidratio")
            )
        ),
    ),
    ("OTEL_TRACES_SAMPLER_ARG", "must be a number from 0 to 1", _is_share),
]


def check(environ: MutableMapping[str, str]) -> None:
    """Raise a `ConfigurationError` that names every invalid variable in one line, without its value.

    An empty variable counts as unset, as OpenTelemetry specifies. It is removed, because the SDK tries to parse some
    empty values. Variables that only matter with a collector are not checked without one: platforms set them for all
    services.
    """
    for name in [name for name, value in environ.items() if name.startswith("OTEL_") and not value.strip()]:
        del environ[name]
    rules = _ALWAYS + (_WITH_A_COLLECTOR if "OTEL_EXPORTER_OTLP_ENDPOINT" in environ else [])
    problems = [
        f"{name}: {reason}"
        for name, value in sorted(environ.items())
        for pattern, reason, holds in rules
        if re.fullmatch(pattern, name) and not holds(value.strip())
    ]
    if not problems:
        problems = [*_find_contradictions(environ)]
    if problems:
        raise ConfigurationError("; ".join(problems))


def _find_contradictions(environ: Mapping[str, str]) -> list[str]:
    queue, batch = (f"OTEL_BSP_MAX_{name}_SIZE" for name in ("QUEUE", "EXPORT_BATCH"))
    if int(environ.get(queue, _QUEUE_SIZE)) >= int(environ.get(batch, _BATCH_SIZE)):
        return []
    if queue in environ:
        return [f"{queue}: must be at least {batch}, which is {environ.get(batch, _BATCH_SIZE)}"]
    return [f"{batch}: must be at most {queue}, which is {_QUEUE_SIZE}"]


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Whether the SDK is configured to record no metrics and no traces."""
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def exports_no_traces(environ: Mapping[str, str]) -> bool:
    return environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
