"""What becomes of an interrupted turn: the ladder, as a pure function of what is recorded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, cast, get_args

from perdure.core.changes import SettleUsage
from perdure.core.frames import KEPT_KINDS, TERMINAL_KINDS, Frame, fold_parts, text_of
from perdure.core.records import JsonValue, StepRecord
from perdure.durable.failures import is_settled
from perdure.errors import UsageError
from perdure.turn.identity import ChatTurnIdentity
from perdure.turn.parts import usage_in

Rung = Literal["begin", "finish", "attach", "rerun_unseen", "rerun", "continue", "fail"]
Decision = Literal["rerun", "continue", "fail"]

DECISIONS: Final = get_args(Decision)

ENDS_A_CALL_ONLY: Final = frozenset({"tool_calls", "function_call", "tool_use"})
"""Finish reasons after which the answer goes on once the tools have answered."""


class Partial(NamedTuple):
    """What the reader has seen of a turn and keeps."""

    text: str
    parts: Sequence[Mapping[str, JsonValue]]


def partial_of(frames: Sequence[Frame]) -> Partial:
    """Return what a reader has who has seen these frames."""
    parts = fold_parts(frames)
    return Partial(text_of(parts), parts)


class InterruptedTurn(NamedTuple):
    """What a policy is asked about: an attempt was lost after readers had seen some of it.

    `seen` is everything they saw, `kept` what stays in any case (the frames of recorded steps).
    `open_tool_call` names a tool call that may have taken effect without being answered: "rerun"
    makes it again, "continue" fails the turn.
    """

    identity: ChatTurnIdentity
    attempt: int
    seen: Partial
    kept: Partial
    open_tool_call: str | None


Policy = Decision | Callable[[InterruptedTurn], Awaitable[Decision]]


class SavedHandle(NamedTuple):
    """The handle of an answer that goes on upstream; `after`: the last seq before its frames."""

    handle: JsonValue
    after: int


class StepHandle(NamedTuple):
    """The handle of an answer that a step has asked for; `step` is the position of that."""

    handle: JsonValue
    step: int


def saved_handle(upstream: JsonValue) -> SavedHandle | None:
    """Return the handle that a run keeps, if it is one that a turn has saved."""
    stored = _fields_of(upstream)
    return SavedHandle(**stored) if stored.keys() == set(SavedHandle._fields) else None


def step_handle(upstream: JsonValue) -> StepHandle | None:
    """Return the handle that a run keeps, if it is one of a step."""
    stored = _fields_of(upstream)
    return StepHandle(**stored) if stored.keys() == set(StepHandle._fields) else None


def _fields_of(upstream: JsonValue) -> dict[str, JsonValue]:
    return cast("dict[str, JsonValue]", upstream) if isinstance(upstream, dict) else {}


class Evidence(NamedTuple):
    """What the store knows of the earlier attempts at a turn."""

    is_first: bool
    frames: Sequence[Frame]
    kept: Sequence[Frame]
    steps: Mapping[int, StepRecord]

    @property
    def ended_before(self) -> bool:
        """Whether the log ends with an end: the turn failed or was parked, and is retried."""
        return bool(self.frames) and self.frames[-1].kind in TERMINAL_KINDS

    @property
    def was_answered(self) -> bool:
        """Whether the log holds the end of the model's answer, so that nothing is missing."""
        for frame in reversed(self.frames):
            if frame.kind == "upstream_end":
                # Behind a call in a step the producer has more to do.
                return "step" not in frame.data and frame.data["finish"] not in ENDS_A_CALL_ONLY
            if frame.kind not in TERMINAL_KINDS and frame.kind != "usage":
                return False
        return False

    @property
    def answered_usage(self) -> SettleUsage | None:
        """What the frames say that the call used whose whole answer they hold; None: nothing.

        It is call 0 of the attempt that was answered; the calls of steps have told their own.
        """
        if not self.was_answered:
            return None
        epoch = next(f.epoch for f in reversed(self.frames) if f.kind == "upstream_end")
        told = [f for f in self.frames if f.kind == "usage" and f.epoch == epoch]
        return usage_in(told, 0, epoch=epoch)

    @property
    def shows_more_than_is_kept(self) -> bool:
        return any(frame.kind in KEPT_KINDS for frame in self.frames[self._kept_count :])

    @property
    def ends_in_text(self) -> bool:
        """Whether the last that readers saw is text, which an answer can go on behind."""
        shown = (frame.kind for frame in reversed(self.frames) if frame.kind in KEPT_KINDS)
        return next(shown, None) == "text"

    @property
    def open_wait(self) -> int:
        """The position of the wait behind all recorded steps whose begin is kept; 0: there is none.

        Its producer was not interrupted: it waited, and waits on.
        """
        return next((frame.data["step"] for frame in self.kept if frame.kind == "wait"), 0)

    @property
    def kept_position(self) -> int:
        """The position up to which readers keep everything that is yielded."""
        return max(self.open_wait, last_kept_position(self.steps))

    @property
    def _kept_count(self) -> int:
        last = self.kept[-1].seq if self.kept else 0
        return sum(1 for frame in self.frames if frame.seq <= last)

    @property
    def open_steps(self) -> Sequence[StepRecord]:
        """Steps that were interrupted and must not simply be executed again."""
        return [
            step
            for step in self.steps.values()
            if step.step_index > 0 and step.status == "running" and step.effect == "at_most_once"
        ]

    @property
    def open_tool_call(self) -> str | None:
        """A tool call that may have happened and is not declared repeatable."""
        if self.open_steps:
            return self.open_steps[0].intent
        calls: dict[str, Frame] = {}
        for frame in self.frames[self._kept_count :]:
            if frame.kind == "tool_call":
                calls[frame.data["call"]] = frame
            elif frame.kind == "tool_result":
                calls.pop(frame.data["call"], None)
        for frame in calls.values():
            if frame.data.get("effect", "at_most_once") == "at_most_once":
                return str(frame.data["name"])
        return None


