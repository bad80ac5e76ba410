"""The answer of a task that goes on upstream is joined after a crash, not asked for again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.agent.model_backend import ModelBackend
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream_frames import AgentTaskProducer, TaskTurn
from perdure.core.frames import reasoning, text, tool_call, upstream_end, usage
from perdure.core.records import AgentTaskSpec
from perdure.turn.identity import run_id_of
from tests.agent.streaming import Played, said
from tests.turn.agents import crash_when
from tests.turn.conftest import stage
from tests.turn.provider import ProvidedBackend, Provider, in_halves
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    RESTARTED,
    TURN,
    Reader,
    Stage,
    finish,
    until,
    within,
)

__all__ = ["stage"]

ANSWER = [
    reasoning("Hm."),
    text("Hello"),
    text(" there"),
    tool_call("c", "look", {"at": 2}),
    usage(tokens_in=3, tokens_out=2),
    upstream_end("stop"),
]


def task_of(turn: TaskTurn) -> AgentTaskSpec:
    return AgentTaskSpec("t-9", "Answer a question of the kitchen")


async def produce_of(stage: Stage, provider: Provider) -> AgentTaskProducer:
    sessions = DurableSessionStore(await stage.store())
    backend = ModelBackend(ProvidedBackend(provider))
    return AgentTaskProducer(backend, task_of=task_of, sessions=sessions)


async def told(stage: Stage) -> int:
    """Return how many frames of the answer are stored."""
    kinds = {"reasoning", "text", "tool_call"}
    return sum(1 for frame in await stage.frames() if frame.kind in kinds)


async def lost(stage: Stage, provider: Provider, frames: int) -> Reader:
    """Let a worker die that has shown so many frames of the provider's answer."""
    await provider.give(frames)

    async def was_shown() -> bool:
        run = await (await stage.store()).read_run(run_id_of(TURN))
        is_begun = run is not None and run.upstream is not None
        return is_begun and await told(stage) == frames

    return await crash_when(stage, await produce_of(stage, provider), was_shown)


@pytest.mark.parametrize("frames", range(5))
async def test_an_answer_is_joined_where_readers_are(stage: Stage, frames: int) -> None:
    provider = Provider(ANSWER)
    provider.cut = in_halves
    reader = await lost(stage, provider, frames)
    await provider.give()
    engine = await stage.engine(await produce_of(stage, provider), on_interrupted="fail")
    await engine.submit(TURN, "Hi")
    await reader.read(engine)
    assert (reader.text, reader.kinds[-1]) == ("Hello there", COMPLETED)
    assert RESTARTED not in reader.kinds
    assert (len(provider.prompts), len(provider.attached)) == (1, 1)
    first, second = (await stage.details()).usage
    assert (first.state, second.state, second.tokens_in) == ("unknown", "settled", 3)
    sessions = DurableSessionStore(await stage.store()).beside(run_id_of(TURN))
    session = await sessions.get("chat:s")
    assert session is not None
    assert session.status == "completed"


async def test_a_silent_answer_is_joined_as_well(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 0)
    engine = await stage.engine(await produce_of(stage, provider))
    submitted = await engine.submit(TURN, "Hi")
    reading = asyncio.ensure_future(Reader().follow(submitted.lines(wire="envelope")))
    await until(lambda: len(provider.attached) == 1 and provider.listeners == 1)
    await provider.give()
    assert (await within(reading)).text == "Hello there"
    assert len(provider.prompts) == 1


async def test_an_answer_that_is_not_kept_is_asked_for_again(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 0)
    provider.forget()
    await provider.give()
    reader = await finish(await stage.engine(await produce_of(stage, provider)))
    assert (reader.text, reader.kinds[-1]) == ("Hello there", COMPLETED)
    assert (len(provider.prompts), len(provider.attached)) == (2, 1)


async def test_an_answer_that_is_another_one_is_asked_for_again(stage: Stage) -> None:
    provider = Provider(ANSWER)
    provider.cut = lambda frame: (text("Ha!"), frame)
    await lost(stage, provider, 2)
    await provider.give()
    reader = await finish(await stage.engine(await produce_of(stage, provider)))
    assert (reader.text, reader.kinds.count(RESTARTED)) == ("Hello there", 1)
    assert (len(provider.prompts), provider.listeners) == (2, 0)


async def test_a_stop_ends_the_answer_upstream(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await provider.give(2)
    engine = await stage.engine(await produce_of(stage, provider))
    await engine.submit(TURN, "Hi")
    await until(lambda: told(stage))
    await engine.stop(TURN)
    await until(lambda: provider.cancelled)
    assert provider.cancelled == [{"answer": "answer-1"}]


async def test_the_same_question_has_the_same_key(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 0)
    provider.forget()
    await provider.give()
    await finish(await stage.engine(await produce_of(stage, provider)))
    first, second = (prompt.idempotency_key for prompt in provider.prompts)
    assert first == second
    assert first is not None


async def test_a_backend_whose_answers_end_with_it_is_asked_again(stage: Stage) -> None:
    sessions = DurableSessionStore(await stage.store())

    async def save(kept: Any) -> None:
        await kept.save({"answer": "a"})

    class Saving(Played):
        async def stream(self, input: Any, context: Any, /) -> Any:
            await save(input.upstream)
            async for event in super().stream(input, context):
                yield event

    hangs = asyncio.Event()

    async def hang() -> None:
        hangs.set()
        await asyncio.Event().wait()

    first = AgentTaskProducer(Saving(*said("a"), hang), task_of=task_of, sessions=sessions)
    await crash_when(stage, first, hangs.is_set)
    second = AgentTaskProducer(Played(*said("b")), task_of=task_of, sessions=sessions)
    reader = await finish(await stage.engine(second))
    assert (reader.text, reader.kinds[-1]) == ("b", COMPLETED)
    assert FAILED not in reader.kinds
