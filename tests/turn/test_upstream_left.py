"""Answers that go on upstream although their turn does not join them: they are ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from perdure.core.frames import Frame, text, upstream_end
from perdure.turn.answering import answer_with
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of
from tests.turn.agents import crash_when, joined
from tests.turn.provider import ProvidedBackend, Provider
from tests.turn.stage import RESTARTED, TURN, Reader, Script, Stage, finish, until, words

ANSWER = [text("Hello"), text(" there"), upstream_end("stop")]
FIRST = {"answer": "answer-1"}


async def lost(stage: Stage, provider: Provider, frames: int) -> Reader:
    """Let a worker die that has shown so many frames of the provider's answer."""
    await provider.give(frames)

    async def was_shown() -> bool:
        run = await (await stage.store()).read_run(run_id_of(TURN))
        is_begun = run is not None and run.upstream is not None
        return is_begun and len(await stage.frames()) == provider.given

    return await crash_when(stage, answer_with(ProvidedBackend(provider)), was_shown)


async def test_an_answer_that_is_another_one_is_ended(stage: Stage) -> None:
    provider = Provider(ANSWER)
    provider.cut = lambda frame: (text("Ha!"), frame)
    await lost(stage, provider, 1)
    await provider.give()
    reader = await finish(await stage.engine(answer_with(ProvidedBackend(provider))))
    assert (reader.text, len(provider.prompts)) == ("Hello there", 2)
    await until(lambda: provider.cancelled == [FIRST])


async def test_an_answer_that_cannot_be_joined_is_ended_beside_the_next_one(
    stage: Stage,
) -> None:
    provider = Provider(ANSWER)
    produce: Any = answer_with(ProvidedBackend(provider))

    async def attach(_turn: Turn) -> AsyncIterator[Frame]:
        raise TimeoutError("the provider is too slow")

    await lost(stage, provider, 1)
    await provider.give()
    produce.attach = attach
    reader = await finish(await stage.engine(produce))
    assert (reader.text, reader.kinds.count(RESTARTED)) == ("Hello there", 1)
    await until(lambda: provider.cancelled == [FIRST])


async def test_an_answer_of_a_producer_that_joins_none_is_ended(stage: Stage) -> None:
    ended: list[Any] = []

    class Own(Script):
        async def cancel(self, handle: Any) -> None:
            ended.append(handle)

    provider = Provider(ANSWER)
    await lost(stage, provider, 1)
    assert (await finish(await stage.engine(Own(words("whole"))))).text == "whole"
    await until(lambda: ended == [FIRST])


async def test_a_provider_that_does_not_end_an_answer_does_not_hold_up_the_next_one(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(Script):
        async def cancel(self, handle: Any) -> None:
            raise RuntimeError("no such answer")

    await lost(stage, Provider(ANSWER), 1)
    assert (await finish(await stage.engine(Own(words("whole"))))).text == "whole"
    await until(lambda: "could not be ended" in caplog.text)


async def test_an_answer_may_be_as_long_in_coming_as_the_turn_may_be_silent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 1)
    provider.given = 0
    for module in ("calling", "upstream"):
        monkeypatch.setattr(f"perdure.turn.{module}.HOOK_TIMEOUT_MS", 0)
    produce = answer_with(ProvidedBackend(provider))
    engine = await stage.engine(produce, idle_timeout_ms=60_000)
    await engine.submit(TURN, "Hi")
    await until(lambda: provider.listeners)
    await provider.give()
    reader = Reader()
    await reader.read(engine)
    assert (reader.text, len(provider.prompts)) == ("Hello there", 1)


async def test_an_answer_that_is_joined_is_not_ended(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 1)
    await provider.give()
    engine = await stage.engine(answer_with(ProvidedBackend(provider)))
    assert (await finish(engine)).text == "Hello there"
    await engine.aclose()
    assert (provider.cancelled, len(provider.prompts)) == ([], 1)


async def test_the_answer_of_a_stream_that_was_broken_off_is_ended_with_its_turn(
    stage: Stage,
) -> None:
    provider = Provider(ANSWER)
    backend = ProvidedBackend(provider)

    class Hasty:
        async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
            prompt: Any = None
            asking = turn.stream("ask", lambda: backend.stream(prompt), result=joined)
            async with aclosing(cast("AsyncGenerator[Frame]", aiter(asking))) as frames:
                yield await anext(frames)
            yield text(" world")

        async def cancel(self, handle: Any) -> None:
            await backend.cancel(handle)

    await provider.give()
    assert (await finish(await stage.engine(Hasty()))).text == "Hello world"
    await until(lambda: provider.cancelled == [FIRST])
