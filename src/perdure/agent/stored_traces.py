"""Traces in the database of the runs: a log of entries for each trace, in any RunStore."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, cast

from perdure.agent.kept_runs import entry_key, keep_entry, keep_run, run_for
from perdure.core.identity import stored_id
from perdure.core.records import AgentTaskSpec, RunManifest, RunRecord, SessionKey
from perdure.core.wire import from_wire, to_wire
from perdure.durable.traces import TRACE_HANDLER, TRACE_PREFIX, kept_name
from perdure.errors import RunNotFoundError
from perdure.observe.ledger import span_of_usage
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
    patch_from_wire,
    patch_to_wire,
)
from perdure.observe.trace_store import (
    ALL_EVENTS,
    ALL_RUNS,
    ALL_SPANS,
    Trace,
    check_limit,
    in_order,
    no_run,
    no_span,
)
from perdure.store.protocol import RunStore
from perdure.store.upkeep import RunQuery, upkeep_of

LOGS_MAX: Final = 64
"""So many traces, those that were written last, a handle knows without reading them again."""

PAGE_MAX: Final = 200
"""So many traces are read at once, at most, where most are not wanted."""

_KEYS: Final = "entry:"

Entry = dict[str, Any]


class DurableTraceStore:
    """Keeps traces in a RunStore: with its durability, tenant, protection and erasure.

    Each trace is a run of its own (`agent-trace:<run id>`), whose events are the entries of a
    log; an entry is written under the next number, which only one writer can have. What is there
    already is not written again: a durable run that tells its trace once more reads the log once,
    and looks for other writers where it changes nothing. News is one small write. Many may read a
    trace while one writes it; of two who change a field at the same time the later one wins.

    Traces belong to the store's tenant (`store.for_tenant`), and to `owner_id` if one is given:
    then `erase_user` deletes them, and to every other owner there is no such trace. A trace goes
    with the durable run that it tells of, whoever erases that (`erase_run`, `erase_session`,
    `erase_user`, `DELETE /v1/...`, `perdure delete`); `collect_garbage` deletes it as other runs.

    The model calls of a durable run stand in the ledger of its store. If that is this store, they
    are among the spans of its trace, read from the ledger: the two cannot differ.

    A page of runs (`find_runs`) reads as many traces as it has runs, and those it passes over; the
    tenant's other runs that lie between are passed over as rows. To list all runs, and whatever
    names no run, costs a look at every trace.
    """

    def __init__(self, store: RunStore, *, owner_id: str | None = None) -> None:
        self._store = store
        self._owner_id = owner_id
        self._logs: OrderedDict[str, _Log] = OrderedDict()

    async def append_run(self, run: TraceRun) -> None:
        """Keep a run that begins.

        Raises RunNotFoundError for an id whose trace belongs to another owner.
        """
        log = await self._log(_name(run.run_id))
        async with log.lock:
            if log.trace is None:
                await self._begin(log, run)

    async def update_run(self, run_id: str, patch: Patch) -> None:
        change = {"run.patch": patch_to_wire(TraceRun, patch)}
        await self._change(await self._begun(run_id), change)

    async def append_span(self, span: TraceSpan) -> None:
        await self._append(await self._begun(span.run_id), {"span": to_wire(span)})

    async def update_span(self, span_id: str, patch: Patch) -> None:
        change = {"spanId": span_id, "span.patch": patch_to_wire(TraceSpan, patch)}
        await self._change(await self._log_with(span_id), change)

    async def append_event(self, event: TraceEvent) -> None:
        await self._append(await self._begun(event.run_id), {"event": to_wire(event)})

    async def append_budget_entry(self, entry: TraceBudgetEntry) -> None:
        await self._append(await self._begun(entry.run_id), {"budget": to_wire(entry)})

    async def get_run(self, run_id: str) -> TraceRun | None:
        trace = (await self._read(_name(run_id))).trace
        return None if trace is None else trace.run

    async def list_runs(self, wanted: TraceRunQuery = ALL_RUNS) -> Sequence[TraceRun]:
        return in_order([trace async for trace in self._traces()], wanted)

    async def find_runs(
        self, wanted: TraceRunQuery = ALL_RUNS, *, after: str | None = None, limit: int = 50
    ) -> Sequence[TraceRun]:
        check_limit(limit)
        found: list[TraceRun] = []
        behind = None if after is None else await self._place_of(after)
        size = min(limit, PAGE_MAX)
        while len(found) < limit and (page := await self._kept(behind, size)):
            size = min(2 * size, PAGE_MAX)
            behind = stored_id(page[-1].tenant, page[-1].run_id)
            logs = await asyncio.gather(*(self._read(run.run_id) for run in page))
            runs = [log.trace.run for log in logs if log.trace is not None]
            found += [run for run in runs if is_wanted(run, run.started_at, wanted)]
        return found[:limit]

    async def spans(self, wanted: TraceSpanQuery = ALL_SPANS) -> Sequence[TraceSpan]:
        found: list[TraceSpan] = []
        async for trace in self._traces(wanted.run_id):
            found += trace.spans(wanted)
            if wanted.kind in (None, "llm"):
                calls = await self._model_calls(trace.run.run_id)
                found += [call for call in calls if is_wanted(call, call.started_at, wanted)]
        return found

    async def events(self, wanted: TraceEventQuery = ALL_EVENTS) -> Sequence[TraceEvent]:
        return [
            event async for trace in self._traces(wanted.run_id) for event in trace.events(wanted)
        ]

    async def budget(self, run_id: str) -> Sequence[TraceBudgetEntry]:
        trace = (await self._read(_name(run_id))).trace
        return [] if trace is None else trace.budget()

    # Writing.

    async def _begin(self, log: _Log, run: TraceRun) -> None:
        await run_for(self._store, log.name, self._owner_id)
        owner_id = self._owner_id
        await keep_run(
            self._store,
            log.name,
            RunManifest("agent-traces", AgentTaskSpec(run.scenario_id, "Keep a trace of an agent")),
            session=None if owner_id is None else SessionKey(log.name, 0, owner_id=owner_id),
            handler=TRACE_HANDLER,
        )
        entry: Entry = {"run": to_wire(run)}
        await self._keep(log, entry)
        log.fold(entry)

    async def _append(self, log: _Log, entry: Entry) -> bool:
        """Write the entry if it is news, and return whether it was.

        The log is forgotten where it is not known what is stored.
        """
        async with log.lock:
            try:
                is_news = log.fold(entry)
                if is_news:
                    await self._keep(log, entry)
            except BaseException:
                self._forget(log)
                raise
        return is_news

    async def _change(self, log: _Log, change: Entry) -> None:
        """Write a change, unless it is one to what already is, whoever has written last."""
        if await self._append(log, change):
            return
        if await self._store.load_event(log.name, log.key) is not None:
            self._forget(log)
            await self._append(await self._log(log.name), change)

    async def _keep(self, log: _Log, entry: Entry) -> None:
        number = await keep_entry(self._store, log.name, _KEYS, log.next, entry)
        if number != log.next:
            self._forget(log)
        log.next = number + 1

    async def _log(self, name: str) -> _Log:
        """Return the log, which is read if this handle does not know it."""
        if name not in self._logs:
            log = await self._read(name)
            # Whoever came first has the lock that others wait for.
            self._logs.setdefault(name, log)
        self._logs.move_to_end(name)
        while len(self._logs) > LOGS_MAX:
            self._logs.popitem(last=False)
        return self._logs[name]

    async def _begun(self, run_id: str) -> _Log:
        log = await self._log(_name(run_id))
        if log.trace is None:
            # Another handle may have begun it since.
            self._forget(log)
            log = await self._log(log.name)
        if log.trace is None:
            self._forget(log)
            raise no_run(run_id)
        return log

    async def _log_with(self, span_id: str) -> _Log:
        """Return the log that has the span; one of another handle is looked for in all."""
        for log in reversed(self._logs.values()):
            if log.has_span(span_id):
                return log
        for name in await self._names():
            if (await self._read(name)).has_span(span_id):
                self._logs.pop(name, None)
                return await self._log(name)
        raise no_span(span_id)

    def _forget(self, log: _Log) -> None:
        if self._logs.get(log.name) is log:
            del self._logs[log.name]

    # Reading.

    async def _read(self, name: str) -> _Log:
        log = _Log(name)
        try:
            await run_for(self._store, name, self._owner_id)
            events = (await self._store.read_details(name)).events
        except RunNotFoundError:
            return log
        for event in sorted(events, key=lambda event: event.key):
            log.fold(cast("Entry", event.payload))
            log.next = int(event.key.removeprefix(_KEYS)) + 1
        return log

    async def _traces(self, run_id: str | None = None) -> AsyncGenerator[Trace, None]:
        for name in await self._names() if run_id is None else [_name(run_id)]:
            trace = (await self._read(name)).trace
            if trace is not None:
                yield trace

    async def _names(self) -> list[str]:
        """Return the runs that keep traces, the oldest first."""
        found: list[str] = []
        after: str | None = None
        while page := await self._kept(after):
            found += [run.run_id for run in page if run.owner_id in (None, self._owner_id)]
            after = stored_id(page[-1].tenant, page[-1].run_id)
        return found[::-1]

    async def _kept(self, after: str | None, limit: int = 50) -> Sequence[RunRecord]:
        """Return a page of the runs that keep traces, of all owners, the newest first."""
        wanted = RunQuery(self._store.tenant, handler=TRACE_HANDLER)
        return await upkeep_of(self._store).find_runs(wanted, after=after, limit=limit)

    async def _place_of(self, run_id: str) -> str:
        """Return the stored id of the run that keeps a trace. Raises NotFoundError."""
        try:
            run = await run_for(self._store, _name(run_id), self._owner_id)
        except RunNotFoundError:
            run = None
        if run is None:
            raise no_run(run_id)
        return stored_id(run.tenant, run.run_id)

    async def _model_calls(self, run_id: str) -> list[TraceSpan]:
        try:
            await run_for(self._store, run_id, self._owner_id)
            usage = (await self._store.read_details(run_id)).usage
        except RunNotFoundError:
            return []
        return [span_of_usage(run_id, each) for each in usage]


def _name(run_id: str) -> str:
    return kept_name(TRACE_PREFIX, run_id)


class _Log:
    """How the log of a trace stands, as far as this handle knows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.next = 1
        self.trace: Trace | None = None
        self.lock = asyncio.Lock()

    @property
    def key(self) -> str:
        """The key of the next entry."""
        return entry_key(_KEYS, self.next)

    def has_span(self, span_id: str) -> bool:
        return self.trace is not None and self.trace.span(span_id) is not None

    def fold(self, entry: Entry) -> bool:
        """Take the next entry in; return whether it was news."""
        trace = self.trace
        if trace is None:
            self.trace = Trace(from_wire(TraceRun, entry["run"]))
            return True
        if "span" in entry:
            return trace.append_span(from_wire(TraceSpan, entry["span"]))
        if "event" in entry:
            return trace.append_event(from_wire(TraceEvent, entry["event"]))
        if "budget" in entry:
            return trace.append_budget_entry(from_wire(TraceBudgetEntry, entry["budget"]))
        if "run.patch" in entry:
            return trace.change(patch_from_wire(trace.run, entry["run.patch"]))
        if "span.patch" in entry:
            return self._change_span(trace, entry)
        return False

    def _change_span(self, trace: Trace, entry: Entry) -> bool:
        span = trace.span(entry["spanId"])
        if span is None:
            raise no_span(entry["spanId"])
        return trace.change_span(span.span_id, patch_from_wire(span, entry["span.patch"]))
