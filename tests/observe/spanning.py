"""What the tests of spans share: providers in memory, and runs and producers worth watching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from perdure.core.records import AgentTaskSpec, RunManifest
from perdure.observe.otel import Semconv, instrument_opentelemetry, uninstrument_opentelemetry

MANIFEST = RunManifest("demo", AgentTaskSpec("t", "Answer"), scenario_id="research")


class Watched:
    """What was emitted: spans in the order of their ends, and the sums of the metrics."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider(metric_readers=[self.reader])

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def span(self, name: str) -> ReadableSpan:
        [found] = [span for span in self.spans if span.name == name]
        return found

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name: str) -> float:
        """Return the sum of a counter, or of what a histogram was given."""
        return sum(getattr(point, "value", getattr(point, "sum", 0)) for point in self.points(name))


@contextmanager
def watching(semconv: Semconv = "latest") -> Iterator[Watched]:
    watched = Watched()
    instrument_opentelemetry(
        tracer_provider=watched.tracers, meter_provider=watched.meters, semconv=semconv
    )
    try:
        yield watched
    finally:
        uninstrument_opentelemetry()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context(span: ReadableSpan) -> Any:
    found = span.get_span_context()
    assert found is not None
    return found
