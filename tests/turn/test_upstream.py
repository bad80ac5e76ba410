"""Interrupted answers that are not begun again: joined upstream, or asked to go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.core.frames import Frame, reasoning, text, upstream_begin, upstream_end, usage
from perdure.errors import UsageError
from perdure.turn.answering import answer_with
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of
from tests.turn.agents import crash_when, joined, steps_of
from tests.turn.provider import ProvidedBackend, Provider, in_halves
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    RESTARTED,
    TURN,
    Item,
    Reader,
    Script,
    Stage,
    crashed,
    finish,
    has_frames,
    until,
    within,
    words,
)

ANSWER = [
    reasoning("Hm."),
    text("Hello"),
    text(" there"),
    usage(tokens_in=3, tokens_out=2, request_id="r-1"),
    upstream_end("length"),
]


async def lost(stage: Stage, provider: Provider, frames: int, **options: Any) -> Reader:
    """Let a worker die that has shown so many more frames of the provider's answer."""
    await provider.give(frames)

    async def was_shown() -> bool:
        run = await (await stage.store()).read_run(run_id_of(TURN))
        is_begun = run is not None and run.upstream is not None
        return is_begun and len(await stage.frames()) == provider.given

    produce = answer_with(ProvidedBackend(provider))
    reader = await crash_when(stage, produce, was_shown, **options)
    assert provider.listeners == 0
    return reader


# Joining.


@pytest.mark.parametrize("frames", range(4))
async def test_an_answer_that_went_on_is_joined_where_readers_are(
    stage: Stage, frames: int
) -> None:
    provider = Provider(ANSWER)
    provider.cut = in_halves
    reader = await lost(stage, provider, frames)
    await provider.give()
    engine = await stage.engine(answer_with(ProvidedBackend(provider)), on_interrupted="fail")
    await engine.submit(TURN, "Hi")
    await reader.read(engine)
    assert (reader.text, reader.kinds[-1]) == ("Hello there", COMPLETED)
    assert RESTARTED not in reader.kinds
    assert (len(provider.prompts), len(provider.attached)) == (1, 1)
    answer = await stage.answer()
    assert (answer["finalText"], answer["finishReason"]) == ("Hello there", "length")
    assert [part["d"] for part in answer["parts"]] == ["Hm.", "Hello there"]


async def test_the_usage_of_a_joined_answer_is_that_of_the_one_call(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 2)
    await provider.give()
    await finish(await stage.engine(answer_with(ProvidedBackend(provider))))
    first, second = (await stage.details()).usage
    assert (first.epoch, first.state) == (1, "unknown")
    assert (second.epoch, second.state, second.tokens_in) == (2, "settled", 3)
    assert second.request_id == "r-1"


async def test_an_answer_is_joined_again_and_again(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 1)
    await lost(stage, provider, 1)
    await provider.give()
    reader = await finish(await stage.engine(answer_with(ProvidedBackend(provider))))
    assert reader.text == "Hello there"
    assert (len(provider.prompts), len(provider.attached)) == (1, 2)


async def test_a_drained_answer_goes_on_upstream_and_is_joined(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await provider.give(2)
    engine = await stage.engine(answer_with(ProvidedBackend(provider)))
    await engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 2))
    await within(engine.aclose(drain_ms=0))
    assert (provider.listeners, provider.cancelled) == (0, [])
    await provider.give()
    reader = await finish(await stage.engine(answer_with(ProvidedBackend(provider))))
    assert (reader.text, len(provider.prompts)) == ("Hello there", 1)


async def test_an_answer_that_is_not_kept_is_begun_again(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 2)
    provider.forget()
    await provider.give()
    reader = await finish(await stage.engine(answer_with(ProvidedBackend(provider))))
    assert (reader.text, reader.kinds.count(RESTARTED)) == ("Hello there", 1)
    assert len(provider.prompts) == 2
    assert (await stage.run()).upstream == {"handle": {"answer": "answer-2"}, "after": 3}


async def test_an_answer_that_is_another_one_is_begun_again(stage: Stage) -> None:
    provider = Provider(ANSWER)
    provider.cut = lambda frame: (text("Ha!"), frame)
    await lost(stage, provider, 2)
    await provider.give()
    reader = await finish(await stage.engine(answer_with(ProvidedBackend(provider))))
    assert (reader.text, len(provider.prompts), provider.listeners) == ("Hello there", 2, 0)


async def test_a_handle_is_forgotten_once_the_answer_is_begun_again(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 2)
    await crashed(stage, text("other"), frames=4)
    assert (await stage.run()).upstream is None


async def test_a_retry_by_hand_does_not_join_what_failed(stage: Stage) -> None:
    provider = Provider([text("Hel"), text("no")], words("fine"))
    await provider.give()
    broken = ProvidedBackend(provider)
    engine = await stage.engine(answer_with(broken), idle_timeout_ms=50)
    provider.given = 1
    assert (await finish(engine)).kinds[-1] == FAILED
    assert provider.cancelled == [{"answer": "answer-1"}]
    await provider.give()
    reader = await finish(engine, retry=True)
    assert (reader.text, provider.attached) == ("fine", [])


