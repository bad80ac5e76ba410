"""A turn that waited is gone on with by another process: a wait is no interruption."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from perdure.core.frames import Frame, data, text, upstream_end
from perdure.core.records import JsonValue
from perdure.durable.runner import emit_event
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    RESTARTED,
    TURN,
    Reader,
    Stage,
    is_in,
    until,
)

RUN = run_id_of(TURN)


async def deciding(turn: Turn) -> AsyncIterator[Frame]:
    """Ask two questions one after the other; what is shown before a wait belongs to no step."""
    yield text("Let me see. ")
    found = await turn.step("look", lambda: "two doors")
    for door in ("red", "blue"):
        yield text(f"I found {found}: ")
        yield data("question", door)
        answer: JsonValue = await turn.await_event(door, timeout_ms=None)
        yield text(f"{door} {answer}. ")
    yield text("Done.")
    yield upstream_end("stop")


WHOLE = "Let me see. I found two doors: red yes. I found two doors: blue no. Done."


async def waits(stage: Stage, engine: ChatTurnEngine, epoch: int, key: str = "red") -> None:
    await engine.submit(TURN, "Hi")

    async def is_asked() -> bool:
        run = await stage.run()
        return (run.state, run.epoch, run.wake_key) == ("waiting", epoch, key)

    await until(is_asked)


def questions(reader: Reader) -> list[Any]:
    return [event["data"] for event in reader.events if event["type"] == "question"]


@pytest.mark.parametrize("policy", ["rerun", "fail"])
async def test_readers_see_a_question_once_however_many_processes_wait_for_its_answer(
    stage: Stage, policy: Any
) -> None:
    first, second, third, fourth = [
        await stage.engine(deciding, on_interrupted=policy) for _ in range(4)
    ]
    await waits(stage, first, 1)
    stays = Reader()
    reading = asyncio.ensure_future(stays.read(first))
    comes_back = await Reader().read(first, lines_max=4)
    await waits(stage, second, 2)
    await waits(stage, third, 3)
    await emit_event(await stage.store(), RUN, "red", "yes")
    await waits(stage, third, 4, "blue")
    await waits(stage, fourth, 5, "blue")
    await emit_event(await stage.store(), RUN, "blue", "no")
    await reading
    await comes_back.read(fourth)
    for reader in (stays, comes_back, await Reader().read(first)):
        assert (reader.text, reader.kinds[-1]) == (WHOLE, COMPLETED)
        assert questions(reader) == ["red", "blue"]
        assert RESTARTED not in reader.kinds
    assert stays.seqs == sorted(set(stays.seqs))
    assert (await stage.answer())["finalText"] == WHOLE


async def test_a_process_that_dies_between_two_waits_takes_back_only_what_no_step_keeps(
    stage: Stage,
) -> None:
    stuck = asyncio.Event()

    async def sticking(turn: Turn) -> AsyncIterator[Frame]:
        async for frame in deciding(turn):
            yield frame
            if frame.kind == "text" and frame.data["delta"] == "red yes. ":
                await stuck.wait()

    worker = await stage.worker(sticking)
    await waits(stage, worker.engine, 1)
    await emit_event(await stage.store(), RUN, "red", "yes")
    reader = await Reader().read(worker.engine, lines_max=5)
    assert reader.text.endswith("red yes. ")
    await worker.kill()
    stage.lapse()
    second, third = await stage.engine(deciding), await stage.engine(deciding)
    await waits(stage, second, 3, "blue")
    # What was kept behind a restart is kept by the next one too.
    await waits(stage, third, 4, "blue")
    await emit_event(await stage.store(), RUN, "blue", "no")
    await reader.read(third)
    assert reader.kinds.count(RESTARTED) == 1
    assert (await stage.answer())["finalText"] == WHOLE
    late = await Reader().read(second)
    assert (late.text, questions(late)) == (WHOLE, ["red", "blue"])


async def test_a_restart_keeps_the_mark_of_a_wait_for_the_process_after_the_next(
    stage: Stage,
) -> None:
    async def beside(turn: Turn) -> AsyncIterator[Frame]:
        yield text("May I? ")
        waiting = asyncio.ensure_future(turn.await_event("red", timeout_ms=None))
        await until(lambda: is_in(stage, "waiting"))
        yield text("Still here. ")
        yield text(f"You said {await waiting}.")

    first = await stage.engine(beside)
    await first.submit(TURN, "Hi")
    reader = await Reader().read(first, lines_max=3)
    assert reader.text == "May I? Still here. "
    await until(lambda: _sleeps_again(stage))
    dies = await stage.worker(_dying(stage))
    await dies.engine.submit(TURN, "Hi")
    # Its restart is written, its wait not asked for.
    await until(lambda: _has_restarted(stage))
    await dies.kill()
    stage.lapse()
    last = await stage.engine(beside)
    await last.submit(TURN, "Hi")
    await until(lambda: _sleeps_again(stage, 5))
    await emit_event(await stage.store(), RUN, "red", "yes")
    await reader.read(last)
    assert (reader.kinds[-1], reader.kinds.count(RESTARTED)) == (COMPLETED, 1)
    late = await Reader().read(last)
    assert late.text.count("May I? ") == 1


def _dying(stage: Stage) -> Callable[[Turn], AsyncIterator[Frame]]:
    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        yield text("May I? ")
        await asyncio.Event().wait()

    return produce


async def _sleeps_again(stage: Stage, epoch: int = 2) -> bool:
    """Return whether it sleeps behind what it has shown beside its wait."""
    run = await stage.run()
    return (run.state, run.epoch) == ("waiting", epoch)


async def _has_restarted(stage: Stage) -> bool:
    return any(frame.kind == "restarted" for frame in await stage.frames())


async def test_a_policy_is_not_asked_about_a_turn_that_waited(stage: Stage) -> None:
    async def policy(_: Any) -> str:
        raise AssertionError("nothing was interrupted")

    first = await stage.engine(deciding, on_interrupted=policy)
    await waits(stage, first, 1)
    await first.aclose(drain_ms=0)
    second = await stage.engine(deciding, on_interrupted=policy)
    await waits(stage, second, 2)
    for key, answer in (("red", "yes"), ("blue", "no")):
        await emit_event(await stage.store(), RUN, key, answer)
    assert (await Reader().read(second)).text == WHOLE


async def test_what_was_cut_off_beside_a_wait_is_left_to_the_policy(stage: Stage) -> None:
    async def beside(turn: Turn) -> AsyncIterator[Frame]:
        waiting = asyncio.ensure_future(turn.await_event("red", timeout_ms=None))
        await until(lambda: is_in(stage, "waiting"))
        yield text("Still here. ")
        yield text(f"You said {await waiting}.")

    first = await stage.engine(beside)
    await first.submit(TURN, "Hi")
    await until(lambda: _sleeps_again(stage))
    await first.aclose(drain_ms=0)
    second = await stage.engine(beside, on_interrupted="fail")
    await second.submit(TURN, "Hi")
    assert (await Reader().read(second)).kinds[-1] == FAILED