def gather_evidence(
    frames: Sequence[Frame], steps: Mapping[int, StepRecord], *, is_first: bool
) -> Evidence:
    """Return what `frames` (from the last restart on) and `steps` say of earlier attempts.

    What is kept is all content, and why model calls ended, up to the end of the unbroken prefix of
    recorded steps, or to the wait behind it that still goes on, and what an earlier restart kept
    for the same reason.
    """
    kept_to = 0
    if frames and frames[0].kind == "restarted":
        kept_to = frames[0].seq + frames[0].data.get("kept", 0)
    for position in range(1, settled_prefix(steps) + 1):
        kept_to = max(kept_to, steps[position].frames_to or 0)
    wait = _open_wait(frames, steps)
    if wait is not None:
        kept_to = max(kept_to, wait.seq)
    kept = [f for f in frames if f.seq <= kept_to and (is_remembered(f) or f is wait)]
    return Evidence(is_first, frames, kept, steps)


def _open_wait(frames: Sequence[Frame], steps: Mapping[int, StepRecord]) -> Frame | None:
    """Return the mark of the wait that stands behind the recorded steps and is not over."""
    step = steps.get(settled_prefix(steps) + 1)
    if step is None or step.kind != "event" or step.status != "running":
        return None
    marks = (f for f in frames if f.kind == "wait" and f.data["step"] == step.step_index)
    return next(marks, None)


def is_remembered(frame: Frame) -> bool:
    """Return whether the frame says something of the answer: its content, or why it ended."""
    return frame.kind in KEPT_KINDS or frame.kind == "upstream_end"


def settled_prefix(steps: Mapping[int, StepRecord]) -> int:
    """Return the last position of the unbroken prefix of steps that only replay; 0 for none."""
    last_position, position = max(steps, default=0), 0
    while position + 1 in steps:
        step = steps[position + 1]
        replays = step.status == "completed" or (
            step.status == "failed" and is_settled(step, last_position=last_position)
        )
        if not replays:
            break
        position += 1
    return position


def last_kept_position(steps: Mapping[int, StepRecord]) -> int:
    """Return the last step of that prefix whose end readers keep everything up to; 0 for none.

    A failure that only replays keeps no frames: what is yielded before it is new.
    """
    kept = (p for p in range(1, settled_prefix(steps) + 1) if steps[p].frames_to is not None)
    return max(kept, default=0)


async def choose_rung(
    evidence: Evidence,
    policy: Policy,
    *,
    identity: ChatTurnIdentity,
    attempt: int,
    attach: Callable[[], Awaitable[bool]] | None = None,
) -> Rung:
    """Return the first rung of the ladder that applies.

    `attach` joins the answer that goes on upstream, if it can: None where there is no handle. A
    turn that was over and is retried by hand runs again whatever it had open: somebody looked.
    """
    if evidence.is_first and not evidence.frames:
        return "begin"
    if evidence.was_answered:
        return "finish"
    if evidence.ended_before:
        return "rerun"
    if attach is not None and not evidence.open_steps and await attach():
        return "attach"
    open_tool_call = evidence.open_tool_call
    if open_tool_call is None and not evidence.shows_more_than_is_kept:
        return "rerun_unseen"
    if not callable(policy):
        decision: Decision = "fail" if open_tool_call is not None else policy
    else:
        decision = await policy(_interrupted(evidence, identity=identity, attempt=attempt))
        if decision not in DECISIONS:
            told = ", ".join(map(repr, DECISIONS))
            raise UsageError(f"on_interrupted must decide for one of {told}, not {decision!r}")
    if decision != "continue":
        return decision
    if open_tool_call is not None:
        return "fail"
    return "continue" if evidence.ends_in_text else "rerun"


def _interrupted(
    evidence: Evidence, *, identity: ChatTurnIdentity, attempt: int
) -> InterruptedTurn:
    return InterruptedTurn(
        identity=identity,
        attempt=attempt,
        seen=partial_of(evidence.frames),
        kept=partial_of(evidence.kept),
        open_tool_call=evidence.open_tool_call,
    )
