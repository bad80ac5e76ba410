"""Forks of turns: another revision, with the steps and frames before the one it is forked from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.core.frames import fold_parts, text, text_of
from perdure.core.records import RunRecord
from perdure.durable.forking import ForkOrigin, fork, fork_origin, preview_fork
from perdure.errors import (
    FramesExpiredError,
    RunNotFoundError,
    SessionBusyError,
    UsageError,
)
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from tests.turn.agents import Model, Tool, agent, crash_when, was_shown
from tests.turn.stage import COMPLETED, NEXT, RESTARTED, TURN, Reader, Stage, finish, until, within

FORKED = TURN._replace(revision=1)
RUN, AGAIN = "chat:s:0", "chat:s:0~1"


@pytest.fixture(params=["memory", "sqlite"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    data = MemoryData()

    async def open_handle(clock: ManualClock) -> RunStore:
        if request.param == "memory":
            return MemoryStore(data, clock=clock)
        return await open_store(f"sqlite:{tmp_path / 'runs.db'}", durability="normal", clock=clock)

    async with Stage(open_handle) as stage:
        yield stage


async def texts_of(stage: Stage, turn: Any = FORKED) -> str:
    return text_of(fold_parts(await stage.frames(turn)))


async def go_on(stage: Stage, engine: ChatTurnEngine, forked: RunRecord) -> Reader:
    """Let the engine's worker find the fork, and read it to its end."""
    turn = TURN._replace(revision=forked.revision)
    reader = Reader()
    await within(reader.read(engine, turn))
    return reader


async def test_a_fork_of_a_turn_is_its_next_revision_and_keeps_what_was_shown(
    stage: Stage,
) -> None:
    ask, tool, answer = Model("Let", " me"), Tool(), Model(" see:", " found")
    engine = await stage.engine(agent(ask, tool, answer), recover=True)
    await finish(engine)
    store = await stage.store()
    answer.deltas = (" look:", " here")
    forked = await fork(store, RUN, from_step=3)
    assert (forked.run_id, forked.revision, forked.session_id) == (AGAIN, 1, "s")
    assert fork_origin(forked) == ForkOrigin(RUN, 3)
    assert (forked.parent_run_id, forked.handler) == (None, "chat")
    reader = await go_on(stage, engine, forked)
    assert reader.text == "Let me look: here"
    assert (ask.calls, tool.calls, answer.calls) == (1, 1, 2)
    assert RESTARTED not in reader.kinds
    assert reader.kinds[-1] == COMPLETED
    original, again = await stage.answer(), await stage.answer(FORKED)
    assert (original["finalText"], again["finalText"]) == ("Let me see: found", "Let me look: here")
    assert [part["k"] for part in again["parts"]] == ["text", "tool_call", "tool_result", "text"]


@pytest.mark.parametrize(
    ("from_step", "shown", "calls"),
    [
        (1, "", (2, 2, 2)),
        (2, "Let me", (1, 2, 2)),
        (3, "Let me", (1, 1, 2)),
        (4, "Let me see", (1, 1, 1)),
    ],
)
async def test_readers_get_at_once_what_belongs_to_the_kept_steps(
    stage: Stage, from_step: int, shown: str, calls: tuple[int, ...]
) -> None:
    ask, tool, answer = Model("Let", " me"), Tool(), Model(" see")
    produce = agent(ask, tool, answer)
    await finish(await stage.engine(produce))
    store = await stage.store()
    preview = await preview_fork(store, RUN, from_step=from_step)
    assert (preview.new_run_id, preview.handler) == (AGAIN, "chat")
    assert len(preview.kept) + len(preview.again) == 1 + 3  # Step 0 is the answer.
    forked = await fork(store, RUN, from_step=from_step)
    assert await texts_of(stage) == shown
    assert len(await stage.frames(FORKED)) == preview.frames
    reader = await go_on(stage, await stage.engine(produce, recover=True), forked)
    assert reader.text == "Let me see"
    assert (ask.calls, tool.calls, answer.calls) == calls


async def test_a_fork_of_a_turn_that_was_taken_over_has_what_its_readers_kept(
    stage: Stage,
) -> None:
    ask, tool, answer = Model("Let", " me"), Tool(), Model(" see", " lost", hangs_at=1)
    produce = agent(ask, tool, answer)
    await crash_when(stage, produce, lambda: was_shown(stage, " see"))
    answer.deltas = (" find", " it")
    first = await finish(await stage.engine(produce))
    assert first.text == "Let me find it"
    store = await stage.store()
    for from_step, shown in ((2, "Let me"), (3, "Let me"), (4, "Let me find it")):
        forked = await fork(store, RUN, from_step=from_step)
        turn = TURN._replace(revision=forked.revision)
        assert await texts_of(stage, turn) == shown
        ends = [step.frames_to for step in await store.read_steps(forked.run_id)]
        assert ends[-1] == len(await stage.frames(turn)), "its frames count from 1"
        engine = await stage.engine(produce, recover=True)
        assert (await go_on(stage, engine, forked)).text == "Let me find it"
        await engine.aclose(drain_ms=0)


