"""Exports spans of requests and statements to a collector; imported only if one is configured."""

import logging
import threading
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

from goals.limits import Limits

# One log line for each lost batch, and none for each attempt to send it.
logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.ERROR)


class Traces:
    """Exports spans over OTLP (HTTP, protobuf), in batches from its own thread: no request waits for it.

    `endpoint` is the collector's base URL. OpenTelemetry reads headers, certificates, timeouts and the sampler from its
    own variables (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, …).
    """

    def __init__(self, endpoint: str, resource: Resource, version: str, limits: Limits) -> None:
        self._limits = limits
        # Nothing global: by default, the SDK would record metrics of itself with a provider from other variables.
        unmeasured = NoOpMeterProvider()
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False, meter_provider=unmeasured)
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", meter_provider=unmeasured)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter, meter_provider=unmeasured))
        self.tracer = self._provider.get_tracer("goals", version)

    def record_statement(
        self, namespace: str, operation: str, collection: str | None, error: str | None, seconds: float, text: str
    ) -> SpanContext:
        """Add the span of a statement that has just ended; `text` has placeholders instead of values."""
        attributes = {
            "db.system.name": "postgresql",
            "db.namespace": namespace,
            "db.operation.name": operation,
            "db.query.text": text,
        }
        if collection is not None:
            attributes["db.collection.name"] = collection
        ended = time.time_ns()
        span = self.tracer.start_span(
            operation if collection is None else f"{operation} {collection}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=ended - round(seconds * 1e9),
        )
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)
        return span.get_span_context()

    def record_add(self, seconds: float, statement: SpanContext) -> None:
        """Add the span of an add that a shared statement has just committed."""
        ended = time.time_ns()
        links = [Link(statement)]
        self.tracer.start_span("add goal", links=links, start_time=ended - round(seconds * 1e9)).end(ended)

    def close(self) -> None:
        """Export the remaining spans within `traces_flush`; after that, the exporter's thread ends with the process."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(self._limits.traces_flush)
        if closing.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the library's own omission
