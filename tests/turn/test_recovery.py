"""The ladder: what becomes of an interrupted turn, from nothing but what is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from perdure.core.frames import (
    Frame,
    data,
    event,
    fold_parts,
    part_frame,
    reasoning,
    source,
    text,
    text_of,
    tool_call,
    tool_result,
    upstream_end,
    usage,
)
from perdure.core.records import Effect, StepError, StepRecord, StepStatus
from perdure.errors import UsageError
from perdure.turn.recovery import (
    Evidence,
    InterruptedTurn,
    Partial,
    choose_rung,
    gather_evidence,
    settled_prefix,
)
from tests.turn.stage import TURN

FAILED = Frame(0, 0, "failed", {"code": "internal"})
CALL = tool_call("c", "search", {})


def restarted(kept: int) -> Frame:
    return Frame(0, 0, "restarted", {"attempt": 2, "reason": "r", "from": "c", "kept": kept})


def log(*items: Frame, first: int = 1) -> list[Frame]:
    """Number frames; deltas without a part get one."""
    numbered: list[Frame] = []
    for seq, item in enumerate(items, first):
        part = {"part": item.data["part"] or "p"} if "delta" in item.data else {}
        numbered.append(Frame(seq, 1, item.kind, {**item.data, **part}))
    return numbered


def step(
    position: int,
    status: StepStatus = "completed",
    *,
    frames_to: int | None = None,
    effect: Effect = "idempotent",
    taken: int | None = None,
) -> StepRecord:
    error = StepError("it broke", taken=taken) if status == "failed" else None
    return StepRecord(
        run_id="run",
        step_index=position,
        intent=f"step-{position}",
        kind="tool",
        status=status,
        attempts=1,
        error=error,
        effect=effect,
        frames_to=frames_to,
    )


def evidence(frames: Sequence[Frame] = (), *steps: StepRecord, is_first: bool = False) -> Evidence:
    history = {0: step(0, "running"), **{one.step_index: one for one in steps}}
    return gather_evidence(frames, history, is_first=is_first)


LADDER: Mapping[str, tuple[Evidence, str]] = {
    "a fresh turn begins": (evidence(is_first=True), "begin"),
    "nothing was seen: nobody is told": (evidence(), "rerun_unseen"),
    "a usage frame is not seen": (evidence(log(usage(tokens_in=1))), "rerun_unseen"),
    "text was seen": (evidence(log(text("a"))), "rerun"),
    "reasoning was seen": (evidence(log(reasoning("a"))), "rerun"),
    "a source was seen": (evidence(log(source("u"))), "rerun"),
    "data was seen": (evidence(log(data("n", 1))), "rerun"),
    "an event was seen": (evidence(log(event({"type": "x"}))), "rerun"),
    "the answer is whole": (evidence(log(text("a"), upstream_end("stop"))), "finish"),
    "whole, and its usage came late": (
        evidence(log(text("a"), upstream_end("stop"), usage(tokens_in=1))),
        "finish",
    ),
    "cut short by its length is whole": (evidence(log(upstream_end("length"))), "finish"),
    "the model only called tools": (
        evidence(log(text("a"), upstream_end("tool_calls"))),
        "rerun",
    ),
    "the answer went on behind an end": (
        evidence(log(text("a"), upstream_end("stop"), text("b"))),
        "rerun",
    ),
    "failed, with the answer whole": (
        evidence(log(text("a"), upstream_end("stop"), FAILED)),
        "finish",
    ),
    "failed, and retried by hand": (evidence(log(text("a"), FAILED)), "rerun"),
    "failed before anything was seen": (evidence(log(FAILED)), "rerun"),
    "failed in a tool call, and retried": (evidence(log(CALL, FAILED)), "rerun"),
    "a tool call is open": (evidence(log(text("a"), CALL)), "fail"),
    "an open call that may repeat": (
        evidence(log(tool_call("c", "search", {}, "idempotent"))),
        "rerun",
    ),
    "an open call without effect": (evidence(log(tool_call("c", "s", {}, "pure"))), "rerun"),
    "a call that was answered": (evidence(log(CALL, tool_result("c", 1))), "rerun"),
    "a call whose tool failed": (
        evidence(log(CALL, tool_result("c", error={"code": "x"}))),
        "rerun",
    ),
    "another call was answered": (evidence(log(CALL, tool_result("d", 1))), "fail"),
    "a step that may repeat was interrupted": (
        evidence((), step(1, "running", effect="idempotent")),
        "rerun_unseen",
    ),
    "a step without effect was interrupted": (
        evidence((), step(1, "running", effect="pure")),
        "rerun_unseen",
    ),
    "a tool step was interrupted": (
        evidence((), step(1, "running", effect="at_most_once")),
        "fail",
    ),
    "step 0 itself is always interrupted": (
        evidence(()),
        "rerun_unseen",
    ),
    "all that was seen is kept": (
        evidence(log(text("a"), text("b")), step(1, frames_to=2)),
        "rerun_unseen",
    ),
    "some of what was seen is kept": (
        evidence(log(text("a"), text("b")), step(1, frames_to=1)),
        "rerun",
    ),
    "a kept call needs no answer": (
        evidence(log(text("a"), CALL), step(1, frames_to=2)),
        "rerun_unseen",
    ),
    "a step behind a gap keeps nothing": (
        evidence(log(text("a")), step(1, "running"), step(2, frames_to=1)),
        "rerun",
    ),
}


@pytest.mark.parametrize("name", LADDER)
async def test_the_first_rung_that_applies(name: str) -> None:
    found, rung = LADDER[name]
    assert await choose_rung(found, "rerun", identity=TURN, attempt=2) == rung


async def test_the_policy_fail_counts_only_once_something_was_seen() -> None:
    seen, unseen = evidence(log(text("a"))), evidence()
    assert await choose_rung(seen, "fail", identity=TURN, attempt=2) == "fail"
    assert await choose_rung(unseen, "fail", identity=TURN, attempt=2) == "rerun_unseen"


CONTINUED: dict[str, tuple[Evidence, str]] = {
    "text goes on": (evidence(log(text("a"))), "continue"),
    "text behind a recorded step goes on": (
        evidence(log(text("a"), text("b")), step(1, frames_to=1)),
        "continue",
    ),
    "text behind a tool that answered goes on": (
        evidence(log(CALL, tool_result("c", 1), text("b"))),
        "continue",
    ),
    "reasoning does not go on": (evidence(log(text("a"), reasoning("hm"))), "rerun"),
    "a tool that answered does not go on": (
        evidence(log(text("a"), CALL, tool_result("c", 1))),
        "rerun",
    ),
    "an open tool call does not go on": (evidence(log(CALL, text("a"))), "fail"),
    "nothing shown is nothing to go on behind": (evidence(), "rerun_unseen"),
    "a whole answer is not asked to go on": (
        evidence(log(text("a"), upstream_end("stop"))),
        "finish",
    ),
    "a failed turn that is retried begins again": (evidence(log(text("a"), FAILED)), "rerun"),
}


@pytest.mark.parametrize("name", CONTINUED)
@pytest.mark.parametrize("is_asked", [False, True])
async def test_an_answer_goes_on_only_behind_text(name: str, is_asked: bool) -> None:
    async def policy(_turn: InterruptedTurn) -> Any:
        return "continue"

    found, rung = CONTINUED[name]
    decide: Any = policy if is_asked else "continue"
    assert await choose_rung(found, decide, identity=TURN, attempt=2) == rung


@pytest.mark.parametrize("joined", [False, True])
async def test_an_answer_that_goes_on_upstream_is_joined_first(joined: bool) -> None:
    asked: list[int] = []

    async def attach() -> bool:
        asked.append(1)
        return joined

    async def climb(found: Evidence) -> str:
        return await choose_rung(found, "fail", identity=TURN, attempt=2, attach=attach)

    assert await climb(evidence(log(text("a"), CALL))) == ("attach" if joined else "fail")
    assert await climb(evidence()) == ("attach" if joined else "rerun_unseen")
    assert len(asked) == 2
    for found, rung in (
        (evidence(log(text("a"), upstream_end("stop"))), "finish"),
        (evidence(log(text("a"), FAILED)), "rerun"),
        (evidence(log(text("a")), step(1, "running", effect="at_most_once")), "fail"),
        (evidence(is_first=True), "begin"),
    ):
        assert await climb(found) == rung
    assert len(asked) == 2


@pytest.mark.parametrize("decision", ["rerun", "fail"])
async def test_a_callable_decides_knowing_what_was_seen_and_what_stays(decision: Any) -> None:
    asked: list[InterruptedTurn] = []

    async def policy(turn: InterruptedTurn) -> Any:
        asked.append(turn)
        return decision

    found = evidence(log(text("a"), text("b"), CALL), step(1, frames_to=1))
    assert await choose_rung(found, policy, identity=TURN, attempt=3) == decision
    kept = [{"k": "text", "part": "p", "d": "a"}]
    seen = [{"k": "text", "part": "p", "d": "ab"}, {"k": "tool_call", **CALL.data}]
    assert asked == [
        InterruptedTurn(TURN, 3, Partial("ab", seen), Partial("a", kept), open_tool_call="search")
    ]


async def test_a_callable_is_not_asked_where_nothing_is_to_decide() -> None:
    async def policy(_turn: InterruptedTurn) -> Any:
        raise AssertionError("there is nothing to decide")

    for found in (evidence(), evidence(log(upstream_end("stop"))), evidence(log(FAILED))):
        await choose_rung(found, policy, identity=TURN, attempt=2)


async def test_a_callable_that_decides_for_something_else_is_an_error() -> None:
    async def policy(_turn: InterruptedTurn) -> Any:
        return "go on"

    with pytest.raises(UsageError, match="'go on'"):
        await choose_rung(evidence(log(text("a"))), policy, identity=TURN, attempt=2)


# What stays.


def texts(frames: Sequence[Frame]) -> str:
    return text_of(fold_parts(frames))


def test_what_stays_is_what_stands_before_the_end_of_the_recorded_steps() -> None:
    frames = log(text("a"), CALL, tool_result("c", 1), text("b"), text("c"))
    found = evidence(frames, step(1, frames_to=1), step(2, frames_to=4))
    assert texts(found.kept) == "ab"
    assert [frame.kind for frame in found.kept] == ["text", "tool_call", "tool_result", "text"]


def test_what_a_restart_kept_stays_over_a_second_takeover() -> None:
    first = log(text("a"), text("b"))
    kept = evidence(first, step(1, frames_to=1)).kept
    compact = [part_frame(part) for part in fold_parts(kept)]
    second = log(restarted(len(compact)), *compact, text("x"), first=3)
    found = evidence(second, step(1, frames_to=1))
    assert texts(found.kept) == "a"
    third = evidence(second, step(1, frames_to=1), step(2, frames_to=second[-1].seq))
    assert texts(third.kept) == "ax"
    fourth = evidence(log(restarted(0), text("x"), first=3), step(1, frames_to=1))
    assert texts(fourth.kept) == ""


def test_usage_does_not_stay_but_why_a_call_ended() -> None:
    frames = log(text("a"), usage(tokens_in=1), upstream_end("tool_calls"), upstream_end("stop"))
    found = evidence(frames, step(1, frames_to=3))
    assert [frame.kind for frame in found.kept] == ["text", "upstream_end"]


def test_the_end_of_a_call_in_a_step_is_not_the_end_of_the_answer() -> None:
    end = upstream_end("stop")
    assert evidence(log(text("a"), end)).was_answered
    assert not evidence(log(text("a"), end._replace(data={**end.data, "step": 1}))).was_answered


# The unbroken prefix of steps that only replay.


@pytest.mark.parametrize(
    ("steps", "prefix"),
    [
        ((), 0),
        ((step(1),), 1),
        ((step(1), step(2), step(3)), 3),
        ((step(1), step(2, "running"), step(3)), 1),
        ((step(2), step(3)), 0),
        ((step(1, "failed"),), 0),
        ((step(1, "failed"), step(2)), 2),
        ((step(1, "failed"), step(2, "running")), 1),
        ((step(1, "failed", taken=4), step(2), step(3)), 0),
        ((step(1, "failed", taken=3), step(2), step(3)), 3),
    ],
)
def test_the_prefix_ends_before_the_first_step_that_executes_again(
    steps: Sequence[StepRecord], prefix: int
) -> None:
    history = {0: step(0, "running"), **{one.step_index: one for one in steps}}
    assert settled_prefix(history) == prefix


def test_frames_of_a_stream_behind_a_failure_that_is_final_stay() -> None:
    frames = log(text("sorry"))
    found = evidence(frames, step(1, "failed"), step(2, frames_to=1), step(3, "running"))
    assert texts(found.kept) == "sorry"


# A turn that waited.


def waits_in(position: int, status: StepStatus = "running") -> StepRecord:
    return step(position, status)._replace(kind="event", intent="event:answer")


def mark(position: int) -> Frame:
    return Frame(0, 0, "wait", {"step": position})


ASKED = log(text("Found. "), text("May I? "), mark(2), text("Still here."))
FOUND = step(1, frames_to=1)


def test_what_stands_before_a_wait_that_goes_on_stays() -> None:
    found = evidence(ASKED, FOUND, waits_in(2))
    assert texts(found.kept) == "Found. May I? "
    assert (found.open_wait, found.kept_position) == (2, 2)
    assert found.shows_more_than_is_kept


@pytest.mark.parametrize(
    "steps",
    [
        (FOUND, step(2, "running")),
        (FOUND, waits_in(2, "failed")),
        (step(1, "running"), waits_in(2)),
        (FOUND,),
    ],
)
def test_only_an_open_wait_behind_recorded_steps_keeps_anything(steps: list[StepRecord]) -> None:
    found = evidence(ASKED, *steps)
    assert found.open_wait == 0
    assert "May I?" not in texts(found.kept)


async def test_who_waited_was_not_interrupted() -> None:
    found = evidence(ASKED[:3], FOUND, waits_in(2))
    assert await choose_rung(found, "fail", identity=TURN, attempt=2) == "rerun_unseen"
