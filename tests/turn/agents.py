"""Producers of the usual kind: a model that streams, a tool, and what they leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from perdure.core.frames import Frame, text, tool_call, tool_result, upstream_end, usage
from perdure.core.records import StepRecord
from perdure.durable.steps import current_step
from perdure.turn.handout import Turn
from tests.turn.stage import TURN, Reader, Stage, until


def joined(frames: Sequence[Frame]) -> str:
    return "".join(frame.data["delta"] for frame in frames if frame.kind == "text")


class Model:
    """A model call that streams: counts its calls, and may wait, or die, in the middle."""

    def __init__(self, *deltas: str, hangs_at: int | None = None) -> None:
        self.deltas = deltas
        self.calls = 0
        self.keys: list[str] = []
        self.hangs_at = hangs_at

    def __call__(self) -> AsyncIterator[Frame]:
        return self.stream()

    async def stream(self) -> AsyncIterator[Frame]:
        self.calls += 1
        self.keys.append(current_step().idempotency_key)
        for index, delta in enumerate(self.deltas):
            if index == self.hangs_at:
                self.hangs_at = None
                await asyncio.Event().wait()
            yield text(delta)
        yield usage(tokens_in=1, tokens_out=len(self.deltas))
        yield upstream_end("stop")


class Tool:
    """A tool: counts its calls, and may never come back the first time."""

    def __init__(self, result: Any = "found", *, hangs: bool = False) -> None:
        self.calls = 0
        self.result = result
        self.hangs = hangs

    async def __call__(self) -> Any:
        self.calls += 1
        if self.hangs:
            self.hangs = False
            await asyncio.Event().wait()
        return self.result


Produce = Callable[[Turn], AsyncIterator[Any]]


def agent(ask: Model, tool: Tool, answer: Model, **effect: Any) -> Produce:
    """A model is asked, a tool is called, and the model answers: the usual loop."""

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        asking = turn.stream("ask", ask, result=joined)
        async for frame in asking:
            yield frame
        yield tool_call("c", "search", {"q": asking.result}, "idempotent")
        found = await turn.step("search", tool, kind="tool", **effect)
        yield tool_result("c", found)
        answering = turn.stream("answer", answer, result=joined)
        async for frame in answering:
            yield frame

    return produce


async def crash_when(
    stage: Stage, produce: Produce, condition: Callable[[], Any], **options: Any
) -> Reader:
    """Let a process die in the middle of a turn, and return a reader of what it had shown."""
    worker = await stage.worker(produce, **options)
    reader = Reader()
    submitted = await worker.engine.submit(TURN, "Hi")
    reading = asyncio.ensure_future(reader.follow(submitted.lines(wire="envelope")))
    await until(condition)
    await worker.kill()
    await asyncio.wait([reading])
    if not reading.cancelled():
        reading.exception()
    stage.lapse()
    return reader


async def steps_of(stage: Stage) -> dict[str, StepRecord]:
    steps = await (await stage.store()).read_steps("chat:s:0")
    return {step.intent: step for step in steps}


async def was_shown(stage: Stage, delta: str) -> bool:
    return any(frame.data.get("delta") == delta for frame in await stage.frames())