async def test_a_parked_turn_is_forked(stage: Stage) -> None:
    ask, tool, answer = Model("Let", " me"), Tool(), Model(" see", hangs_at=0)
    produce = agent(ask, tool, answer)

    async def asked() -> bool:
        return answer.calls > 0

    await crash_when(stage, produce, asked, strikes_max=1)
    engine = await stage.engine(produce, strikes_max=1)
    await finish(engine)
    assert (await stage.run()).state == "parked"
    store = await stage.store()
    forked = await fork(store, RUN, from_step=3)
    other = await stage.engine(produce, recover=True)
    assert (await go_on(stage, other, forked)).text == "Let me see"
    assert (ask.calls, tool.calls) == (1, 1)
    assert (await stage.run()).state == "parked"


async def test_the_fork_of_a_later_turn_has_the_same_history(stage: Stage) -> None:
    seen: list[Any] = []

    async def produce(turn: Turn) -> AsyncIterator[Any]:
        seen.append(list(turn.history))
        word = await turn.step("word", lambda: f"word {len(seen)}")
        yield text(word)

    engine = await stage.engine(produce, recover=True)
    await finish(engine)
    await finish(engine, NEXT, "And?")
    store = await stage.store()
    other = await fork(store, RUN, from_step=1)
    assert (await go_on(stage, engine, other)).text == "word 3", "a newer answer before it"
    forked = await fork(store, "chat:s:1", from_step=1)
    assert (forked.run_id, forked.parent_run_id) == ("chat:s:1~1", RUN)
    await within(Reader().read(engine, NEXT._replace(revision=1)))
    assert seen[3] == seen[1] != []


async def test_the_same_fork_of_a_turn_is_begun_once_until_somebody_goes_on(
    stage: Stage,
) -> None:
    await finish(await stage.engine(agent(Model("a"), Tool(), Model("b"))))
    store = await stage.store()
    named = await fork(store, RUN, from_step=2, new_run_id="chat:s:0~1")
    assert named.revision == 1
    assert await fork(store, RUN, from_step=2, new_run_id="chat:s:0~1") == named
    with pytest.raises(SessionBusyError):
        await fork(store, RUN, from_step=2)


async def test_a_turn_of_somebody_else_or_of_no_such_step_is_refused(stage: Stage) -> None:
    await finish(await stage.engine(agent(Model("a"), Tool(), Model("b"))))
    store = await stage.store()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"from_step": 0}, "step 0 of a turn is its answer"),
        ({"from_step": 1, "input": {"userMessage": "?"}}, "submit a new revision"),
        ({"from_step": 5}, "from step 1 to 4"),
        ({"from_step": 1, "new_run_id": RUN}, "one of its revisions, up to 1"),
        ({"from_step": 1, "new_run_id": "chat:s:0~0"}, "one of its revisions, up to 1"),
        ({"from_step": 1, "new_run_id": "chat:s:0~01"}, "one of its revisions, up to 1"),
        ({"from_step": 1, "new_run_id": "chat:s:1~1"}, "one of its revisions, up to 1"),
        ({"from_step": 1, "new_run_id": "chat:s:0~2"}, "one of its revisions, up to 1"),
        ({"from_step": 1, "new_run_id": "mine"}, "one of its revisions, up to 1"),
    ]
    for options, culprit in cases:
        with pytest.raises(UsageError, match=culprit):
            await fork(store, RUN, **options)
    with pytest.raises(RunNotFoundError):
        await fork(store.for_tenant("acme"), RUN, from_step=1)
    assert [run.run_id for run in await store.list_runs()] == [RUN]


async def test_without_its_frames_a_turn_is_forked_from_its_begin_only(stage: Stage) -> None:
    produce = agent(Model("a"), Tool(), Model("b"))
    await finish(await stage.engine(produce))
    store = await stage.store()
    await store.delete(RUN, frames_only=True)
    with pytest.raises(FramesExpiredError, match="fork it from step 1"):
        await fork(store, RUN, from_step=2)
    forked = await fork(store, RUN, from_step=1)
    reader = await go_on(stage, await stage.engine(produce, recover=True), forked)
    assert reader.text == "ab"


async def test_a_turn_that_is_in_flight_leaves_no_place_for_a_fork(stage: Stage) -> None:
    ask, tool = Model("Let", " me"), Tool(hangs=True)
    engine = await stage.engine(agent(ask, tool, Model("b")))
    await engine.submit(TURN, "Hi")
    await until(lambda: tool.calls)
    store = await stage.store()
    with pytest.raises(SessionBusyError):
        await fork(store, RUN, from_step=2)
    assert await store.read_run(AGAIN) is None
