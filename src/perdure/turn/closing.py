"""Closing an attempt at a turn: each way to end is one write, after which readers see the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from perdure.core.changes import (
    AddDelivery,
    Change,
    EndRun,
    FailStep,
    Release,
    SettleUsage,
    Suspend,
)
from perdure.core.frames import Frame
from perdure.core.limits import HISTORY_TURNS_MAX
from perdure.core.recordjson import step_error_of
from perdure.core.records import StepError
from perdure.durable.attempt import Attempt, error_text
from perdure.durable.journal import Journal
from perdure.durable.scope import StepScope
from perdure.errors import LeaseLostError, PerdureError
from perdure.turn import ending
from perdure.turn.calling import INTERRUPTED_HOOK_MS, HookCalls
from perdure.turn.handout import Turn
from perdure.turn.hooks import ChatTurnHooks, OnFailure, has_hook, tell_nobody
from perdure.turn.identity import ChatTurnIdentity, intent_of
from perdure.turn.parts import Content
from perdure.turn.recovery import Policy
from perdure.turn.stepping import TurnSteps

logger = logging.getLogger("perdure.turn")

Produce = Callable[[Turn], Any]
"""Returns an async iterator of frames or events, or (the reference's way) something with such a
`stream` and a `final_text()`; may be a coroutine function."""


class TurnSettings(NamedTuple):
    """What an engine decides for all of its turns.

    `follow_up` is awaited with the stored id of a turn whose deliveries have just been recorded,
    before live readers see the end. `on_failure` hears of failed turns and of hooks that failed
    beside them. `steps` makes the steps of an attempt, for those that another engine records.
    """

    name: str
    produce: Produce
    hooks: ChatTurnHooks
    on_interrupted: Policy
    lease_ms: int
    strikes_max: int
    idle_timeout_ms: int
    expose_errors: bool
    follow_up: Callable[[str], Awaitable[None]]
    history_turns_max: int | None = HISTORY_TURNS_MAX
    on_failure: OnFailure = tell_nobody
    steps: Callable[[str, Attempt, Journal], TurnSteps] = TurnSteps


class Closing:
    """What it takes to end one attempt at a turn; `left` is set once the end is recorded."""

    def __init__(
        self,
        settings: TurnSettings,
        turn: ChatTurnIdentity,
        *,
        attempt: Attempt,
        calls: HookCalls,
        journal: Journal,
        steps: TurnSteps,
        left: asyncio.Event,
    ) -> None:
        self.content = Content()
        self.tries = 1
        self.input_hash = ""
        self.ended_as: str | None = None
        """The state that was recorded as the turn's own; None while it may go on by itself."""
        self.has_begun = False
        """Whether call 0 was intended in this attempt, so that it must be settled."""
        self.earlier: SettleUsage | None = None
        """What the frames of an attempt that was lost say of the call that it has left open."""
        self.scope: StepScope | None = None
        """In which the producer runs: it knows whom its backends asked."""
        self._settings = settings
        self._turn = turn
        self._attempt = attempt
        self._stored_id = attempt.lease.run_id
        self._calls = calls
        self._journal = journal
        self._steps = steps
        self._left = left

    async def end(
        self, status: ending.Status, final_text: str | None = None, *, transforms: bool = True
    ) -> None:
        """Record answer, usage, deliveries and end in one write; where that is refused, fail.

        A hook may refuse it, or a limit. Raises Drained when a hook was interrupted by a drain.
        Without `transforms`, hooks get the text as it is.
        """
        text = final_text or self.content.text
        try:
            await self._journal.awake()
            told = text
            if transforms:
                status, told = await self._told(text, status)
            finish = self._steps.finish_reason if status == "completed" else None
            changes, follow_ups = await self._ending(status, finish, text=text, told=told)
            await self._leave(changes, last=ending.end_frame(status, finish))
            self.ended_as = status
        except LeaseLostError:
            raise
        except Exception as error:
            if self._journal.is_over:
                raise
            await self.fail(error)
            return
        if follow_ups:
            await self._settings.follow_up(self._stored_id)
        self._journal.show_last()

    async def fail(self, error: BaseException, *also: FailStep) -> None:
        """End the turn as failed; what there is of it stays readable.

        `also`: steps that were found interrupted.
        """
        failure = ending.failure_of(error, expose=self._settings.expose_errors)
        recorded = step_error_of(error)
        failed = FailStep(
            0,
            intent_of(self._turn.turn_index),
            error_text(StepError(recorded.message, recorded.code)),
            kind="llm",
            input_hash=self.input_hash,
            tries=self.tries,
        )
        end = EndRun("failed", reason=failure.code, error_text=error_text(recorded))
        await self._leave((*also, failed, *await self._usage(), end), last=failure.frame())
        self.ended_as = "failed"
        self._settings.on_failure("turn", error)
        self._journal.show_last()

    async def park(self, error: PerdureError, reason: str) -> None:
        """Give the turn up until somebody asks for a retry."""
        ref = ending.failure_of(error, expose=False).ref
        failure = ending.Failure("parked", "The turn was given up; retry it.", True, ref)
        park = Suspend("parked", reason=reason, error_text=error_text(step_error_of(error)))
        await self._leave((*await self._usage(), park), last=failure.frame())
        self.ended_as = "parked"
        self._settings.on_failure("turn", error)
        self._journal.show_last()

    async def release(self, reason: str) -> None:
        """Give the lease back; what is pending is written, and somebody else goes on.

        A turn that waits has given it back already.
        """
        if await self._attempt.stay_asleep():
            self._left.set()
            return
        await self._leave((*await self._usage(), Release(reason)))

    def known_usage(self) -> SettleUsage | None:
        """Return what is known of call 0, the one of the producer itself."""
        return self.content.usage(0) if self.has_begun else None

    async def settle_late(self) -> None:
        """Record what is known of call 0 though the lease is lost."""
        usage, lease = self.known_usage(), self._attempt.first_lease
        await self._attempt.settle_late(usage, lease=lease)

    async def _leave(self, changes: Sequence[Change], *, last: Frame | None = None) -> None:
        await self._journal.leave(*changes, last=last)
        self._left.set()

    async def _ending(
        self, status: ending.Status, finish: str | None, *, text: str, told: str
    ) -> tuple[Sequence[Change], Sequence[AddDelivery]]:
        settings, turn = self._settings, self._turn
        answer = ending.answer_change(
            turn.turn_index,
            text=text,
            part_texts=self.content.part_texts,
            finish_reason=finish,
            stopped=status == "stopped",
            input_hash=self.input_hash,
            tries=self.tries,
            frames_to=self._journal.last_seq + 1,
        )
        follow_ups = ending.deliveries(
            settings.hooks,
            stored_id=self._stored_id,
            handler=settings.name,
            turn=turn,
            status=status,
            text=told,
        )
        streams = self._steps.take_held_back(all_of_them=True)
        left_behind = await self._steps.left_behind()
        end = EndRun(status, ending.outcome_text(turn.turn_index, text))
        return (answer, *streams, *left_behind, *await self._usage(), *follow_ups, end), follow_ups

    async def _told(self, text: str, status: ending.Status) -> tuple[ending.Status, str]:
        """Return how the turn ends and the text for hooks.

        A failing transformation fails a turn, but never a stop, which may come while it runs.
        """
        hooks = self._settings.hooks
        if not has_hook(hooks, "transform_final_text"):
            return status, text
        transform = hooks.transform_final_text
        try:
            told = await self._calls.call(transform, text, grace_ms=INTERRUPTED_HOOK_MS)
            if not isinstance(told, str):
                raise TypeError(f"transform_final_text returned {type(told).__name__}, not str")
        except LeaseLostError:
            raise
        except Exception as error:
            if not self._attempt.stop_requested and status != "stopped":
                raise
            logger.exception("transform_final_text failed for a stopped turn")
            self._settings.on_failure("transform_final_text", error)
            return "stopped", text
        return status, told

    async def _usage(self) -> tuple[SettleUsage, ...]:
        """Return what is recorded with the end of call 0; of one before a sleep it is done now."""
        used, attempt = self._used(), self._attempt
        if attempt.lease is attempt.first_lease:
            return used
        for usage in used:
            await attempt.settle_late(usage, lease=attempt.first_lease)
        return ()

    def _used(self) -> tuple[SettleUsage, ...]:
        """Return what is recorded of call 0: what is known of it, or that nobody knows.

        Where none is made since an earlier attempt has the whole answer, it is of that one's.
        """
        if not self.has_begun:
            return () if self.earlier is None else (self.earlier,)
        used = self.content.usage(0)
        if used is not None:
            return (used,)
        if self._steps.streams and self.content.spoken <= self._steps.spoken:
            # All was said in streams, which have rows of their own: call 0 was not made.
            return (SettleUsage(0, tokens_in=0, tokens_out=0),)
        scope = self.scope
        return (SettleUsage(0, state="unknown") if scope is None else scope.lost_usage(0),)
