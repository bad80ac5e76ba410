"""What a provider has counted of a call reaches the ledger whole, by whichever way it is made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from perdure.agent.callable_backend import CallableBackend
from perdure.agent.model_backend import ModelBackend
from perdure.agent.runtime_run import start_runtime_run
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import InMemoryRuntimeSessionStore
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_frames import AgentTaskProducer
from perdure.agent.tool_limits import usd_by
from perdure.agent.tool_loop import ToolLoop
from perdure.backends.protocol import Backend
from perdure.backends.scripted import ScriptedBackend
from perdure.core.frames import Frame, text, upstream_end, usage
from perdure.core.records import AgentTaskSpec, UsageRecord
from perdure.observe.prices import ModelPrice, PriceList
from perdure.store.memory import MemoryStore
from perdure.turn.answering import answer_with
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import ChatTurnIdentity
from tests.agent.looping import run
from tests.turn.stage import events_of

USED = usage(
    provider="p",
    model="m",
    request_id="req-1",
    tokens_in=1_000_000,
    tokens_out=1_000_000,
    tokens_cached=400_000,
    tokens_cache_written=100_000,
    tokens_reasoning=250_000,
)
PRICES = PriceList(
    {"m": ModelPrice(input=10, output=20, cached=1, cache_written=40, reasoning=4)}, version="1"
)
DOLLARS = 5 + 0.4 + 4 + 15 + 1
"""Half a million tokens are new, and three quarters of the output were not spent on reasoning."""
SCRIPT = [text("Warm."), USED, upstream_end("stop")]
TASK = AgentTaskSpec("t", "Say how warm it is")


def asked() -> Backend:
    return ScriptedBackend(SCRIPT)


async def tell(input: object) -> AsyncIterator[Frame]:
    for frame in SCRIPT:
        yield frame


def of_task(backend: Any) -> AgentTaskProducer:
    sessions = InMemoryRuntimeSessionStore()
    return AgentTaskProducer(backend, task_of=lambda turn: TASK, sessions=sessions)


async def in_a_turn(store: MemoryStore, producer: Any) -> str:
    engine = ChatTurnEngine(store, produce=producer)
    await events_of(await engine.submit(ChatTurnIdentity("", "s", "ann", 0), "How warm?"))
    await engine.aclose()
    return "chat:s:0"


async def in_a_run(store: MemoryStore, producer: Any) -> str:
    await run(store, producer)
    return "run"


WAYS: dict[str, tuple[Callable[[MemoryStore, Any], Any], Callable[[], Any]]] = {
    "answer": (in_a_turn, lambda: answer_with(asked())),
    "task": (in_a_turn, lambda: of_task(ModelBackend(asked()))),
    "function": (in_a_turn, lambda: of_task(CallableBackend(tell))),
    "loop in a turn": (in_a_turn, lambda: ToolLoop(asked(), [])),
    "loop in a run": (in_a_run, lambda: ToolLoop(asked(), [])),
}


@pytest.mark.parametrize("way", WAYS)
async def test_every_count_is_in_the_ledger(way: str) -> None:
    store = MemoryStore()
    work, producer = WAYS[way]
    run_id = await work(store, producer())
    rows: list[UsageRecord] = [
        row for row in (await store.read_details(run_id)).usage if row.tokens_in
    ]
    [row] = rows
    known = USED.data
    assert (row.state, row.provider, row.model) == ("settled", "p", "m")
    assert row.request_id == "req-1"
    assert (row.tokens_in, row.tokens_out) == (known["in"], known["out"])
    assert (row.tokens_cached, row.tokens_cache_written) == (known["cached"], 100_000)
    assert row.tokens_reasoning == known["reasoning"]


async def test_a_limit_of_money_and_a_run_handle_price_every_count() -> None:
    loop = ToolLoop(asked(), [], cost_usd=usd_by(PRICES))
    assert (await run(MemoryStore(), loop)).cost_usd == pytest.approx(DOLLARS)
    handle = start_runtime_run(workspace_id="w", task_spec=TASK)
    handle.prices = PRICES
    stream = run_agent_task_stream(
        TASK, ModelBackend(asked()), session=SessionChoice(InMemoryRuntimeSessionStore())
    )
    async for event in stream:
        handle.observe(event)
    assert handle.cost().cost_usd == pytest.approx(DOLLARS)
