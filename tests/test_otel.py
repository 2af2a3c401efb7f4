"""OpenTelemetry's variables: a bad one is one line with its name, whatever its SDK would have made of it."""

import os
import subprocess
import sys

import pytest

from goals import otel
from goals.errors import ConfigurationError

COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
BAD = [
    ("OTEL_SDK_DISABLED", "yes"),
    ("OTEL_RESOURCE_ATTRIBUTES", "production"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b=%zz"),
    ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "otel,none_such"),
    ("OTEL_PYTHON_CONTEXT", "none_such"),
    ("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "1"),
    ("OTEL_ATTRIBUTE_COUNT_LIMIT", "-1"),
    ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "many"),
    ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "1.5"),
    ("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "x"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "x"),
    ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "x"),
    ("OTEL_SPAN_EVENT_COUNT_LIMIT", "x"),
    ("OTEL_SPAN_LINK_COUNT_LIMIT", "1" * 5000),
    ("OTEL_BSP_SCHEDULE_DELAY", "0"),
    ("OTEL_BSP_EXPORT_TIMEOUT", "5s"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "x"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5000"),
    ("OTEL_BLRP_SCHEDULE_DELAY", "x"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "x"),
    ("OTEL_TRACES_EXPORTER", "zipkin"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "brotli"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "Bearer secret"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file"),
    ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/no/such/file"),
    ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "none_such"),
    ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
    ("OTEL_TRACES_SAMPLER_ARG", "10%"),
    ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named_without_itself(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: [a-z].+") as refusal:
        otel.check(COLLECTOR | {name: value})
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_every_bad_value_is_named_on_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"^OTEL_BSP_SCHEDULE_DELAY: .+; OTEL_SDK_DISABLED: [^\n]+$"):
        otel.check({"OTEL_SDK_DISABLED": "x", "OTEL_BSP_SCHEDULE_DELAY": "x"})


GOOD = {
    "OTEL_SDK_DISABLED": "False",
    "OTEL_SERVICE_NAME": "tracker",
    "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test, team=a%20b,key=a=b,",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "otel,process",
    "OTEL_PYTHON_CONTEXT": "contextvars_context",
    "OTEL_ATTRIBUTE_COUNT_LIMIT": "0",
    "OTEL_SPAN_LINK_COUNT_LIMIT": " 128 ",
    "OTEL_BSP_MAX_QUEUE_SIZE": "10",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "2.5",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x,b=c",
    "OTEL_EXPORTER_OTLP_CERTIFICATE": __file__,
    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
    "OTEL_TRACES_SAMPLER_ARG": "0.25",
    "OTEL_PROPAGATORS": "b3,tracecontext",
    "OTEL_SOME_OTHER_LANGUAGES": "variable",
}


def test_what_opentelemetry_specifies_is_taken() -> None:
    environ = COLLECTOR | GOOD
    otel.check(environ)
    assert environ == COLLECTOR | GOOD


def test_an_empty_variable_counts_as_unset() -> None:
    environ = {name: " " for name, _ in BAD} | {"GOALS_HOSTS": ""}
    otel.check(environ)
    assert environ == {"GOALS_HOSTS": ""}


def test_what_only_a_collector_needs_is_not_looked_at_without_one() -> None:
    otel.check({"OTEL_TRACES_SAMPLER": "jaeger_remote", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


@pytest.mark.parametrize(("name", "value"), [("OTEL_BSP_MAX_QUEUE_SIZE", "10"), ("OTEL_PYTHON_CONTEXT", "none_such")])
def test_a_command_ends_with_that_one_line(name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "goals", "serve"],
        check=False,
        env={**os.environ, **COLLECTOR, "DB_HOST": "127.0.0.1", name: value},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {name}: ")


@pytest.mark.parametrize("name", ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"])
def test_a_limit_that_another_contradicts_is_named_with_it(name: str) -> None:
    value = {"OTEL_BSP_MAX_QUEUE_SIZE": "511", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2049"}[name]
    with pytest.raises(ConfigurationError, match=f"^{name}: .+ OTEL_BSP_MAX_"):
        otel.check({name: value})
