"""Where traces are kept: the protocol of a trace store, and one that keeps them in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import dropwhile, islice
from typing import Protocol, TypeVar

from perdure.errors import NotFoundError, ValidationError
from perdure.observe.trace import TraceEvent
from perdure.observe.trace_records import (
    Patch,
    TraceBudgetEntry,
    TraceEventQuery,
    TraceRun,
    TraceRunQuery,
    TraceSpan,
    TraceSpanQuery,
    is_wanted,
    patched,
)

K = TypeVar("K")
V = TypeVar("V")

ALL_RUNS = TraceRunQuery()
ALL_SPANS = TraceSpanQuery()
ALL_EVENTS = TraceEventQuery()


class TraceStore(Protocol):
    """Keeps runs with their spans, events and budgets, each in the order of appending.

    A durable run tells its trace again in every attempt, so appending is idempotent: what is
    there by its id (an entry of a budget, that equals it) is not appended again, and not changed.
    Ids of spans and events are the store's, not only the run's. What is kept is there when a call
    returns.
    """

    async def append_run(self, run: TraceRun) -> None:
        """Keep a run that begins."""
        ...

    async def update_run(self, run_id: str, patch: Patch) -> None:
        """Change fields of a run; the others stay.

        Raises NotFoundError for an unknown run, and ValidationError for a field that it has not.
        """
        ...

    async def append_span(self, span: TraceSpan) -> None:
        """Keep a span. Raises NotFoundError if there is no such run."""
        ...

    async def update_span(self, span_id: str, patch: Patch) -> None:
        """Change fields of a span, as `update_run` those of a run."""
        ...

    async def append_event(self, event: TraceEvent) -> None:
        """Keep an event. Raises NotFoundError if there is no such run."""
        ...

    async def append_budget_entry(self, entry: TraceBudgetEntry) -> None:
        """Keep an entry of a budget. Raises NotFoundError if there is no such run."""
        ...

    async def get_run(self, run_id: str) -> TraceRun | None:
        """Return the run, or None."""
        ...

    async def list_runs(self, wanted: TraceRunQuery = ALL_RUNS) -> Sequence[TraceRun]:
        """Return all the wanted runs, the oldest first."""
        ...

    async def find_runs(
        self, wanted: TraceRunQuery = ALL_RUNS, *, after: str | None = None, limit: int = 50
    ) -> Sequence[TraceRun]:
        """Return a page of the wanted runs: those appended last first, behind the run `after`.

        It looks at no more runs than it takes to fill the page. Raises NotFoundError for an
        unknown `after`, and ValidationError for a limit below 1.
        """
        ...

    async def spans(self, wanted: TraceSpanQuery = ALL_SPANS) -> Sequence[TraceSpan]:
        """Return the wanted spans, run by run."""
        ...

    async def events(self, wanted: TraceEventQuery = ALL_EVENTS) -> Sequence[TraceEvent]:
        """Return the wanted events, run by run."""
        ...

    async def budget(self, run_id: str) -> Sequence[TraceBudgetEntry]:
        """Return the entries of the budgets of a run; none for an unknown one."""
        ...


class Trace:
    """One run and what belongs to it, as appending and changing leave it.

    What appends or changes returns whether that was news.
    """

    __slots__ = ("_budget", "_events", "_spans", "run")

    def __init__(self, run: TraceRun) -> None:
        self.run = run
        self._spans: dict[str, TraceSpan] = {}
        self._events: dict[str, TraceEvent] = {}
        self._budget: dict[TraceBudgetEntry, TraceBudgetEntry] = {}

    def change(self, patch: Patch) -> bool:
        before, self.run = self.run, patched(self.run, patch)
        return self.run != before

    def append_span(self, span: TraceSpan) -> bool:
        return _append(self._spans, span.span_id, span)

    def change_span(self, span_id: str, patch: Patch) -> bool:
        before = self._spans[span_id]
        self._spans[span_id] = patched(before, patch)
        return self._spans[span_id] != before

    def append_event(self, event: TraceEvent) -> bool:
        return _append(self._events, event.event_id, event)

    def append_budget_entry(self, entry: TraceBudgetEntry) -> bool:
        return _append(self._budget, entry, entry)

    def span(self, span_id: str) -> TraceSpan | None:
        return self._spans.get(span_id)

    def spans(self, wanted: TraceSpanQuery) -> list[TraceSpan]:
        found = self._spans.values()
        return [span for span in found if is_wanted(span, span.started_at, wanted)]

    def events(self, wanted: TraceEventQuery) -> list[TraceEvent]:
        found = self._events.values()
        return [event for event in found if is_wanted(event, event.timestamp, wanted)]

    def budget(self) -> list[TraceBudgetEntry]:
        return [*self._budget]


def _append(kept: dict[K, V], key: K, value: V) -> bool:
    if key in kept:
        return False
    kept[key] = value
    return True


def in_order(traces: Iterable[Trace], wanted: TraceRunQuery) -> list[TraceRun]:
    """Return the wanted runs of the traces, the oldest first."""
    runs = [trace.run for trace in traces if is_wanted(trace.run, trace.run.started_at, wanted)]
    return sorted(runs, key=lambda run: run.started_at)


def check_limit(limit: int) -> None:
    """Raise ValidationError for a page of no runs."""
    if limit < 1:
        raise ValidationError(f"the limit of a page must be from 1, not {limit!r:.40}")


def no_run(run_id: str) -> NotFoundError:
    """Return what is raised where a run is missed."""
    return NotFoundError(f"there is no run {run_id!r:.300} in the trace store: append it first")


def no_span(span_id: str) -> NotFoundError:
    """Return what is raised where a span is missed."""
    return NotFoundError(f"there is no span {span_id!r:.300} in the trace store: append it first")


class InMemoryTraceStore:
    """Keeps traces for as long as this object lives.

    `runs_max` bounds what is kept: the oldest run goes first, with everything of it.
    """

    def __init__(self, *, runs_max: int | None = None) -> None:
        self._traces: dict[str, Trace] = {}
        self._runs_max = runs_max

    async def append_run(self, run: TraceRun) -> None:
        self._traces.setdefault(run.run_id, Trace(run))
        while self._runs_max is not None and len(self._traces) > self._runs_max:
            del self._traces[next(iter(self._traces))]

    async def update_run(self, run_id: str, patch: Patch) -> None:
        self._trace(run_id).change(patch)

    async def append_span(self, span: TraceSpan) -> None:
        self._trace(span.run_id).append_span(span)

    async def update_span(self, span_id: str, patch: Patch) -> None:
        for trace in reversed(self._traces.values()):
            if trace.span(span_id) is not None:
                trace.change_span(span_id, patch)
                return
        raise no_span(span_id)

    async def append_event(self, event: TraceEvent) -> None:
        self._trace(event.run_id).append_event(event)

    async def append_budget_entry(self, entry: TraceBudgetEntry) -> None:
        self._trace(entry.run_id).append_budget_entry(entry)

    async def get_run(self, run_id: str) -> TraceRun | None:
        trace = self._traces.get(run_id)
        return None if trace is None else trace.run

    async def list_runs(self, wanted: TraceRunQuery = ALL_RUNS) -> Sequence[TraceRun]:
        return in_order(self._traces.values(), wanted)

    async def find_runs(
        self, wanted: TraceRunQuery = ALL_RUNS, *, after: str | None = None, limit: int = 50
    ) -> Sequence[TraceRun]:
        check_limit(limit)
        runs: Iterator[TraceRun] = (trace.run for trace in reversed(self._traces.values()))
        if after is not None:
            self._trace(after)
            runs = dropwhile(lambda run: run.run_id != after, runs)
            next(runs)
        return list(islice((run for run in runs if is_wanted(run, run.started_at, wanted)), limit))

    async def spans(self, wanted: TraceSpanQuery = ALL_SPANS) -> Sequence[TraceSpan]:
        return [span for trace in self._of(wanted.run_id) for span in trace.spans(wanted)]

    async def events(self, wanted: TraceEventQuery = ALL_EVENTS) -> Sequence[TraceEvent]:
        return [event for trace in self._of(wanted.run_id) for event in trace.events(wanted)]

    async def budget(self, run_id: str) -> Sequence[TraceBudgetEntry]:
        return [entry for trace in self._of(run_id) for entry in trace.budget()]

    def _of(self, run_id: str | None) -> list[Trace]:
        if run_id is None:
            return [*self._traces.values()]
        trace = self._traces.get(run_id)
        return [] if trace is None else [trace]

    def _trace(self, run_id: str) -> Trace:
        trace = self._traces.get(run_id)
        if trace is None:
            raise no_run(run_id)
        return trace