@pytest.mark.parametrize("worker", ["here", "lost"])
async def test_a_stop_ends_the_answer_upstream(stage: Stage, worker: str) -> None:
    provider = Provider(ANSWER)
    if worker == "lost":
        await lost(stage, provider, 2)
    engine = await stage.engine(answer_with(ProvidedBackend(provider)))
    await provider.give(2 - provider.given)
    if worker == "here":
        await engine.submit(TURN, "Hi")
        await until(lambda: has_frames(stage, 2))
    assert (await within(engine.stop(TURN))).state == "stopped"
    await until(lambda: provider.cancelled)
    assert provider.cancelled == [{"answer": "answer-1"}]
    assert provider.listeners == 0


async def test_a_provider_that_cannot_end_an_answer_does_not_hold_up_the_turn(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider(ANSWER)
    await provider.give(1)
    produce: Any = answer_with(ProvidedBackend(provider))

    async def cancel(_handle: Any) -> None:
        raise RuntimeError("no such answer")

    produce.cancel = cancel
    engine = await stage.engine(produce)
    await engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 1))
    assert (await within(engine.stop(TURN))).state == "stopped"
    await until(lambda: "could not be ended" in caplog.text)


async def test_a_whole_answer_is_not_ended_upstream(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await provider.give()
    engine = await stage.engine(answer_with(ProvidedBackend(provider)))
    await finish(engine)
    await engine.aclose()
    assert provider.cancelled == []


async def test_a_stop_while_an_answer_is_joined_keeps_what_readers_have(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 2)
    provider.given = 0  # Even what readers have is a long time in coming.
    engine = await stage.engine(answer_with(ProvidedBackend(provider)))
    await engine.submit(TURN, "Hi")
    await until(lambda: provider.listeners)
    assert (await within(engine.stop(TURN))).state == "stopped"
    assert (await stage.answer())["finalText"] == "Hello"
    assert provider.listeners == 0
    assert len(provider.prompts) == 1


async def test_a_drain_while_an_answer_is_joined_gives_the_turn_back(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 2)
    provider.given = 0
    engine = await stage.engine(answer_with(ProvidedBackend(provider)))
    await engine.submit(TURN, "Hi")
    await until(lambda: provider.listeners)
    await within(engine.aclose(drain_ms=0))
    run = await stage.run()
    assert (run.state, run.lease_holder_id, run.live_from) == ("running", None, 0)
    await provider.give()
    reader = await finish(await stage.engine(answer_with(ProvidedBackend(provider))))
    assert (reader.text, len(provider.prompts)) == ("Hello there", 1)


async def test_a_producer_that_fails_to_join_goes_down_the_ladder(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy(Script):
        async def attach(self, turn: Turn) -> AsyncIterator[Frame]:
            raise ZeroDivisionError("clumsy")

    await crashed(stage, upstream_begin("h"), text("Hel"), frames=1)
    reader = await finish(await stage.engine(Clumsy(words("whole"))))
    assert (reader.text, reader.kinds.count(RESTARTED)) == ("whole", 1)
    assert "could not be joined" in caplog.text


async def test_a_producer_of_ones_own_joins_by_the_handle_that_it_saved(stage: Stage) -> None:
    class Own:
        def __init__(self) -> None:
            self.turns: list[Turn] = []

        async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
            yield text("Before. ")
            await turn.save_handle("call-7")
            assert turn.upstream == "call-7"
            yield text("Hel")
            await asyncio.Event().wait()

        async def attach(self, turn: Turn) -> AsyncIterator[Frame]:
            self.turns.append(turn)
            return self._rest()

        async def _rest(self) -> AsyncIterator[Frame]:
            yield text("lo")

    own = Own()
    await crash_when(stage, own, lambda: has_frames(stage, 2))
    reader = await finish(await stage.engine(own))
    assert reader.text == "Before. Hello" == (await stage.answer())["finalText"]
    (turn,) = own.turns
    assert (turn.upstream, turn.partial.text) == ("call-7", "Hel")


async def test_an_answer_within_a_step_is_made_again(stage: Stage) -> None:
    provider = Provider(ANSWER)
    backend = ProvidedBackend(provider)

    class Agent:
        async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
            prompt: Any = None
            asking = turn.stream("ask", lambda: backend.stream(prompt), result=joined)
            async for frame in asking:
                yield frame

        async def attach(self, turn: Turn) -> None:
            raise AssertionError("no handle was saved")

    await provider.give(2)
    await crash_when(stage, Agent(), lambda: has_frames(stage, 2))
    await provider.give()
    reader = await finish(await stage.engine(Agent()))
    assert (reader.text, len(provider.prompts)) == ("Hello there", 2)
    assert (await steps_of(stage))["ask"].result == "Hello there"


# Going on.


def continuation() -> tuple[Provider, Any]:
    provider = Provider(words("lo", " there"))
    return provider, answer_with(ProvidedBackend(provider))


@pytest.mark.parametrize("is_asked", [False, True])
async def test_an_answer_goes_on_behind_what_readers_have(stage: Stage, is_asked: bool) -> None:
    async def policy(_turn: Any) -> Any:
        return "continue"

    provider, produce = continuation()
    await provider.give()
    reader = await crash_when(
        stage,
        Script([reasoning("Hm."), text("Hel"), asyncio.Event()]),
        lambda: has_frames(stage, 2),
    )
    policy_given: Any = policy if is_asked else "continue"
    engine = await stage.engine(produce, on_interrupted=policy_given)
    await engine.submit(TURN, "Hi")
    await reader.read(engine)
    assert (reader.text, reader.kinds[-1]) == ("Hello there", COMPLETED)
    assert RESTARTED not in reader.kinds
    answer = await stage.answer()
    assert [part["d"] for part in answer["parts"]] == ["Hm.", "Hello there"]
    assert answer["finalText"] == "Hello there"


async def test_both_calls_leave_a_usage_row(stage: Stage) -> None:
    script: list[Item] = [usage(tokens_in=3, tokens_out=1), text("Hel"), asyncio.Event()]
    worker = await stage.worker(Script(script))
    await worker.engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 2))
    await within(worker.engine.aclose(drain_ms=0))
    provider = Provider([text("lo"), usage(tokens_in=9, tokens_out=2), upstream_end("stop")])
    await provider.give()
    produce = answer_with(ProvidedBackend(provider))
    await finish(await stage.engine(produce, on_interrupted="continue"))
    rows = (await stage.details()).usage
    assert [(row.epoch, row.state, row.tokens_in, row.tokens_out) for row in rows] == [
        (1, "settled", 3, 1),
        (2, "settled", 9, 2),
    ]


