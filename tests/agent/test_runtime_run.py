"""A run handle adds up what is known, is completed once, and is persisted as its row."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from perdure.agent.runtime_run import (
    RuntimeRun,
    RuntimeRunCost,
    RuntimeRunRow,
    start_runtime_run,
)
from perdure.agent.sessions import RuntimeSession
from perdure.agent.stream_events import (
    BackendEndEvent,
    BackendStartEvent,
    FinalEvent,
    LlmCallEvent,
    TextDeltaEvent,
    event_to_wire,
)
from perdure.core.records import AgentTaskSpec
from perdure.core.wire import to_wire
from perdure.errors import RuntimeRunStateError, ValidationError
from perdure.observe.prices import ModelPrice, PriceList
from perdure.store.ledger import UsageSum

TASK = AgentTaskSpec("intake", "Answer a question", domain="support")
NOON = "1970-01-01T00:00:00.100Z"


def ticking(*moments: int) -> Callable[[], int]:
    """Return a clock that shows each moment once, and the last one for ever."""
    left = list(moments)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


class Rows:
    def __init__(self) -> None:
        self.rows: list[RuntimeRunRow] = []

    def upsert(self, row: RuntimeRunRow) -> None:
        self.rows.append(row)


def started(**options: Any) -> RuntimeRun:
    return start_runtime_run(workspace_id="ws-7", task_spec=TASK, **options)


def call(**used: Any) -> LlmCallEvent:
    return LlmCallEvent(model="m", **used)


def test_10_r3_r4_the_wall_time_is_frozen_by_the_first_completion() -> None:
    run = started(now=ticking(100, 350, 9_999))
    run.complete("completed", result_summary="first")
    assert run.cost().wall_ms == 250
    run.complete("completed", result_summary="second")
    row = run.to_row()
    assert (row.cost.wall_ms, row.result_summary) == (250, "first")
    assert (row.started_at, row.completed_at) == (NOON, "1970-01-01T00:00:00.350Z")
    with pytest.raises(RuntimeRunStateError, match="completed"):
        run.complete("failed")


async def test_10_r5_a_running_run_cannot_be_persisted() -> None:
    rows = Rows()
    run = started(adapter=rows)
    with pytest.raises(RuntimeRunStateError):
        await run.persist()
    run.complete("completed")
    await run.persist()
    await run.persist({"route": "chat"})
    assert [row.metadata for row in rows.rows] == [None, {"route": "chat"}]


async def test_10_r5_without_an_adapter_nothing_is_persisted() -> None:
    run = started()
    run.complete("failed", error="no")
    await run.persist()
    assert run.to_row().error == "no"


def test_10_r4_a_run_is_not_completed_as_running() -> None:
    with pytest.raises(ValidationError):
        started().complete("running")


@pytest.mark.parametrize(
    "options",
    [
        {"workspace_id": "", "task_spec": TASK},
        {"workspace_id": "w", "task_spec": TASK._replace(id="")},
        {"workspace_id": "w", "task_spec": TASK._replace(intent="")},
    ],
)
def test_10_r1_workspace_and_task_have_ids(options: Any) -> None:
    with pytest.raises(ValidationError):
        start_runtime_run(**options)


def test_10_r2_only_llm_calls_count() -> None:
    run = started()
    run.observe(TextDeltaEvent(text="a"))
    run.observe(call(tokens_in=900, tokens_out=140, cost_usd=0.25))
    run.observe(call(tokens_in=100, tokens_out=60, cost_usd=0.25))
    cost = run.cost()
    assert (cost.tokens_in, cost.tokens_out, cost.cost_usd, cost.llm_calls) == (1_000, 200, 0.5, 2)
    assert cost.tokens_known
    assert cost.cost_known


def test_10_r2_an_event_counts_in_wire_form_as_well() -> None:
    run = started()
    run.prices = PriceList({"m": ModelPrice(input=1, output=2)}, version="1")
    run.observe(event_to_wire(call(tokens_in=1_000, tokens_out=1_000)))
    assert run.cost().cost_usd == pytest.approx(0.003)
    run.observe({"type": "llm_call", "model": "m", "tokensIn": "7", "tokensOut": 2})
    run.observe({"type": "text_delta", "text": "a"})
    run.observe({"no": "type"})
    cost = run.cost()
    assert (cost.tokens_in, cost.tokens_out, cost.llm_calls) == (1_000, 1_002, 2)
    assert (cost.tokens_known, cost.cost_known) == (False, False)


def test_an_event_without_fields_for_tokens_is_a_call_of_unknown_use() -> None:
    run = started()
    run.prices = PriceList({"m": ModelPrice(input=1, output=2)}, version="1")
    run.observe(SimpleNamespace(type="llm_call", model="m"))
    assert run.cost() == RuntimeRunCost(
        wall_ms=run.cost().wall_ms, llm_calls=1, tokens_known=False, cost_known=False
    )


BACKEND: dict[str, Any] = {
    "task": TASK,
    "timestamp": NOON,
    "backend": "callable",
    "session": RuntimeSession("s", "callable", "active", NOON, NOON),
}


@pytest.mark.parametrize("end", ["backend_end", "final", "complete"])
@pytest.mark.parametrize("told", [True, False])
def test_10_what_a_backend_used_that_tells_nothing_is_unknown(end: str, told: bool) -> None:
    run = started()
    run.observe(BackendStartEvent(**BACKEND))
    if told:
        run.observe(call(tokens_in=1, tokens_out=1, cost_usd=1))
    if end == "backend_end":
        run.observe(BackendEndEvent(**BACKEND))
    elif end == "final":
        run.observe(FinalEvent(task=TASK, timestamp=NOON, status="failed", reason="why"))
    else:
        run.complete("failed")
    cost = run.cost()
    assert (cost.tokens_known, cost.cost_known, cost.llm_calls) == (told, told, int(told))


def test_10_a_task_that_no_backend_was_asked_for_has_used_nothing() -> None:
    run = started()
    run.observe(FinalEvent(task=TASK, timestamp=NOON, status="blocked", reason="why"))
    assert (run.cost().tokens_known, run.cost().cost_known) == (True, True)


@pytest.mark.parametrize("amount", [None, -5, math.inf, math.nan, True, "7"])
def test_10_r2_bb_13_what_is_no_amount_is_unknown_not_zero(amount: Any) -> None:
    run = started()
    run.observe(call(tokens_in=amount, tokens_out=2, cost_usd=amount))
    cost = run.cost()
    assert (cost.tokens_in, cost.tokens_out, cost.cost_usd, cost.llm_calls) == (0, 2, 0, 1)
    assert (cost.tokens_known, cost.cost_known) == (False, False)


def test_bb_15_late_events_are_counted_apart() -> None:
    run = started()
    run.complete("completed")
    run.observe(call(tokens_in=1, tokens_out=1))
    run.observe({"type": "backend_start"})
    run.observe({"type": "text_delta", "text": "late"})
    assert (run.cost().llm_calls, run.late_events) == (0, 3)
    assert run.cost().tokens_known


def test_10_r4_overrides_replace_the_sums_but_not_the_wall_time() -> None:
    run = started(now=ticking(0, 10))
    run.observe(call())
    run.complete(
        "completed",
        cost={"tokens_in": 5, "tokens_out": 6, "cost_usd": 0.1, "llm_calls": 3, "wall_ms": 99},
    )
    cost = run.cost()
    assert (cost.tokens_in, cost.tokens_out, cost.cost_usd, cost.llm_calls) == (5, 6, 0.1, 3)
    assert (cost.wall_ms, cost.tokens_known, cost.cost_known) == (10, True, True)


def test_10_the_row_in_wire_form() -> None:
    run = started(id="intake:k3f9a2qz", session_id="th-1", agent_id="bot", now=ticking(100, 350))
    run.observe(call(tokens_in=900, tokens_out=140, cost_usd=0.5))
    run.complete("completed", result_summary="answered", metadata={"route": "chat", "a_b": 1})
    assert to_wire(run.to_row({"route": "mail"})) == {
        "id": "intake:k3f9a2qz",
        "workspaceId": "ws-7",
        "sessionId": "th-1",
        "agentId": "bot",
        "domain": "support",
        "taskId": "intake",
        "status": "completed",
        "resultSummary": "answered",
        "cost": {
            "tokensIn": 900,
            "tokensOut": 140,
            "costUsd": 0.5,
            "wallMs": 250,
            "llmCalls": 1,
            "tokensKnown": True,
            "costKnown": True,
        },
        "startedAt": NOON,
        "completedAt": "1970-01-01T00:00:00.350Z",
        "metadata": {"route": "mail", "a_b": 1},
    }


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("completed", ("completed", None)),
        ("aborted", ("cancelled", None)),
        ("failed", ("failed", "why")),
        ("blocked", ("failed", "why")),
    ],
)
def test_10_a_run_ends_as_its_stream(status: Any, expected: tuple[str, str | None]) -> None:
    run = started()
    run.complete_from(FinalEvent(task=TASK, timestamp=NOON, status=status, reason="why"))
    row = run.to_row()
    assert (row.status, row.error) == expected


async def _work(run: RuntimeRun, work: Callable[[], None]) -> None:
    async with run:
        work()


def _raise(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


async def test_10_as_a_context_manager_it_completes_and_persists() -> None:
    rows = Rows()
    await _work(started(adapter=rows), lambda: None)
    with pytest.raises(OSError, match="no room"):
        await _work(started(adapter=rows), _raise(OSError("no room")))
    with pytest.raises(asyncio.CancelledError):
        await _work(started(adapter=rows), _raise(asyncio.CancelledError()))
    assert [(row.status, row.error) for row in rows.rows] == [
        ("completed", None),
        ("failed", "no room"),
        ("cancelled", None),
    ]


@pytest.mark.parametrize("as_sent", [lambda event: event, event_to_wire])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("completed", ("completed", None)),
        ("aborted", ("cancelled", None)),
        ("failed", ("failed", "why")),
        ("blocked", ("failed", "why")),
        ("a word of a later version", ("failed", "why")),
    ],
)
async def test_10_as_a_context_manager_it_ends_as_the_stream_that_it_observed(
    status: Any, expected: tuple[str, str | None], as_sent: Callable[[Any], object]
) -> None:
    rows = Rows()
    final = FinalEvent(task=TASK, timestamp=NOON, status=status, reason="why")
    async with started(adapter=rows) as run:
        run.observe(as_sent(final))
        assert run.status == "running"
    assert [(row.status, row.error) for row in rows.rows] == [expected]


class FullRows(Rows):
    def upsert(self, row: RuntimeRunRow) -> None:
        raise OSError("the disk is full")


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), KeyError("mine")])
async def test_1_2_r3_an_adapter_that_fails_hides_no_failure_of_the_block(
    raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(raised)):
        await _work(started(adapter=FullRows()), _raise(raised))
    assert "the disk is full" in caplog.text


async def test_10_r5_an_adapter_that_fails_behind_a_block_that_did_not_is_told() -> None:
    with pytest.raises(OSError, match="the disk is full"):
        await _work(started(adapter=FullRows()), lambda: None)


def test_bb_13_what_was_estimated_stands_apart_from_what_was_billed() -> None:
    run = started()
    run.prices = PriceList({"m": ModelPrice(input=1, output=2)}, version="1")
    run.observe(call(tokens_in=1, tokens_out=1, cost_usd=5))
    assert run.cost().estimated_usd is None
    run.observe(call(tokens_in=1_000, tokens_out=1_000))
    run.observe(call(tokens_in=1_000, tokens_out=1_000))
    assert (run.cost().cost_usd, run.cost().estimated_usd) == pytest.approx((5.006, 0.006))
    run.complete("completed", cost={"cost_usd": 5.01})
    assert (run.cost().cost_usd, run.cost().estimated_usd) == (5.01, None)


def test_a_call_without_a_cost_is_priced_where_there_are_prices() -> None:
    prices = PriceList({"m": ModelPrice(input=1, output=2)}, version="1")
    run = started()
    run.prices = prices
    run.observe(call(tokens_in=1_000, tokens_out=1_000))
    run.observe(call(tokens_in=1, tokens_out=1, cost_usd=5))
    assert run.cost().cost_usd == pytest.approx(5.003)
    assert run.cost().cost_known
    run.observe(LlmCallEvent(model="other", tokens_in=1, tokens_out=1))
    assert not run.cost().cost_known
    assert run.cost().cost_usd == pytest.approx(5.003)


@pytest.mark.parametrize("used", [{}, {"tokens_in": 1}, {"tokens_in": 1.5, "tokens_out": 1}])
def test_a_call_whose_tokens_are_not_known_has_no_price(used: dict[str, Any]) -> None:
    run = started()
    run.prices = PriceList({"m": ModelPrice(input=1, output=2)}, version="1")
    run.observe(call(**used))
    assert (run.cost().cost_usd, run.cost().cost_known) == (0, False)


def test_a_price_in_another_currency_is_no_cost_in_dollars() -> None:
    euros = PriceList({"m": ModelPrice(input=1, output=2)}, version="1", currency="EUR")
    run = started()
    run.prices = euros
    run.observe(call(tokens_in=1, tokens_out=1))
    assert (run.cost().cost_usd, run.cost().cost_known) == (0, False)


def test_the_ledger_knows_more_than_the_events() -> None:
    run = started(now=ticking(100, 350))
    run.observe(call(tokens_in=1, tokens_out=1, cost_usd=1))
    usage = UsageSum(
        calls=3,
        settled=2,
        unknown=1,
        tokens_in=20,
        tokens_out=30,
        cost_nanos={"USD": 1_500_000_000},
    )
    run.take_usage(usage._replace(uncounted=1, unpriced=1))
    assert (run.cost().tokens_known, run.cost().cost_known) == (False, False)
    run.take_usage(usage)
    run.complete("completed")
    assert run.cost() == RuntimeRunCost(20, 30, 1.5, 250, 3, estimated_usd=1.5)
    with pytest.raises(RuntimeRunStateError, match="completed"):
        run.take_usage(usage)


def test_costs_of_other_currencies_are_not_known_in_dollars() -> None:
    run = started()
    run.take_usage(UsageSum(calls=1, cost_nanos={"EUR": 1, "USD": 2_000_000_000}))
    assert (run.cost().cost_usd, run.cost().cost_known) == (2, False)


def test_10_r6_a_row_can_be_had_at_any_time() -> None:
    run = started(now=ticking(100, 350, 9_999))
    running = run.to_row()
    assert (running.status, running.completed_at) == ("running", None)
    assert running.cost.wall_ms == 250
    run.complete("completed", metadata={"a": 1, "b": 1})
    ended = run.to_row({"b": 2})
    assert (ended.status, ended.metadata) == ("completed", {"a": 1, "b": 2})
    assert run.to_row().metadata == {"a": 1, "b": 1}


async def test_the_words_of_an_error_are_masked_in_the_row_however_the_run_has_ended() -> None:
    key = "sk-" + "proj-Ab12Cd34Ef56Gh78Ij90"
    told = start_runtime_run(workspace_id="w", task_spec=TASK)
    told.complete("failed", error=f"401 for {key}")
    assert told.to_row().error == "401 for [redacted]"
    with pytest.raises(ValueError, match="401"):
        async with start_runtime_run(workspace_id="w", task_spec=TASK) as raised:
            raise ValueError(f"401 for {key}")
    assert raised.to_row().error == "401 for [redacted]"
