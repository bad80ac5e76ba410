"""Turns on Cloudflare's own Workflows engine, with their frames in a journal on D1."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from perdure import ChatTurnEngine, ChatTurnIdentity, Frame, Turn, frames
from perdure.engines.cloudflare import WorkflowStep, answer_on_workflow
from perdure.turn.identity import Asked
from tests.engines.workflow_engine import WorkflowEngine
from tests.store.d1_server import D1Server

pytestmark = [pytest.mark.node, pytest.mark.xdist_group("workflows")]
DEADLINE_S = 20
WHO = ChatTurnIdentity("", "kitchen", "ada", 0)


class Model:
    """A producer of two streams, whose second one hangs when it is first called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.hanging, self.leave = threading.Event(), threading.Event()

    async def say(self, name: str) -> AsyncIterator[Frame]:
        self.calls.append(name)
        for number in range(3):
            yield frames.text(f"{name}{number} ")
        if name == "b" and not self.hanging.is_set():
            self.hanging.set()
            await asyncio.to_thread(self.leave.wait, DEADLINE_S)
        yield frames.upstream_end("stop")

    async def produce(self, turn: Turn) -> AsyncIterator[Frame]:
        for name in ("a", "b"):
            async for frame in turn.stream(name, partial(self.say, name), result=len):
                yield frame


@pytest.mark.parametrize("old_attempt", ["dies", "lives on"])
async def test_a_turn_goes_on_behind_a_kill_and_is_told_once(
    workflow_engine: WorkflowEngine, d1: D1Server, old_attempt: str
) -> None:
    d1.clean()
    model = Model()

    async def main(step: WorkflowStep, instance: str) -> Any:
        binding = d1.binding()
        store = d1.store(binding)
        turns = ChatTurnEngine(store, produce=model.produce, recover=False)
        try:
            run = await answer_on_workflow(
                turns, step, workflow_name="chat", instance_id=instance, turn=WHO, asked=Asked("hi")
            )
            return run.state
        finally:
            await turns.aclose()
            await store.close()
            await binding.let_go()

    def crash_and_go_on() -> Any:
        instance = workflow_engine.create(main)
        assert model.hanging.wait(DEADLINE_S)
        workflow_engine.kill(leave_attempts=old_attempt == "lives on")
        workflow_engine.start()
        workflow_engine.wake(instance)
        state = workflow_engine.ended(instance)
        model.leave.set()
        return state

    assert await asyncio.to_thread(crash_and_go_on) == "completed"
    assert model.calls == ["a", "b", "b"]
    store = d1.store(d1.binding())
    [first, *_] = await store.read_steps("chat:kitchen:0")
    assert first.result["finalText"] == "a0 a1 a2 b0 b1 b2 "
    told = await store.read_frames("chat:kitchen:0")
    assert [frame.kind for frame in told].count("restarted") == 1
    await store.close()
    await d1.let_go()
