"""Trace stores with one planted fault each, and the case of the contract that must find it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import Any

from perdure.errors import NotFoundError, ValidationError
from perdure.observe.trace import TraceEvent
from perdure.observe.trace_records import (
    Patch,
    TraceBudgetEntry,
    TraceRun,
    TraceRunQuery,
    TraceSpan,
    TraceSpanQuery,
)
from perdure.observe.trace_store import ALL_RUNS, ALL_SPANS, InMemoryTraceStore, TraceStore
from perdure.testing import TraceStoreLab


class SoundStore(InMemoryTraceStore):
    """Keeps its data in what all handles share; the faults below change one thing."""

    def __init__(self, shared: SoundStore | None = None) -> None:
        super().__init__()
        if shared is not None:
            self._traces = shared._traces

    async def open(self) -> TraceStore:
        return type(self)(self)


class FindsWhatIsNotThere(SoundStore):
    async def get_run(self, run_id: str) -> TraceRun | None:
        found = await super().get_run(run_id)
        return found or TraceRun(run_id=run_id, scenario_id="", started_at=0)


class ForgetsOutcomes(SoundStore):
    async def append_run(self, run: TraceRun) -> None:
        await super().append_run(replace(run, outcome=None))


class TakesZeroForNothing(SoundStore):
    async def append_span(self, span: TraceSpan) -> None:
        await super().append_span(replace(span, input_tokens=span.input_tokens or None))


class SortsEvents(SoundStore):
    async def events(self, wanted: Any = None) -> Sequence[TraceEvent]:
        found = await (super().events() if wanted is None else super().events(wanted))
        return sorted(found, key=lambda event: event.event_id)


class KeepsTheLast(SoundStore):
    async def append_run(self, run: TraceRun) -> None:
        kept = self._traces.get(run.run_id)
        await super().append_run(run)
        if kept is not None:
            kept.run = run


class EntersWhatIsThere(SoundStore):
    async def append_budget_entry(self, entry: TraceBudgetEntry) -> None:
        kept = await self.budget(entry.run_id)
        # Equal, and yet another key.
        again = replace(entry, timestamp=entry.timestamp + 1) if entry in kept else entry
        await super().append_budget_entry(again)


class ReplacesTheWholeSpan(SoundStore):
    async def update_span(self, span_id: str, patch: Patch) -> None:
        given = {"attributes": None, "status": None, **patch}
        await super().update_span(span_id, given)


class ChangesNothingToNone(SoundStore):
    async def update_span(self, span_id: str, patch: Patch) -> None:
        given = {name: value for name, value in patch.items() if value is not None}
        await super().update_span(span_id, given)


class SkipsWhatItWroteBefore(SoundStore):
    def __init__(self, shared: SoundStore | None = None) -> None:
        super().__init__(shared)
        self._seen: list[tuple[str, Patch]] = []

    async def update_run(self, run_id: str, patch: Patch) -> None:
        if (run_id, patch) not in self._seen:
            await super().update_run(run_id, patch)
        self._seen.append((run_id, patch))


class BeginsTheSpanAnew(SoundStore):
    async def append_span(self, span: TraceSpan) -> None:
        await super().append_span(span)
        await super().update_span(span.span_id, {"status": span.status})


class MakesTheRunThatIsMissing(SoundStore):
    async def append_span(self, span: TraceSpan) -> None:
        await self.append_run(TraceRun(run_id=span.run_id, scenario_id="", started_at=0))
        await super().append_span(span)


class IgnoresUnknownSpans(SoundStore):
    async def update_span(self, span_id: str, patch: Patch) -> None:
        try:
            await super().update_span(span_id, patch)
        except NotFoundError:
            return


class TakesAnyField(SoundStore):
    async def update_run(self, run_id: str, patch: Patch) -> None:
        try:
            await super().update_run(run_id, patch)
        except ValidationError:
            return


class LooksAtOneConditionOnly(SoundStore):
    async def list_runs(self, wanted: TraceRunQuery = ALL_RUNS) -> Sequence[TraceRun]:
        if wanted.scenario_id is not None:
            wanted = TraceRunQuery(scenario_id=wanted.scenario_id)
        return await super().list_runs(wanted)


class ForgetsTheTags(SoundStore):
    async def list_runs(self, wanted: TraceRunQuery = ALL_RUNS) -> Sequence[TraceRun]:
        return await super().list_runs(wanted._replace(tag=None))


class FindsSpansOfAllRuns(SoundStore):
    async def spans(self, wanted: TraceSpanQuery = ALL_SPANS) -> Sequence[TraceSpan]:
        return await super().spans(wanted._replace(run_id=None))


class ForgetsTheCaseOfIds(SoundStore):
    async def append_run(self, run: TraceRun) -> None:
        if run.run_id.lower() not in self._traces:
            await super().append_run(run)


class KeepsTracesToEachHandle(SoundStore):
    async def open(self) -> TraceStore:
        return type(self)()


class LosesWhatIsWrittenAtOnce(SoundStore):
    async def append_span(self, span: TraceSpan) -> None:
        trace = self._trace(span.run_id)
        kept = dict(trace._spans)
        await asyncio.sleep(0)
        trace._spans = {**kept, span.span_id: span}

    async def update_span(self, span_id: str, patch: Patch) -> None:
        try:
            await super().update_span(span_id, patch)
        except NotFoundError:
            return


class HandsOutItsOwnList(SoundStore):
    def __init__(self, shared: SoundStore | None = None) -> None:
        super().__init__(shared)
        self._handed: list[TraceSpan] | None = None

    async def spans(self, wanted: TraceSpanQuery = ALL_SPANS) -> Sequence[TraceSpan]:
        if self._handed is None:
            self._handed = [*await super().spans(wanted)]
        return self._handed


class LosesTheBreach(SoundStore):
    async def append_event(self, event: TraceEvent) -> None:
        if event.kind != "budget_breach":
            await super().append_event(event)


class ListsTheOldestFirst(SoundStore):
    async def find_runs(
        self, wanted: TraceRunQuery = ALL_RUNS, *, after: str | None = None, limit: int = 50
    ) -> Sequence[TraceRun]:
        page = await super().find_runs(wanted, after=after, limit=limit)
        return sorted(page, key=lambda run: run.run_id)


class CutsThePageBeforeItLooks(SoundStore):
    async def find_runs(
        self, wanted: TraceRunQuery = ALL_RUNS, *, after: str | None = None, limit: int = 50
    ) -> Sequence[TraceRun]:
        page = await super().find_runs(after=after, limit=limit)
        return [run for run in page if wanted.scenario_id in (None, run.scenario_id)]


class BeginsAnewBehindNobody(SoundStore):
    async def find_runs(
        self, wanted: TraceRunQuery = ALL_RUNS, *, after: str | None = None, limit: int = 50
    ) -> Sequence[TraceRun]:
        try:
            return await super().find_runs(wanted, after=after, limit=limit)
        except NotFoundError:
            return await super().find_runs(wanted, limit=limit)


FAULTS: list[tuple[type[SoundStore], str]] = [
    (FindsWhatIsNotThere, "what_was_never_appended_is_not_there"),
    (ForgetsOutcomes, "a_run_comes_back_whole"),
    (TakesZeroForNothing, "spans_of_every_kind_come_back_whole"),
    (SortsEvents, "events_and_budgets_come_back_whole_and_in_order"),
    (KeepsTheLast, "what_is_appended_again_is_not_there_twice"),
    (EntersWhatIsThere, "what_is_appended_again_is_not_there_twice"),
    (ReplacesTheWholeSpan, "a_change_leaves_the_other_fields"),
    (ChangesNothingToNone, "a_change_may_empty_a_field"),
    (SkipsWhatItWroteBefore, "the_last_change_counts_also_of_a_value_that_was_there_before"),
    (BeginsTheSpanAnew, "what_was_appended_again_keeps_its_changes"),
    (MakesTheRunThatIsMissing, "what_does_not_exist_cannot_be_changed_or_added_to"),
    (IgnoresUnknownSpans, "what_does_not_exist_cannot_be_changed_or_added_to"),
    (TakesAnyField, "a_field_that_a_record_has_not_cannot_be_changed"),
    (LooksAtOneConditionOnly, "runs_are_found_by_what_they_are_about"),
    (ForgetsTheTags, "runs_are_found_by_what_they_are_about"),
    (FindsSpansOfAllRuns, "spans_and_events_are_found_by_what_they_are"),
    (ForgetsTheCaseOfIds, "ids_are_taken_as_they_are"),
    (KeepsTracesToEachHandle, "another_handle_goes_on_with_a_trace"),
    (LosesWhatIsWrittenAtOnce, "spans_of_many_writers_are_all_kept"),
    (HandsOutItsOwnList, "a_list_is_the_readers_own"),
    (LosesTheBreach, "a_loop_is_kept_as_it_went"),
    (ListsTheOldestFirst, "runs_come_in_pages_the_newest_first"),
    (CutsThePageBeforeItLooks, "a_page_has_only_what_is_wanted"),
    (BeginsAnewBehindNobody, "a_page_behind_nothing_is_refused"),
]


def lab_of(kind: type[SoundStore]) -> AbstractAsyncContextManager[TraceStoreLab]:
    return nullcontext(TraceStoreLab(kind().open))
