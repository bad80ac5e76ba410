"""A loop whose model's answer goes on although its worker is lost: joined, not paid again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from perdure.agent.tool_loop import ToolLoop
from perdure.core import frames
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.turn.identity import run_id_of
from tests.agent.looping import PURE
from tests.turn.agents import crash_when
from tests.turn.provider import ProvidedBackend, Provider
from tests.turn.stage import COMPLETED, FAILED, TURN, Stage, finish, has_frames, until, within

CALLING = [
    frames.text("Let me look. "),
    frames.tool_call("c1", "degrees", {"city": "Faro"}),
    frames.usage(tokens_in=5, tokens_out=2, request_id="r-1"),
    frames.upstream_end("tool_calls"),
]
WARM = [
    frames.text("It is "),
    frames.text("warm."),
    frames.usage(tokens_in=9, tokens_out=3, request_id="r-2"),
    frames.upstream_end("stop"),
]
FIRST, SECOND = {"answer": "answer-1"}, {"answer": "answer-2"}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    data = MemoryData()

    async def open_handle(clock: ManualClock) -> RunStore:
        return MemoryStore(data, clock=clock)

    async with Stage(open_handle) as opened:
        yield opened


def loop_of(provider: Provider) -> ToolLoop:
    return ToolLoop(ProvidedBackend(provider), [PURE])


async def lost(stage: Stage, provider: Provider, calls: int) -> None:
    """Let a worker die in its call number `calls` of the model, whose handle is stored."""

    async def is_kept() -> bool:
        run = await (await stage.store()).read_run(run_id_of(TURN))
        kept = None if run is None else run.upstream
        return kept is not None and kept["handle"] == {"answer": f"answer-{calls}"}

    await crash_when(stage, loop_of(provider), is_kept)


@pytest.mark.parametrize("given", [0, 1, 2])
async def test_the_first_answer_of_a_loop_is_joined(stage: Stage, given: int) -> None:
    provider = Provider(CALLING, WARM)
    await provider.give(given)
    await lost(stage, provider, 1)
    await provider.give()
    reader = await finish(await stage.engine(loop_of(provider)))
    assert (reader.text, reader.kinds[-1]) == ("Let me look. It is warm.", COMPLETED)
    assert (len(provider.prompts), provider.attached) == (2, [FIRST])
    assert provider.cancelled == []
    used = [row for row in (await stage.details()).usage if row.step_index]
    assert [(row.state, row.request_id) for row in used] == [
        ("unknown", None),
        ("settled", "r-1"),
        ("settled", "r-2"),
    ]


async def test_an_answer_behind_tools_is_joined(stage: Stage) -> None:
    provider = Provider(CALLING, WARM)
    provider.given = 4
    provider.held_back = "answer-2"
    await lost(stage, provider, 2)
    provider.held_back = None
    await provider.give()
    reader = await finish(await stage.engine(loop_of(provider)))
    assert reader.text == "Let me look. It is warm."
    assert (len(provider.prompts), provider.attached) == (2, [SECOND])


async def test_an_answer_that_is_not_kept_is_asked_for_again(stage: Stage) -> None:
    provider = Provider(CALLING, CALLING, WARM)
    await provider.give(1)
    await lost(stage, provider, 1)
    provider.forget()
    await provider.give()
    reader = await finish(await stage.engine(loop_of(provider)))
    assert reader.text == "Let me look. It is warm."
    assert (len(provider.prompts), provider.attached) == (3, [FIRST])


async def test_a_drained_answer_goes_on_and_is_joined(stage: Stage) -> None:
    provider = Provider(CALLING, WARM)
    await provider.give(1)
    engine = await stage.engine(loop_of(provider))
    await engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 1))
    await within(engine.aclose(drain_ms=0))
    assert (provider.listeners, provider.cancelled) == (0, [])
    await provider.give()
    assert (await finish(await stage.engine(loop_of(provider)))).text == "Let me look. It is warm."
    assert len(provider.prompts) == 2


@pytest.mark.parametrize("worker", ["here", "lost"])
async def test_a_stop_ends_the_answer_upstream(stage: Stage, worker: str) -> None:
    provider = Provider(CALLING, WARM)
    await provider.give(1)
    if worker == "lost":
        await lost(stage, provider, 1)
    engine = await stage.engine(loop_of(provider))
    if worker == "here":
        await engine.submit(TURN, "Hi")
        await until(lambda: has_frames(stage, 1))
    assert (await within(engine.stop(TURN))).state == "stopped"
    await until(lambda: provider.cancelled == [FIRST])
    assert len(provider.prompts) == 1


async def test_a_turn_that_is_not_to_begin_again_ends_the_answer(stage: Stage) -> None:
    provider = Provider(CALLING, WARM)
    await provider.give(1)
    await lost(stage, provider, 1)
    reader = await finish(await stage.engine(loop_of(provider), on_interrupted="fail"))
    assert reader.kinds[-1] == FAILED
    await until(lambda: provider.cancelled == [FIRST])


async def test_a_retry_by_hand_does_not_join_what_was_ended(stage: Stage) -> None:
    provider = Provider(CALLING, CALLING, WARM)
    await provider.give(1)
    engine = await stage.engine(loop_of(provider), idle_timeout_ms=50)
    assert (await finish(engine)).kinds[-1] == FAILED
    await until(lambda: provider.cancelled == [FIRST])
    await provider.give()
    reader = await finish(engine, retry=True)
    assert (reader.text, provider.attached) == ("Let me look. It is warm.", [])
