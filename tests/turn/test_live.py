"""One attempt at a turn: it goes on by the ladder, and ends in one of five ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from perdure.core.changes import BeginStep, Release
from perdure.core.frames import (
    Frame,
    source,
    text,
    tool_call,
    tool_result,
    upstream_end,
    usage,
)
from perdure.core.limits import LEASE_MS
from perdure.core.records import SessionKey
from perdure.errors import StoreUnavailableError
from perdure.testing.crashing import crashing
from perdure.turn.handout import Turn
from perdure.turn.hooks import ChatTurnHooks
from perdure.turn.identity import chat_manifest, run_id_of
from perdure.turn.recovery import InterruptedTurn
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    NEXT,
    RESTARTED,
    TURN,
    Reader,
    Script,
    Stage,
    Traffic,
    crashed,
    errors_in,
    finish,
    has_frames,
    until,
    within,
    words,
)

CALL = tool_call("c", "search", {"q": 1})


# Rung 0: nothing is missing but the end.


async def test_a_whole_answer_is_only_ended(stage: Stage) -> None:
    await crashed(stage, text("Hel"), text("lo"), upstream_end("stop"))
    script = Script(words("never"))
    reader = await finish(await stage.engine(script))
    assert (reader.text, reader.kinds[-1]) == ("Hello", COMPLETED)
    assert RESTARTED not in reader.kinds
    assert script.calls == 0
    assert (await stage.answer())["finalText"] == "Hello"
    assert [row.state for row in (await stage.details()).usage] == ["unknown"]


async def test_the_call_of_a_whole_answer_is_settled_as_its_frames_say(stage: Stage) -> None:
    used = [usage(tokens_in=3, model="m"), usage(tokens_in=1, tokens_out=4, model="m")]
    await crashed(stage, text("Hello"), *used, upstream_end("stop"))
    assert (await finish(await stage.engine())).kinds[-1] == COMPLETED
    (row,) = (await stage.details()).usage
    assert (row.epoch, row.call, row.state, row.model) == (1, 0, "settled", "m")
    assert (row.tokens_in, row.tokens_out, row.tokens_cached) == (4, 4, None)


async def test_interleaved_parts_end_with_the_text_that_readers_have_seen(stage: Stage) -> None:
    seen = (text("a", "p"), text("b", "q"), text("c", "p"), upstream_end("stop"))
    await crashed(stage, *seen)
    reader = await finish(await stage.engine())
    assert reader.text == (await stage.answer())["finalText"] == "abc"


async def test_a_failed_end_is_tried_again_without_asking_the_model(stage: Stage) -> None:
    script = Script(words("Hello"))
    broken = [True]

    def transform(final: str) -> str:
        if broken[0]:
            raise RuntimeError("no")
        return final.upper()

    engine = await stage.engine(script, hooks=ChatTurnHooks(transform_final_text=transform))
    assert (await finish(engine)).kinds[-1] == FAILED
    assert (await finish(engine, retry=True)).kinds[-1] == FAILED
    broken[0] = False
    reader = await finish(engine, retry=True)
    assert (reader.text, reader.kinds[-1]) == ("Hello", COMPLETED)
    assert script.calls == 1


# Rung 2: nobody has seen anything.


@pytest.mark.parametrize("unseen", [(), (usage(tokens_in=1), usage(tokens_in=2))])
async def test_an_attempt_that_nobody_saw_is_repeated_silently(
    stage: Stage, unseen: Sequence[Frame]
) -> None:
    await crashed(stage, *unseen, frames=len(unseen))
    script = Script(words("Hello"))
    reader = await finish(await stage.engine(script))
    assert RESTARTED not in reader.kinds
    assert (reader.text, script.turns[0].attempt) == ("Hello", 2)
    assert [row.state for row in (await stage.details()).usage] == ["unknown", "unknown"]


# Rung 3: readers are told to forget.


async def test_what_was_seen_of_a_lost_attempt_is_marked(stage: Stage) -> None:
    await crashed(stage, text("Hel"), text("lost"), source("u"))
    script = Script(words("whole"))
    reader = await finish(await stage.engine(script))
    assert (reader.text, reader.kinds[-1]) == ("whole", COMPLETED)
    (restarted,) = (event for event in reader.events if event["type"] == RESTARTED)
    assert restarted["data"]["attempt"] == 2
    assert restarted["data"]["reason"] == "lease_expired"
    assert restarted["data"]["discardFrom"].startswith("0001_0000000003_")
    run = await stage.run()
    assert run.live_from == 4
    assert not script.turns[0].partial.text


async def test_a_reader_who_was_there_before_gets_the_mark_and_the_rest(stage: Stage) -> None:
    worker = await stage.worker(Script([text("Hel"), text("lost"), asyncio.Event()]))
    reader = Reader()
    submitted = await worker.engine.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 2))
    await reader.follow(submitted.lines(wire="envelope"), lines_max=2)
    await worker.kill()
    stage.lapse()
    engine = await stage.engine(Script(words("whole")), recover=True)
    await reader.read(engine)
    assert reader.text == "whole"
    assert reader.kinds.count(RESTARTED) == 1


@pytest.mark.parametrize("released", [True, False])
async def test_the_mark_says_why(stage: Stage, released: bool) -> None:
    worker = await stage.worker(Script([text("lost"), asyncio.Event()]))
    await worker.engine.submit(TURN, "Hi")
    await until(stage.frames)
    if released:
        await worker.engine.aclose(drain_ms=0)
    else:
        await worker.kill()
        stage.lapse()
    reader = await finish(await stage.engine(Script(words("whole"))))
    reason = next(e["data"]["reason"] for e in reader.events if e["type"] == RESTARTED)
    assert reason == ("released" if released else "lease_expired")


# Rung 5, and what a product decides.


async def test_an_open_tool_call_fails_the_turn_and_keeps_what_was_seen(stage: Stage) -> None:
    await crashed(stage, text("Let me see"), CALL)
    script = Script()
    engine = await stage.engine(script)
    reader = await finish(engine)
    assert reader.kinds[-1] == FAILED
    assert errors_in(reader) == ["unfinished_tool_call"]
    assert reader.text == "Let me see"
    assert script.calls == 0
    retried = await finish(engine, retry=True)
    assert (retried.text, script.calls) == ("Hello there", 1)


async def test_an_open_tool_call_that_may_repeat_is_made_again(stage: Stage) -> None:
    await crashed(stage, tool_call("c", "search", {}, "idempotent"))
    assert (await finish(await stage.engine())).kinds[-1] == COMPLETED


async def test_a_tool_call_that_was_answered_is_no_obstacle(stage: Stage) -> None:
    await crashed(stage, CALL, tool_result("c", [1]))
    assert (await finish(await stage.engine())).kinds[-1] == COMPLETED


async def test_the_policy_fail_keeps_the_partial_answer(stage: Stage) -> None:
    await crashed(stage, text("Hel"))
    script = Script()
    reader = await finish(await stage.engine(script, on_interrupted="fail"))
    assert (reader.text, errors_in(reader)) == ("Hel", ["producer_lost"])
    assert script.calls == 0
    assert (await stage.run()).state == "failed"


@pytest.mark.parametrize("decision", ["rerun", "fail"])
async def test_a_product_may_decide_for_itself(stage: Stage, decision: str) -> None:
    asked: list[InterruptedTurn] = []

    async def policy(turn: InterruptedTurn) -> Any:
        asked.append(turn)
        return decision

    await crashed(stage, text("Hel"), CALL)
    reader = await finish(await stage.engine(on_interrupted=policy))
    assert reader.kinds[-1] == (COMPLETED if decision == "rerun" else FAILED)
    (turn,) = asked
    assert (turn.seen.text, turn.kept.text, turn.open_tool_call) == ("Hel", "", "search")
    assert (turn.identity, turn.attempt) == (TURN, 2)


@pytest.mark.parametrize("answer", ["continue", RuntimeError("no policy today")])
async def test_a_policy_that_cannot_decide_fails_the_turn(stage: Stage, answer: Any) -> None:
    async def policy(_turn: InterruptedTurn) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    await crashed(stage, text("Hel"))
    reader = await finish(await stage.engine(on_interrupted=policy))
    assert (reader.text, reader.kinds[-1]) == ("Hel", FAILED)
    assert (await stage.run()).state == "failed"


# Strikes.


async def test_a_turn_whose_attempts_crash_is_parked_until_a_retry(stage: Stage) -> None:
    for attempt in range(3):
        await crashed(stage, text(f"try {attempt}"), frames=2 * attempt + 1)
    script = Script(words("fine"))
    engine = await stage.engine(script)
    reader = await finish(engine)
    assert (reader.kinds[-1], errors_in(reader)) == (FAILED, ["parked"])
    assert reader.text == "try 2"
    run = await stage.run()
    assert (run.state, run.reason, run.strikes) == ("parked", "attempts_exhausted", 3)
    assert script.calls == 0
    again = await finish(engine)
    assert errors_in(again) == ["parked"]
    retried = await finish(engine, retry=True)
    assert (retried.text, retried.kinds[-1]) == ("fine", COMPLETED)
    assert (await stage.run()).strikes == 0


async def test_a_parked_turn_does_not_block_its_session(stage: Stage) -> None:
    for _ in range(3):
        await crashed(stage, frames=0)
    engine = await stage.engine()
    assert errors_in(await finish(engine)) == ["parked"]
    assert (await finish(engine, NEXT, "And?")).text == "Hello there"


async def test_a_log_with_two_ends_does_not_come_about(stage: Stage) -> None:
    engine = await stage.engine(Script([text("Hel"), RuntimeError("no")]))
    await finish(engine)
    store = await stage.store()
    manifest = chat_manifest(TURN, "Hi", project_id="perdure", domain="chat", model=None)
    for _ in range(3):
        # The retry dies before it writes anything, again and again.
        await store.start_or_resume(run_id_of(TURN), manifest, worker_id="x", retry=True)
        stage.lapse()
    await store.start_or_resume(run_id_of(TURN), manifest, worker_id="x")
    stage.lapse()
    reader = await finish(await stage.engine())
    kinds = [frame.kind for frame in await stage.frames()]
    assert kinds == ["text", "failed", "restarted", "text", "failed"]
    assert (reader.text, errors_in(reader)) == ("Hel", ["parked"])


async def test_a_run_that_is_no_chat_turn_is_parked_not_mangled(stage: Stage) -> None:
    store = await stage.store()
    manifest = chat_manifest(TURN, "Hi", project_id="perdure", domain="chat", model=None)
    claim = await store.start_or_resume(
        run_id_of(TURN), manifest, worker_id="x", session=SessionKey("s", 0, owner_id="ann")
    )
    assert claim.lease is not None
    await store.write(claim.lease, BeginStep(0, "another intent"), Release())
    reader = await finish(await stage.engine())
    assert errors_in(reader) == ["parked"]
    assert (await stage.run()).reason == "step_divergence"


# A lease that is lost in the middle.


async def test_readers_of_a_lost_attempt_go_on_with_the_new_one(stage: Stage) -> None:
    gate = asyncio.Event()
    script = Script([text("lost"), gate, text("late"), upstream_end("stop")], words("whole"))
    here = await stage.engine(script)
    submitted = await here.submit(TURN, "Hi")
    reader = Reader()
    reading = asyncio.ensure_future(reader.follow(submitted.lines(wire="envelope")))
    await until(lambda: reader.text)
    stage.clock.advance(LEASE_MS)
    there = await stage.engine(script)
    second = await there.submit(TURN, "Hi")
    assert not second.created
    other = await within(Reader().follow(second.lines(wire="envelope")))
    gate.set()
    await within(reading)
    assert reader.text == other.text == "whole"
    assert reader.kinds.count(RESTARTED) == 1
    deltas = [frame.data["delta"] for frame in await stage.frames() if frame.kind == "text"]
    assert deltas == ["lost", "whole"], "the zombie has written nothing"
    rows = (await stage.details()).usage
    assert [(row.epoch, row.state) for row in rows] == [(1, "unknown"), (2, "unknown")]


async def test_a_lost_attempt_still_settles_what_it_used(stage: Stage) -> None:
    gate = asyncio.Event()
    used = usage(tokens_in=3, tokens_out=4, model="m")
    script = Script([text("a"), used, gate, text("late")], words("whole"))
    here = await stage.engine(script)
    await here.submit(TURN, "Hi")
    await until(lambda: has_frames(stage, 2))
    stage.clock.advance(LEASE_MS)
    await finish(await stage.engine(script))
    gate.set()
    await until(lambda: _is_settled(stage))
    first, _ = (await stage.details()).usage
    assert (first.state, first.tokens_in, first.tokens_out) == ("settled", 3, 4)


async def _is_settled(stage: Stage) -> bool:
    return (await stage.details()).usage[0].state == "settled"


# Stores in trouble.


async def test_a_producer_that_meets_a_broken_store_leaves_the_turn_to_be_taken_over(
    stage: Stage,
) -> None:
    script = Script([text("a"), StoreUnavailableError("gone")], words("whole"))
    engine = await stage.engine(script)
    await engine.submit(TURN, "Hi")
    await until(lambda: script.closed)
    await until(lambda: _gone(engine))
    run = await stage.run()
    assert (run.state, run.lease_holder_id is not None) == ("running", True)
    stage.lapse()
    assert (await finish(engine)).text == "whole"
    assert (await stage.run()).state == "completed"


def _gone(engine: Any) -> bool:
    return not engine._turns._turns


async def test_a_store_that_is_busy_loses_no_answer(stage: Stage) -> None:
    traffic, script = Traffic(busy=3), Script()
    store = crashing(await stage.open(), traffic)
    reader = await finish(await stage.engine(script, store=store))
    assert (reader.text, reader.kinds[-1]) == ("Hello there", COMPLETED)
    assert (traffic.busy, script.calls) == (0, 1)


# What a producer is handed.


async def test_the_history_is_what_was_answered_before(stage: Stage) -> None:
    script = Script(words("first"), words("second"), words("third"))
    engine = await stage.engine(script)
    for index, message in enumerate(("one", "two", "three")):
        await finish(engine, TURN._replace(turn_index=index), message)
    assert list(script.turns[2].history) == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "second"},
    ]


async def test_the_key_of_a_turn_is_the_same_in_every_attempt(stage: Stage) -> None:
    script = Script([text("a"), RuntimeError("no")], words("fine"))
    engine = await stage.engine(script)
    await finish(engine)
    await finish(engine, retry=True)
    first, second = script.turns
    assert first.idempotency_key == second.idempotency_key
    assert (first.attempt, second.attempt) == (1, 2)


async def test_a_producer_may_keep_a_handle(stage: Stage) -> None:
    async def produce(turn: Turn) -> AsyncIterator[Any]:
        await turn.save_handle({"response": "r-1"})
        yield text("a")

    await finish(await stage.engine(produce))
    assert (await stage.run()).upstream == {"handle": {"response": "r-1"}, "after": 0}
