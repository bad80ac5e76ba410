"""Hooks that a turn waits for: whatever they do, it ends, and can be stopped or given back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.core.frames import text
from perdure.turn import calling
from perdure.turn.hooks import ChatTurnHooks
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    STOPPED,
    TURN,
    Script,
    Stage,
    crashed,
    errors_in,
    finish,
    is_in,
    until,
    within,
)


class Stuck:
    """A hook that hangs, and does not even let itself be cancelled at once if it is `stubborn`."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.calls = 0
        self.cancelled = 0
        self.stubborn = stubborn

    async def __call__(self, _value: Any) -> Any:
        self.calls += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            if self.stubborn:
                await asyncio.Event().wait()
            raise


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.turn.closing.INTERRUPTED_HOOK_MS", 20)


# transform_final_text.


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_stop_ends_a_turn_whose_transformation_hangs(stage: Stage, stubborn: bool) -> None:
    transform, kept = Stuck(stubborn=stubborn), list[Any]()
    hooks = ChatTurnHooks(transform_final_text=transform, persist_assistant_message=kept.append)
    engine = await stage.engine(hooks=hooks)
    await engine.submit(TURN, "Hi")
    await until(lambda: transform.calls)
    assert (await within(engine.stop(TURN))).state == "stopped"
    await until(lambda: kept)
    assert (kept[0].status, kept[0].final_text) == ("stopped", "Hello there")
    assert (transform.calls, transform.cancelled) == (1, 1)


async def test_a_turn_that_is_stopped_gives_a_transformation_little_time(stage: Stage) -> None:
    transform = Stuck()
    engine = await stage.engine(
        Script([text("Hel"), asyncio.Event()]), hooks=ChatTurnHooks(transform_final_text=transform)
    )
    await engine.submit(TURN, "Hi")
    await until(stage.frames)
    assert (await within(engine.stop(TURN))).state == "stopped"
    assert transform.cancelled == 1


async def test_a_drain_gives_a_turn_back_whose_transformation_hangs(stage: Stage) -> None:
    transform, script = Stuck(), Script()
    engine = await stage.engine(script, hooks=ChatTurnHooks(transform_final_text=transform))
    await engine.submit(TURN, "Hi")
    await until(lambda: transform.calls)
    await within(engine.aclose(drain_ms=0))
    run = await stage.run()
    assert (run.state, run.lease_holder_id, transform.cancelled) == ("running", None, 1)
    reader = await finish(await stage.engine(script))
    assert (reader.text, reader.kinds[-1], script.calls) == ("Hello there", COMPLETED, 1)


async def test_a_drain_lets_a_transformation_finish_that_needs_a_moment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.turn.closing.INTERRUPTED_HOOK_MS", 60_000)
    begun, gate = asyncio.Event(), asyncio.Event()

    async def transform(final: str) -> str:
        begun.set()
        await gate.wait()
        return final.upper()

    kept: list[Any] = []
    hooks = ChatTurnHooks(transform_final_text=transform, persist_assistant_message=kept.append)
    engine = await stage.engine(hooks=hooks)
    await engine.submit(TURN, "Hi")
    await within(begun.wait())
    closing = asyncio.ensure_future(engine.aclose(drain_ms=0))
    await asyncio.sleep(0)
    gate.set()
    await within(closing)
    assert (await stage.run()).state == "completed"
    assert kept[0].final_text == "HELLO THERE"


async def test_a_transformation_that_hangs_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "HOOK_TIMEOUT_MS", 10)
    engine = await stage.engine(hooks=ChatTurnHooks(transform_final_text=Stuck()))
    reader = await finish(engine)
    assert (reader.kinds[-1], errors_in(reader)) == (FAILED, ["internal"])


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_transformation_that_cancels_itself_fails_the_turn(
    stage: Stage, is_async: bool
) -> None:
    def cancel(_text: str) -> str:
        raise asyncio.CancelledError

    async def cancel_later(_text: str) -> str:
        raise asyncio.CancelledError

    transform: Any = cancel_later if is_async else cancel
    engine = await stage.engine(hooks=ChatTurnHooks(transform_final_text=transform))
    assert (await finish(engine)).kinds[-1] == FAILED
    assert (await stage.run()).state == "failed"


async def test_a_loop_that_shuts_down_in_a_transformation_gives_the_turn_back(
    stage: Stage,
) -> None:
    transform = Stuck()
    engine = await stage.engine(hooks=ChatTurnHooks(transform_final_text=transform))
    before = asyncio.all_tasks()
    await engine.submit(TURN, "Hi")
    await until(lambda: transform.calls)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    await until(lambda: was_given_back(stage))
    assert (await stage.run()).state == "running"


async def was_given_back(stage: Stage) -> bool:
    return (await stage.run()).lease_holder_id is None


# on_interrupted.


async def test_a_stop_ends_a_turn_whose_policy_hangs(stage: Stage) -> None:
    policy = Stuck()
    await crashed(stage, text("Hel"))
    engine = await stage.engine(on_interrupted=policy)
    await engine.submit(TURN, "Hi")
    await until(lambda: policy.calls)
    assert (await within(engine.stop(TURN))).state == "stopped"
    reader = await finish(engine)
    assert (reader.text, reader.kinds[-1], policy.cancelled) == ("Hel", STOPPED, 1)


async def test_a_drain_gives_a_turn_back_whose_policy_hangs(stage: Stage) -> None:
    policy = Stuck()
    await crashed(stage, text("Hel"))
    engine = await stage.engine(on_interrupted=policy)
    await engine.submit(TURN, "Hi")
    await until(lambda: policy.calls)
    await within(engine.aclose(drain_ms=0))
    assert await was_given_back(stage)
    assert await is_in(stage, "running")


async def test_a_policy_that_cancels_itself_fails_the_turn(stage: Stage) -> None:
    async def policy(_turn: Any) -> Any:
        raise asyncio.CancelledError

    await crashed(stage, text("Hel"))
    reader = await finish(await stage.engine(on_interrupted=policy))
    assert (reader.text, reader.kinds[-1]) == ("Hel", FAILED)
