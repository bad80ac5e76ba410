"""The run handle: one record for each production run, of what it was for, cost and came to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Literal, Protocol, cast

from perdure.agent.adapter import resolve
from perdure.agent.spec import check_task
from perdure.agent.stream_events import FinalEvent
from perdure.core.effects import Clock, iso_time, new_uuid, system_clock
from perdure.core.finite import is_finite
from perdure.core.pricing import NANOS, ModelCall, PriceTable
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.core.wire import camel
from perdure.core.wording import error_text
from perdure.errors import RuntimeRunStateError, ValidationError
from perdure.observe.credentials import mask_text
from perdure.store.ledger import UsageSum

logger = logging.getLogger("perdure.agent")

RuntimeRunStatus = Literal["running", "completed", "failed", "cancelled"]

ENDED: Final = ("completed", "failed", "cancelled")
_OVERRIDES: Final = ("tokens_in", "tokens_out", "cost_usd", "llm_calls")
_USAGE: Final = ("tokens_in", "tokens_out", "cost_usd")
_ENDS_OF_BACKENDS: Final = ("backend_end", "backend_error", "final")
_OF_FINAL: Final[Mapping[str, RuntimeRunStatus]] = {
    "completed": "completed",
    "aborted": "cancelled",
    "failed": "failed",
    "blocked": "failed",
}


_End = tuple[RuntimeRunStatus, str | None]
"""How a run ends, and the error that it then has."""


@dataclass(frozen=True, slots=True)
class RuntimeRunCost:
    """What a run used. A sum is what is known of it: the flags say whether that is all.

    `estimated_usd` is how much of `cost_usd` a price table said, and nobody billed; None: nothing.
    """

    tokens_in: float = 0
    tokens_out: float = 0
    cost_usd: float = 0
    wall_ms: float = 0
    llm_calls: float = 0
    tokens_known: bool = True
    cost_known: bool = True
    estimated_usd: float | None = None


@dataclass(frozen=True, slots=True)
class RuntimeRunRow:
    """A run as it is persisted; `to_wire` gives its wire form."""

    id: str
    workspace_id: str
    task_id: str
    status: RuntimeRunStatus
    cost: RuntimeRunCost
    started_at: str
    session_id: str | None = None
    agent_id: str | None = None
    domain: str | None = None
    scenario_id: str | None = None
    result_summary: str | None = None
    error: str | None = None
    completed_at: str | None = None
    metadata: Mapping[str, JsonValue] | None = None


class RuntimeRunPersistenceAdapter(Protocol):
    """Where rows go. `upsert` is plain or async, and may get a row of one id again."""

    def upsert(self, row: RuntimeRunRow) -> Any:
        """Keep the row, in place of what was kept under its id."""
        ...


@dataclass(frozen=True, slots=True)
class _Completion:
    """How a run was completed; nothing of it changes any more."""

    at_ms: int
    result_summary: str | None
    error: str | None
    metadata: Mapping[str, JsonValue] | None


class RuntimeRun:
    """The handle of one run; `start_runtime_run` makes it.

    As an async context manager it completes the run by itself: at the end of the block as the
    `final` that was observed says (`complete_from`), `completed` without one, `failed` with an
    exception's message, `cancelled` with a cancellation; then it persists. What the block has
    raised is raised, whatever the adapter says: its failure is logged then.
    """

    def __init__(
        self, row: RuntimeRunRow, *, task: AgentTaskSpec, adapter: Any, begun_ms: int, now: Clock
    ) -> None:
        self.task_spec = task
        self.late_events = 0
        self.prices: PriceTable | None = None
        """Say what an `llm_call` cost that names no cost, if you set it."""
        self._row = row
        self._adapter: RuntimeRunPersistenceAdapter | None = adapter
        self._now = now
        self._begun_ms = begun_ms
        self._cost = RuntimeRunCost()
        self._owes_usage = False
        self._end: _End = ("completed", None)
        self._completion: _Completion | None = None

    @property
    def id(self) -> str:
        return self._row.id

    @property
    def workspace_id(self) -> str:
        return self._row.workspace_id

    @property
    def session_id(self) -> str | None:
        return self._row.session_id

    @property
    def status(self) -> RuntimeRunStatus:
        return self._row.status

    def observe(self, event: object) -> None:
        """Add what an `llm_call` used, given as a record or in wire form.

        Its cost, where it names none, is what `prices` say, if they are set. What a backend used
        that begins and ends without one is not known. A `final` says how a context manager ends.
        Other events change nothing, and none does that comes after the completion: it only counts
        in `late_events`.
        """
        if self._completion is not None:
            self.late_events += 1
            return
        name = _told(event, "type")
        if name == "llm_call":
            self._add(event)
        elif name == "backend_start":
            self._owes_usage = True
        elif name in _ENDS_OF_BACKENDS:
            self._settle()
        if name == "final":
            self._end = _end_of(event)

    def _add(self, call: object) -> None:
        self._owes_usage = False
        used = {name: _told(call, name) for name in _USAGE}
        known = {name: cast("float", value) for name, value in used.items() if _is_amount(value)}
        cost = self._cost
        estimated = cost.estimated_usd
        if "cost_usd" not in known and (priced := self._priced(call)) is not None:
            known["cost_usd"] = priced
            estimated = (estimated or 0) + priced
        self._cost = replace(
            cost,
            **{name: getattr(cost, name) + value for name, value in known.items()},
            llm_calls=cost.llm_calls + 1,
            tokens_known=cost.tokens_known and {"tokens_in", "tokens_out"} <= known.keys(),
            cost_known=cost.cost_known and "cost_usd" in known,
            estimated_usd=estimated,
        )

    def _settle(self) -> None:
        """Own up to what a backend has used without telling it."""
        if self._owes_usage and self._completion is None:
            self._cost = replace(self._cost, tokens_known=False, cost_known=False)
        self._owes_usage = False

    def take_usage(self, usage: UsageSum) -> None:
        """Put what the ledger knows of the run in place of what was observed.

        It has also the calls of attempts that crashed, which no event tells of. Costs in other
        currencies than dollars are left out, and make the cost one that is not known. Raises
        RuntimeRunStateError for a run that is completed.
        """
        if self._completion is not None:
            raise RuntimeRunStateError(f"the run {self.id!r} is {self.status}: its cost is fixed")
        self._owes_usage = False
        nanos = usage.cost_nanos.get("USD")
        self._cost = RuntimeRunCost(
            tokens_in=usage.tokens_in or 0,
            tokens_out=usage.tokens_out or 0,
            cost_usd=(nanos or 0) / NANOS,
            estimated_usd=None if nanos is None else nanos / NANOS,
            llm_calls=usage.calls,
            tokens_known=not usage.uncounted,
            cost_known=not usage.unpriced and usage.cost_nanos.keys() <= {"USD"},
        )

    def cost(self) -> RuntimeRunCost:
        """Return what the run used so far, or in all."""
        end_ms = self._now() if self._completion is None else self._completion.at_ms
        return replace(self._cost, wall_ms=end_ms - self._begun_ms)

    def complete(
        self,
        status: RuntimeRunStatus,
        *,
        result_summary: str | None = None,
        cost: Mapping[str, float] | None = None,
        error: str | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """End the run; `cost` overrides what was added up, except for `wall_ms`.

        The words of an error are masked where they look like a credential. Again with the same
        status this changes nothing. Raises RuntimeRunStateError with another one, ValidationError
        for what is no end.
        """
        if status not in ENDED:
            raise ValidationError(f"a run is completed as {', '.join(ENDED)}, not {status!r:.40}")
        if self._completion is not None:
            if status != self.status:
                raise RuntimeRunStateError(
                    f"the run {self.id!r} is {self.status}, and cannot become {status}"
                )
            return
        self._settle()
        masked = None if error is None else mask_text(error)
        self._completion = _Completion(self._now(), result_summary, masked, metadata)
        self._row = replace(self._row, status=status)
        self._override(cost or {})

    def complete_from(self, final: FinalEvent, *, result_summary: str | None = None) -> None:
        """End the run as a stream has ended; the reason of a failure is its error."""
        status, error = _end_of(final)
        self.complete(status, result_summary=result_summary, error=error)

    def to_row(self, metadata: Mapping[str, JsonValue] | None = None) -> RuntimeRunRow:
        """Return the run as it stands; `metadata` lies over that of the completion."""
        ended = self._completion
        if ended is None:
            return replace(self._row, cost=self.cost(), metadata=metadata)
        merged = {**(ended.metadata or {}), **(metadata or {})}
        given = ended.metadata is not None or metadata is not None
        return replace(
            self._row,
            cost=self.cost(),
            result_summary=ended.result_summary,
            error=ended.error,
            completed_at=iso_time(ended.at_ms),
            metadata=merged if given else None,
        )

    async def persist(self, metadata: Mapping[str, JsonValue] | None = None) -> None:
        """Give the row to the adapter, if there is one; again writes it again.

        Raises RuntimeRunStateError while the run is running, and what the adapter raises.
        """
        if self._completion is None:
            raise RuntimeRunStateError(f"the run {self.id!r} is running: complete it first")
        if self._adapter is not None:
            await resolve(self._adapter.upsert(self.to_row(metadata)))

    async def __aenter__(self) -> RuntimeRun:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._completion is None:
            if error is None:
                status, reason = self._end
                self.complete(status, error=reason)
            elif isinstance(error, asyncio.CancelledError):
                self.complete("cancelled")
            else:
                self.complete("failed", error=error_text(error))
        try:
            await self.persist()
        except Exception as failure:
            if error is None:
                raise
            why = mask_text(str(failure) or type(failure).__qualname__)
            logger.warning("the row of the run %s was not kept: %s", self.id, why)

    def _priced(self, call: object) -> float | None:
        """Return what the prices say of a call, in dollars."""
        model, provider = _told(call, "model"), _told(call, "provider")
        tokens_in, tokens_out = _count(call, "tokens_in"), _count(call, "tokens_out")
        if self.prices is None or not isinstance(model, str):
            return None
        if tokens_in is None or tokens_out is None:
            return None
        price = self.prices.price(
            ModelCall(
                model,
                tokens_in,
                tokens_out,
                provider=provider if isinstance(provider, str) else None,
                tokens_cached=_count(call, "tokens_cached"),
                tokens_reasoning=_count(call, "tokens_reasoning"),
                tokens_cache_written=_count(call, "tokens_cache_written"),
            )
        )
        in_dollars = price is not None and price.currency == "USD"
        return price.cost_nanos / NANOS if price is not None and in_dollars else None

    def _override(self, given: Mapping[str, float]) -> None:
        known = {name: given[name] for name in _OVERRIDES if _is_amount(given.get(name))}
        if {"tokens_in", "tokens_out"} <= known.keys():
            self._cost = replace(self._cost, tokens_known=True)
        if "cost_usd" in known:
            self._cost = replace(self._cost, cost_known=True, estimated_usd=None)
        self._cost = replace(self._cost, **cast("dict[str, Any]", known))


def start_runtime_run(
    *,
    workspace_id: str,
    task_spec: AgentTaskSpec,
    session_id: str | None = None,
    agent_id: str | None = None,
    scenario_id: str | None = None,
    adapter: RuntimeRunPersistenceAdapter | None = None,
    id: str | None = None,
    now: Callable[[], int] = system_clock,
) -> RuntimeRun:
    """Begin a run and return its handle; its id is `<task id>:<random>` unless it is given.

    `now` gives milliseconds since the epoch. Raises ValidationError for an empty workspace, or
    a task without id or intent.
    """
    if not workspace_id:
        raise ValidationError("workspace_id must not be empty")
    check_task(task_spec)
    begun_ms = now()
    row = RuntimeRunRow(
        id=id or f"{task_spec.id}:{new_uuid()}",
        workspace_id=workspace_id,
        session_id=session_id,
        agent_id=agent_id,
        domain=task_spec.domain,
        task_id=task_spec.id,
        scenario_id=scenario_id,
        status="running",
        cost=RuntimeRunCost(),
        started_at=iso_time(begun_ms),
    )
    return RuntimeRun(row, task=task_spec, adapter=adapter, begun_ms=begun_ms, now=now)


def _told(event: object, name: str) -> object:
    """Return a field of an event, whether it is a record or in wire form; None if it lacks."""
    if isinstance(event, Mapping):
        return cast("Mapping[str, object]", event).get(camel(name))
    return getattr(event, name, None)


def _end_of(final: object) -> _End:
    """Return how a run ends whose stream ended with `final`, and the reason of a failure."""
    status = _OF_FINAL.get(cast("str", _told(final, "status")), "failed")
    return status, cast("str | None", _told(final, "reason")) if status == "failed" else None


def _count(event: object, name: str) -> int | None:
    value = _told(event, name)
    return value if type(value) is int and value >= 0 else None


def _is_amount(value: object) -> bool:
    return is_finite(value) and value >= 0