async def test_an_answer_that_was_continued_is_continued_again(stage: Stage) -> None:
    await crashed(stage, text("Hel"))

    class Continues(Script):
        def continue_partial(self, turn: Turn) -> AsyncIterator[Any]:
            return self(turn)

    going_on = Continues([text("lo"), asyncio.Event()], words(" there"))
    await crash_when(stage, going_on, lambda: has_frames(stage, 2), on_interrupted="continue")
    reader = await finish(await stage.engine(going_on, on_interrupted="continue"))
    assert reader.text == "Hello there"
    assert [turn.partial.text for turn in going_on.turns] == ["Hel", "Hello"]
    assert RESTARTED not in reader.kinds


async def test_where_nothing_can_go_on_the_answer_is_begun_again(stage: Stage) -> None:
    await crashed(stage, text("Hel"), reasoning("hm"))
    provider, produce = continuation()
    await provider.give()
    reader = await finish(await stage.engine(produce, on_interrupted="continue"))
    assert (reader.text, reader.kinds.count(RESTARTED)) == ("lo there", 1)


async def test_a_producer_that_cannot_go_on_is_refused(stage: Stage) -> None:
    with pytest.raises(UsageError, match="continue_partial"):
        await stage.engine(Script(), on_interrupted="continue")

    async def policy(_turn: Any) -> Any:
        return "continue"

    await crashed(stage, text("Hel"))
    reader = await finish(await stage.engine(Script(), on_interrupted=policy))
    assert (reader.text, reader.kinds[-1]) == ("Hel", FAILED)


async def test_an_unknown_policy_is_refused(stage: Stage) -> None:
    with pytest.raises(UsageError, match="'rerun', 'continue', 'fail'"):
        await stage.engine(Script(), on_interrupted="go on")


async def test_what_can_be_joined_is_not_asked_to_go_on(stage: Stage) -> None:
    provider = Provider(ANSWER)
    await lost(stage, provider, 2)
    await provider.give()
    engine = await stage.engine(answer_with(ProvidedBackend(provider)), on_interrupted="continue")
    assert (await finish(engine)).text == "Hello there"
    assert len(provider.prompts) == 1


async def test_an_answer_that_goes_on_may_be_joined_in_its_turn(stage: Stage) -> None:
    await crashed(stage, text("Hel"))
    provider = Provider(words("lo", " there"))
    await provider.give(1)
    produce = answer_with(ProvidedBackend(provider))
    await crash_when(stage, produce, lambda: has_frames(stage, 2), on_interrupted="continue")
    await provider.give()
    reader = await finish(await stage.engine(produce, on_interrupted="continue"))
    assert reader.text == "Hello there" == (await stage.answer())["finalText"]
    assert (len(provider.prompts), len(provider.attached)) == (1, 1)
