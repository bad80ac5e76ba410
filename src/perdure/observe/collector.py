"""Collectors: sinks that keep what may leave of each event, in order."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from perdure.core.records import JsonValue
from perdure.observe.credentials import mask_text
from perdure.observe.deltas import SanitizedStream, delta_of
from perdure.observe.rules import is_on
from perdure.observe.sanitize import DELTAS_WITH, sanitize_event
from perdure.observe.telemetry import RuntimeTelemetryOptions, telemetry_log

logger = logging.getLogger("perdure.observe")

_OPENINGS: Final = ("session_created", "session_resumed")


class RuntimeStreamEventSummary(NamedTuple):
    """What a stream came to. `final_text` is empty unless the options let deltas out."""

    event_count: int
    event_counts_by_type: Mapping[str, int]
    first_session_id: str | None
    final_status: str | None
    final_reason: str | None
    final_text: str


class RuntimeEventCollector:
    """Keeps the events of an agent task as they may leave; hand `on_event` to the task.

    `events` are the newest `events_max` (None: all). An event that cannot be sanitised is kept
    as its type and `sanitizeError`, so `on_event` never raises.
    """

    def __init__(
        self, options: RuntimeTelemetryOptions | None = None, *, events_max: int | None = None
    ) -> None:
        self.options = options or telemetry_log()
        self._events: deque[dict[str, JsonValue]] = deque(maxlen=events_max)

    @property
    def events(self) -> list[dict[str, JsonValue]]:
        return list(self._events)

    def on_event(self, event: object) -> None:
        """Keep what may leave of `event`."""
        self._events.append(self._sanitized(event))

    def _sanitized(self, event: object) -> dict[str, JsonValue]:
        try:
            return sanitize_event(event, self.options)
        except Exception as error:
            logger.warning("an event could not be sanitised: %s", type(error).__qualname__)
            kind = getattr(event, "type", None)
            return {"type": kind if isinstance(kind, str) else "unknown", "sanitizeError": True}


class RuntimeStreamEventCollector(RuntimeEventCollector):
    """Keeps the events of a stream as they may leave, and sums them up.

    The summary covers all events, also those that are no longer kept. Where deltas are kept with
    their text, what looks like a credential is masked also where several of them share it.
    """

    def __init__(
        self, options: RuntimeTelemetryOptions | None = None, *, events_max: int | None = None
    ) -> None:
        super().__init__(options, events_max=events_max)
        self._counts: Counter[str] = Counter()
        self._first_session_id: str | None = None
        self._final: dict[str, JsonValue] = {}
        self._texts: list[str] = []
        self._stream = SanitizedStream(self.options)

    @property
    def events(self) -> list[dict[str, JsonValue]]:
        most = self._events.maxlen
        kept = [*self._events, *self._stream.waiting]
        return kept if most is None else kept[max(0, len(kept) - most) :]

    def on_event(self, event: object) -> None:
        """Keep what may leave of `event`, and count it."""
        sanitized = self._sanitized(event)
        kind = str(sanitized["type"])
        self._events.extend(self._stream.take(event, sanitized))
        self._counts[kind] += 1
        if kind == "final":
            self._final = sanitized
        elif kind == "text_delta" and is_on(self.options, *DELTAS_WITH):
            self._texts.append(delta_of(event))
        elif kind in _OPENINGS and self._first_session_id is None:
            self._first_session_id = sanitized.get("session", {}).get("id")

    def summary(self) -> RuntimeStreamEventSummary:
        """Return what the stream came to so far."""
        return RuntimeStreamEventSummary(
            event_count=self._counts.total(),
            event_counts_by_type=dict(self._counts),
            first_session_id=self._first_session_id,
            final_status=self._final.get("status"),
            final_reason=self._final.get("reason"),
            # Masked as a whole: what two deltas share between them is seen here.
            final_text=mask_text("".join(self._texts)),
        )


def create_runtime_event_collector(
    options: RuntimeTelemetryOptions | None = None, *, events_max: int | None = None
) -> RuntimeEventCollector:
    """Return a collector for the events of an agent task."""
    return RuntimeEventCollector(options, events_max=events_max)


def create_runtime_stream_event_collector(
    options: RuntimeTelemetryOptions | None = None, *, events_max: int | None = None
) -> RuntimeStreamEventCollector:
    """Return a collector for the events of a stream, which also sums them up."""
    return RuntimeStreamEventCollector(options, events_max=events_max)
