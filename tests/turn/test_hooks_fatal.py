"""Hooks that raise what nobody expects: they never take a turn, or the workers, with them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from perdure.turn.hooks import ChatTurnHooks, EventFollower
from tests.turn.stage import COMPLETED, FAILED, TURN, Reader, Script, Stage, within, words


class Fatal(BaseException):
    """What is no Exception."""


class FatalEvents(ChatTurnHooks):
    def on_event(self, event: Mapping[str, Any]) -> None:
        raise Fatal


class FatalTransform(ChatTurnHooks):
    async def transform_final_text(self, text: str) -> str:
        raise Fatal


async def test_a_fatal_on_event_costs_no_attempt(stage: Stage) -> None:
    script = Script(words("Hello"))
    engine = await stage.engine(script, hooks=FatalEvents())
    submitted = await engine.submit(TURN, "Hi")
    reader = await within(Reader().follow(submitted.lines(wire="envelope")))
    assert (reader.kinds[-1], script.calls) == (COMPLETED, 1)


async def test_a_fatal_transform_fails_the_turn_after_one_call(stage: Stage) -> None:
    script = Script(words("Hello"))
    engine = await stage.engine(script, hooks=FatalTransform())
    submitted = await engine.submit(TURN, "Hi")
    reader = await within(Reader().follow(submitted.lines(wire="envelope")))
    assert (reader.kinds[-1], script.calls) == (FAILED, 1)


async def test_strikes_are_counted_before_any_hook_is_called(stage: Stage) -> None:
    """A hook that kills the process at the first event is called three times and no more."""
    called: list[int] = []

    class Deadly(ChatTurnHooks):
        def on_event(self, event: Mapping[str, Any]) -> None:
            called.append(1)
            killed.set()

    for _ in range(3):
        killed = asyncio.Event()
        worker = await stage.worker(Script([asyncio.Event()]), hooks=Deadly())
        await worker.engine.submit(TURN, "Hi")
        await within(killed.wait())
        await worker.kill()
        stage.lapse()
    before = len(called)
    recorded: list[str] = []

    class Recording(ChatTurnHooks):
        def on_event(self, event: Mapping[str, Any]) -> None:
            recorded.append(event["type"])

    engine = await stage.engine(Script(words("Hello")), hooks=Recording())
    submitted = await engine.submit(TURN, "Hi")
    await within(Reader().follow(submitted.lines(wire="envelope")))
    assert (await stage.run()).state == "parked"
    assert before >= 3


@pytest.mark.parametrize("failure", [asyncio.CancelledError, ValueError, Fatal])
async def test_an_async_on_event_that_fails_once_hears_what_follows(
    failure: type[BaseException],
) -> None:
    heard: list[int] = []

    class Hooks(ChatTurnHooks):
        async def on_event(self, event: Mapping[str, Any]) -> None:
            heard.append(event["n"])
            await asyncio.sleep(0)
            if event["n"] == 1:
                raise failure

    follower = EventFollower(Hooks())
    for number in range(4):
        follower.tell([{"type": "data", "n": number}])
        await asyncio.sleep(0)
    await within(follower.finish())
    assert heard == [0, 1, 2, 3]
