"""OpenTelemetry: spans and metrics of runs, turns, steps, model calls and tools, when asked for."""

from __future__ import annotations

from typing import get_args

from perdure.core.observing import watch_with
from perdure.errors import UsageError
from perdure.observe.otel.conventions import Semconv

try:
    from opentelemetry import metrics, trace
except ImportError as error:
    raise ImportError("spans need OpenTelemetry: pip install 'perdure[otel]'") from error

from perdure.observe.otel.meters import Meters
from perdure.observe.otel.spans import OpenTelemetryObserver

_SCOPE = "perdure"


def instrument_opentelemetry(
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
    semconv: Semconv = "latest",
) -> None:
    """Emit spans and metrics of all that this process does durably from now on.

    Without providers the global ones are used. `semconv` chooses the names of what is GenAI's:
    the current ones ("latest"), those that many tools still read ("1.36"), or "both".

    An attempt at a run is a span, below it are its steps, model calls and tools; what replays has
    none, and counts no tokens. An attempt that goes on after another one is in the same trace and
    links to it: for this, each attempt keeps its `traceparent` in the store as the event
    `perdure.trace.<attempt>`, one small commit. No prompt, answer, argument, result or error
    message leaves. A second call replaces the first. Raises UsageError for an unknown `semconv`,
    and ImportError without `perdure[otel]`.
    """
    if semconv not in get_args(Semconv):
        known = ", ".join(map(repr, get_args(Semconv)))
        raise UsageError(f"semconv must be one of {known}, it is {semconv!r:.40}")
    tracers = tracer_provider or trace.get_tracer_provider()
    meters = meter_provider or metrics.get_meter_provider()
    watch_with(
        OpenTelemetryObserver(
            tracers.get_tracer(_SCOPE), Meters(meters.get_meter(_SCOPE), semconv), semconv
        )
    )


def uninstrument_opentelemetry() -> None:
    """Emit nothing of what begins from now on."""
    watch_with(None)


__all__ = ["Semconv", "instrument_opentelemetry", "uninstrument_opentelemetry"]
