"""A human decides about calls: asked once, waited for by nobody, told to the model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from perdure.agent.tool_approval import (
    Approval,
    ApprovalRequest,
    answer_approval,
    approval_of,
    pending_approvals,
)
from perdure.agent.tool_loop import ToolLoop, ToolLoopResult
from perdure.agent.tools import Tool, ToolCall
from perdure.core.records import JsonValue
from perdure.durable.context import DurableContext
from perdure.durable.runner import emit_event, run_durable
from perdure.durable.worker import Worker
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from tests.agent.looping import MANIFEST, told
from tests.agent.strict_provider import StrictProvider, calls, says
from tests.turn.stage import until

PAY = calls(("c1", "pay", {"amount": 7}))


@pytest.fixture
def store() -> RunStore:
    return MemoryStore(MemoryData())


class Bank:
    """Pays, and remembers what and under which key."""

    def __init__(self) -> None:
        self.paid: list[int] = []
        self.keys: list[str] = []

    def pay(self, amount: int, call: ToolCall) -> str:
        """Pay."""
        self.paid.append(amount)
        self.keys.append(call.idempotency_key)
        return f"paid {amount}"


async def pending(store: RunStore, count: int = 1) -> list[ApprovalRequest]:
    async def are_asked() -> bool:
        return len(await pending_approvals(store, "run")) == count

    await until(are_asked)
    return await pending_approvals(store, "run")


async def is_waiting(store: RunStore) -> bool:
    run = await store.read_run("run")
    return run is not None and run.state == "waiting"


@asynccontextmanager
async def running(store: RunStore, loop: ToolLoop) -> AsyncIterator[asyncio.Future[ToolLoopResult]]:
    """Run the loop in a worker; the future has its result."""
    ended: asyncio.Future[ToolLoopResult] = asyncio.get_running_loop().create_future()

    async def task(context: DurableContext) -> str:
        result = await loop.run(context, "Pay!")
        if not ended.done():
            ended.set_result(result)
        return result.text

    worker = Worker(store, tasks={"task": task}, concurrency_max=1)
    await worker.submit("task", run_id="run", manifest=MANIFEST)
    working = asyncio.ensure_future(worker.run())
    try:
        yield ended
    finally:
        await worker.drain(timeout_ms=0)
        await working


async def test_a_call_waits_for_a_human_without_a_worker(store: RunStore) -> None:
    bank, asked = Bank(), list[ApprovalRequest]()
    provider = StrictProvider(PAY, says("Paid."))
    tool = Tool(bank.pay, needs_approval=True)
    loop = ToolLoop(provider.backend(), [tool], notify=asked.append)
    async with running(store, loop) as ended:
        [request] = await pending(store)
        await until(lambda: is_waiting(store))
        run = await store.read_run("run")
        assert run is not None
        assert run.lease_holder_id is None
        assert run.wake_key == request.event
        assert (request.tool, request.arguments, request.call) == ("pay", {"amount": 7}, "c1")
        assert asked == [request]
        assert bank.paid == []
        assert await answer_approval(store, "run", request, Approval(True, by="Ada"))
        assert not await answer_approval(store, "run", request, Approval(False))
        result = await asyncio.wait_for(ended, 5)
    assert (result.text, bank.paid) == ("Paid.", [7])
    assert len(provider.prompts) == 2
    assert await pending_approvals(store, "run") == []


async def decided(
    store: RunStore, payload: JsonValue, **options: Any
) -> tuple[Bank, StrictProvider]:
    """Run a loop whose one call was decided so before it was asked for."""
    bank, provider = Bank(), StrictProvider(PAY, says("Done."))
    tool = Tool(bank.pay, **{"needs_approval": True, **options})

    async def task(context: DurableContext) -> str:
        if payload is not None:
            await context.emit_event("approval:loop:1.1", payload)
        return (await ToolLoop(provider.backend(), [tool]).run(context, "Pay!")).text

    await run_durable(store, run_id="run", manifest=MANIFEST, task=task)
    assert provider.refused == []
    return bank, provider


async def test_a_denial_and_its_reason_are_told_to_the_model(store: RunStore) -> None:
    bank, provider = await decided(store, {"approved": False, "reason": "too much"})
    error = json.loads(told(provider)[0])["error"]
    assert error == {"code": "denied", "message": "a human has denied this call: too much"}
    assert bank.paid == []


async def test_a_human_may_change_the_arguments(store: RunStore) -> None:
    bank, provider = await decided(store, {"approved": True, "arguments": {"amount": 5}})
    assert bank.paid == [5]
    answer = json.loads(told(provider)[0])
    assert answer["result"] == "paid 5"
    assert answer["note"] == 'a human has changed the arguments to {"amount": 5}'
    steps = {step.intent: step.result for step in await store.read_steps("run")}
    assert steps["event:approval:loop:1.1"] == {"approved": True, "arguments": {"amount": 5}}


async def test_arguments_that_do_not_fit_are_a_no(store: RunStore) -> None:
    bank, provider = await decided(store, {"approved": True, "arguments": {"amount": "all"}})
    assert bank.paid == []
    assert "approved with arguments that do not fit" in told(provider)[0]


@pytest.mark.parametrize("payload", ["yes", {"approve": True}, {"approved": "true"}, []])
async def test_a_decision_that_cannot_be_read_is_a_no(store: RunStore, payload: JsonValue) -> None:
    bank, provider = await decided(store, payload)
    assert bank.paid == []
    assert "the decision could not be read" in told(provider)[0]


async def test_nobody_who_decides_in_time_is_a_no(store: RunStore) -> None:
    bank, provider = await decided(store, None, approval_timeout_ms=5)
    assert bank.paid == []
    assert "nobody decided in time" in told(provider)[0]


async def test_a_tool_may_ask_for_some_arguments_only(store: RunStore) -> None:
    bank, _ = await decided(store, None, needs_approval=lambda given: given["amount"] > 100)
    assert bank.paid == [7]


async def test_other_calls_do_not_wait_and_decisions_come_in_any_order(store: RunStore) -> None:
    bank, looked = Bank(), list[str]()

    def look() -> str:
        looked.append("looked")
        return "seen"

    asked = calls(("a", "pay", {"amount": 1}), ("b", "look", {}), ("c", "pay", {"amount": 3}))
    provider = StrictProvider(asked, says("Done."))
    tools = [Tool(bank.pay, needs_approval=True), Tool(look, effect="pure")]
    async with running(store, ToolLoop(provider.backend(), tools)) as ended:
        first, second = await pending(store, 2)
        assert looked == ["looked"]
        await answer_approval(store, "run", second.event, Approval(True))
        await answer_approval(store, "run", first.event, Approval(False, "no"))
        await asyncio.wait_for(ended, 5)
    assert bank.paid == [3]
    assert [text[:9] for text in told(provider)] == ['{"error":', "seen", "paid 3"]


async def test_a_notice_that_fails_is_tried_again(store: RunStore) -> None:
    tries: list[ApprovalRequest] = []

    async def mail(request: ApprovalRequest) -> None:
        tries.append(request)
        if len(tries) == 1:
            raise ConnectionError("no mail today")

    provider = StrictProvider(PAY, says("Done."))
    loop = ToolLoop(provider.backend(), [Tool(Bank().pay, needs_approval=True)], notify=mail)
    async with running(store, loop) as ended:
        [request] = await pending(store)
        await answer_approval(store, "run", request, Approval(True))
        await asyncio.wait_for(ended, 5)
    assert len(tries) == 2


async def test_an_answer_that_is_none_is_refused(store: RunStore) -> None:
    undecided: Any = "maybe"
    with pytest.raises(UsageError, match="approved must be"):
        await answer_approval(store, "run", "key", Approval(undecided))
    with pytest.raises(UsageError, match="denied has no arguments"):
        await answer_approval(store, "run", "key", Approval(False, arguments={}))
    with pytest.raises(RunNotFoundError):
        await answer_approval(store, "run", "key", Approval(True))


def test_equal_arguments_are_no_change() -> None:
    tool = Tool(Bank().pay)
    payload = {"approved": True, "arguments": {"amount": 7}, "by": "Ada", "reason": "fine"}
    assert approval_of(payload, tool, arguments={"amount": 7}) == Approval(True, "fine", by="Ada")


async def test_an_event_of_anybody_else_decides_nothing(store: RunStore) -> None:
    bank, provider = Bank(), StrictProvider(PAY, says("Paid."))
    loop = ToolLoop(provider.backend(), [Tool(bank.pay, needs_approval=True)])
    async with running(store, loop) as ended:
        [request] = await pending(store)
        await emit_event(store, "run", "approval:loop:1.2", {"approved": True})
        assert await pending_approvals(store, "run") == [request]
        assert bank.paid == []
        await answer_approval(store, "run", request, Approval(True))
        await asyncio.wait_for(ended, 5)
