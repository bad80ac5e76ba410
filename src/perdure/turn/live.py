"""One attempt at a chat turn: a leased job of its own, which no reader can end by leaving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from perdure.core import identity
from perdure.core.changes import BeginStep, IntendUsage, SaveHandle
from perdure.core.frames import Frame
from perdure.core.records import Claim, JsonValue
from perdure.durable.attempt import Attempt
from perdure.durable.execution import live_runs
from perdure.durable.journal import Journal
from perdure.durable.ring import Ring
from perdure.durable.steps import StepScope, StepSpec
from perdure.durable.watched import watched
from perdure.errors import (
    DivergenceError,
    LeaseLostError,
    PerdureError,
    RunParkedError,
    StoreCorruptError,
    StoreError,
    UsageError,
)
from perdure.store.protocol import RunStore
from perdure.turn.calling import Drained, HookCalls
from perdure.turn.closing import Closing, TurnSettings
from perdure.turn.ending import IdleTimeoutError
from perdure.turn.handout import AttemptedTurn
from perdure.turn.history import history_of
from perdure.turn.hooks import EventFollower, flush_trace
from perdure.turn.identity import identity_of, intent_of
from perdure.turn.inheriting import Inheritance
from perdure.turn.producing import Producing
from perdure.turn.recovery import Evidence, Rung, choose_rung, partial_of
from perdure.turn.upstream import Upstream
from perdure.turn.watching import asked_model, watched_call
from perdure.turn.wire.events import Addressee, events_of, started

logger = logging.getLogger("perdure.turn")


class LiveTurn:
    """A claimed turn while this process works on it.

    It reads what earlier attempts left, goes on by the ladder, journals what the producer yields,
    and ends the run: completed, stopped, failed, parked, or released when it was drained.
    `asked_ms` is the monotonic moment at which the claim was asked for.
    """

    def __init__(
        self,
        settings: TurnSettings,
        store: RunStore,
        claim: Claim,
        *,
        stop: bool = False,
        asked_ms: float | None = None,
    ) -> None:
        assert claim.lease is not None
        self.run = claim.run
        turn = self.identity = identity_of(claim.run)
        self.ring = Ring(claim.next_seq)
        self.left = asyncio.Event()
        """The end is recorded, or somebody else goes on; hooks may still be running."""
        self.was_given_back = False
        """This attempt is over, but not the turn: somebody else may go on."""
        self.task: asyncio.Task[None] | None = None
        self._settings = settings
        self._stop = stop
        self._stored_id = claim.lease.run_id
        self._history = {step.step_index: step for step in claim.steps}
        self._draining = False
        self._follower = EventFollower(settings.hooks, settings.on_failure)
        self._has_told_start = False
        self._addressee = Addressee(
            turn.tenant_id, turn.session_id, turn.turn_index, revision=turn.revision
        )
        swept = partial(live_runs.swept, store.handle)
        self._attempt = Attempt(
            store, claim, lease_ms=settings.lease_ms, asked_ms=asked_ms, swept=swept
        )
        self._journal = Journal(
            self._attempt, self.ring, next_seq=claim.next_seq, on_published=self._tell
        )
        self._steps = settings.steps(self._stored_id, self._attempt, self._journal)
        self._calls = HookCalls(self._attempt)
        self._closing = Closing(
            settings,
            self.identity,
            attempt=self._attempt,
            calls=self._calls,
            journal=self._journal,
            steps=self._steps,
            left=self.left,
        )
        if self.run.manifest is not None:
            self._closing.input_hash = identity.canonical_hash(self.run.manifest.input)
        self._inheritance = Inheritance(
            self._attempt, journal=self._journal, steps=self._steps, content=self._closing.content
        )
        self._upstream = Upstream(settings, self._calls, self._steps, self._inheritance.handle)
        self._asked = asked_model(settings.produce, self.run.manifest)
        self._past: Sequence[Mapping[str, JsonValue]] | None = None
        self._turn: AttemptedTurn | None = None
        self._producing = self._make_producing()
        self._attempt.on_change = self._interrupt

    def _make_producing(self) -> Producing:
        intent = intent_of(self.identity.turn_index)
        known = self._history.get(0)
        self._closing.tries = 1 if known is None else known.attempts + 1
        scope = StepScope(self._steps, StepSpec(0, intent, kind="llm"), holds_steps=True)
        scope.tries = self._closing.tries
        self._closing.scope = scope
        return Producing(
            scope,
            attempt=self._attempt,
            journal=self._journal,
            steps=self._steps,
            content=self._closing.content,
            idle_timeout_ms=self._settings.idle_timeout_ms,
        )

    # Being told.

    def start(self, *, on_sleep: Callable[[], None] | None = None) -> asyncio.Task[None]:
        """Begin to work; the task never raises. `on_sleep`: it waits, and nobody holds it."""
        self._attempt.on_doze = on_sleep
        work = watched(
            self._attempt,
            self._run(),
            agent=self._settings.name,
            outcome=lambda: self._closing.ended_as or "given_back",
        )
        self.task = asyncio.get_running_loop().create_task(work)
        return self.task

    @property
    def is_asleep(self) -> bool:
        """Whether it waits for an event, and nobody holds it."""
        return self._attempt.is_asleep

    def stop(self) -> None:
        """End the turn as stopped, with what there is of it."""
        self._attempt.held.ask_to_stop()

    def take(self, claim: Claim, *, asked_ms: float) -> bool:
        """Go on with what a worker has claimed while the turn waited here; False: it cannot."""
        return not self._draining and self._attempt.take(claim, asked_ms=asked_ms)

    def drain(self) -> None:
        """Give the lease back; somebody else goes on."""
        self._draining = self._calls.draining = True
        self._interrupt()

    def _interrupt(self) -> None:
        self._producing.interrupt()
        self._calls.wake()

    async def rest(self) -> None:
        """Give the lease back, and return when that is done."""
        self.drain()
        if self.task is not None:
            await asyncio.wait((self.task,))

    # The attempt, from its claim to its end.

    async def _run(self) -> None:
        try:
            await self._attend_or_give_back()
        except LeaseLostError:
            logger.info("the lease on turn %r was lost: another worker goes on", self._stored_id)
            await self._closing.settle_late()
        except StoreError:
            # Not given back: its lease lapses, and the strike bounds how often this may happen.
            logger.exception("the turn %r is left to the next worker", self._stored_id)
        except Exception:
            logger.exception("the attempt at turn %r broke off", self._stored_id)
        finally:
            await self._attempt.stay_asleep()
            self._attempt.end()
            self.left.set()
            self.ring.close()
            await self._leave_upstream()
            await self._follower.finish()
            await flush_trace(self._settings.hooks, self._settings.on_failure)

    async def _attend_or_give_back(self) -> None:
        try:
            await self._attend()
        except Drained:
            await self._give_back()
        except asyncio.CancelledError:
            # The loop shuts down.
            if not self._attempt.is_over:
                await self._give_back()
            raise

    async def _give_back(self) -> None:
        await self._closing.release("drained")
        self.was_given_back = True

    async def _leave_upstream(self) -> None:
        """End the answer upstream, unless another attempt will join it."""
        await self._upstream.close()
        handle = self._upstream.handle if self._turn is None else self._turn.upstream
        if (ended_as := self._closing.ended_as) is not None:
            await self._upstream.end(handle, is_whole=ended_as == "completed")

    async def _attend(self) -> None:
        closing = self._closing
        closing.earlier = (await self._inheritance.read()).answered_usage
        # Before any hook is called, which may be what crashes: where the turn does not go on, they
        # hear of it once its end is recorded.
        refusal = self._refusal()
        if self._stop or self._attempt.stop_requested:
            self._inheritance.keep_everything()
            await closing.end("stopped", transforms=not self._has_crashed_too_often)
        elif refusal is not None:
            self._inheritance.keep_everything()
            await closing.park(*refusal)
        else:
            self._tell(())
            await self._climb()

    def _refusal(self) -> tuple[PerdureError, str] | None:
        """Return why this turn is parked before anything else happens, if it is."""
        known, intent = self._history.get(0), intent_of(self.identity.turn_index)
        if known is not None and known.intent != intent:
            divergence = DivergenceError(f"step 0 is recorded as {known.intent!r}, not {intent!r}")
            return divergence, divergence.code
        if self._has_crashed_too_often:
            crashes = RunParkedError(f"{self.run.strikes} attempts at the turn crashed")
            return crashes, "attempts_exhausted"
        return None

    @property
    def _has_crashed_too_often(self) -> bool:
        return self.run.strikes >= self._settings.strikes_max

    async def _climb(self) -> None:
        """Go on by the first rung of the ladder that applies."""
        closing, inheritance = self._closing, self._inheritance
        evidence = inheritance.evidence
        rung: Rung | None = None
        error: Exception | None = None
        try:
            rung = await self._choose(evidence)
        except LeaseLostError:
            raise
        except Exception as failure:
            error = failure
        if self._draining:
            raise Drained
        if rung in _WORKING_RUNGS and not self._attempt.stop_requested:
            await self._begin(rung)
            await self._work_on(rung)
            return
        inheritance.keep_everything()
        if self._attempt.stop_requested:
            await closing.end("stopped")
        elif error is not None:
            await closing.fail(error)
        elif rung == "finish":
            await closing.end("completed")
        else:
            await closing.fail(inheritance.lost(), *inheritance.open_steps_as_failed())

    async def _choose(self, evidence: Evidence) -> Rung:
        policy = self._settings.on_interrupted
        rung = await choose_rung(
            evidence,
            partial(self._calls.call, policy) if callable(policy) else policy,
            identity=self.identity,
            attempt=self._attempt.lease.epoch,
            attach=self._attach if self._upstream.can_attach else None,
        )
        if rung == "continue" and self._upstream.continue_partial is None:
            raise UsageError("the producer has no `continue_partial`, so no answer can go on")
        return rung

    async def _attach(self) -> bool:
        return await self._upstream.attach(await self._hand_out("attach"))

    async def _begin(self, rung: Rung) -> None:
        """Record, before the model may be called, that it may be; and what readers forget."""
        inheritance = self._inheritance
        # Here nobody objects to a repetition: a policy or a retry by hand decided for it.
        self._steps.repeatable = frozenset(
            step.step_index for step in inheritance.evidence.open_steps
        )
        self._attempt.usage_calls = 1
        self._closing.has_begun = True
        if rung in ("attach", "continue"):
            inheritance.go_on_behind_everything()
        else:
            if rung == "rerun":
                inheritance.keep_steps_only()
            else:
                inheritance.keep_steps()
            self._producing.swallow_to = inheritance.evidence.kept_position
        is_kept = rung == "attach" or self._steps.upstream is not None
        forget = [SaveHandle(None)] if self.run.upstream is not None and not is_kept else []
        await self._journal.write(*self._intended(), *forget)
        if forget:
            self._upstream.leave()

    def _intended(self) -> tuple[BeginStep, IntendUsage]:
        begin = BeginStep(
            0,
            intent_of(self.identity.turn_index),
            kind="llm",
            input_hash=self._closing.input_hash,
            tries=self._closing.tries,
        )
        provider, model = self._asked
        return begin, IntendUsage(0, step_index=0, provider=provider, model=model)

    # Producing, and how it ended.

    async def _work_on(self, rung: Rung) -> None:
        produce = self._settings.produce
        if rung == "attach":
            produce = self._upstream.produce
        elif rung == "continue" and self._upstream.continue_partial is not None:
            produce = self._upstream.continue_partial
        try:
            await watched_call(
                self._producing.run(produce, await self._hand_out(rung)),
                self._asked,
                usage=self._closing.known_usage,
                error=lambda: self._producing.error,
            )
        except asyncio.CancelledError:
            # The loop shuts down, and takes this turn for a reader's business.
            self._draining = True
            await self._settle()
            raise
        await self._settle()

    async def _hand_out(self, rung: Rung) -> AttemptedTurn:
        inheritance = self._inheritance
        evidence = inheritance.evidence
        if self._past is None:
            self._past = await history_of(
                self._attempt.store, self.run, turns_max=self._settings.history_turns_max
            )
        kept = evidence.frames if rung == "continue" else evidence.kept
        known = inheritance.joinable if rung == "attach" else kept
        self._turn = AttemptedTurn(
            self.identity,
            self._attempt,
            self._steps,
            history=self._past,
            partial=partial_of(known),
            upstream=self._upstream.handle if rung == "attach" else None,
        )
        return self._turn

    async def _settle(self) -> None:
        producing, attempt, closing = self._producing, self._attempt, self._closing
        error, refusal = producing.error, self._steps.refusal
        if attempt.held.lost:
            raise LeaseLostError(f"the lease on turn {self._stored_id!r} is lost")
        if isinstance(refusal, DivergenceError):
            await closing.park(refusal, refusal.code)
        elif producing.has_finished:
            await closing.end("completed", producing.final_text)
        elif attempt.stop_requested:
            await closing.end("stopped")
        elif producing.is_idle:
            limit_ms = self._settings.idle_timeout_ms
            await closing.fail(IdleTimeoutError(f"nothing came for {limit_ms} ms"))
        elif self._draining or error is None:
            await self._give_back()
        elif isinstance(error, StoreError) and not isinstance(error, StoreCorruptError):
            raise error
        else:
            await closing.fail(error)

    # Showing.

    def _tell(self, frames: Sequence[Frame]) -> None:
        """Tell `on_event` of these frames, the first time behind the start of the attempt."""
        if not self._follower.is_wanted:
            return
        if not self._has_told_start:
            self._has_told_start = True
            self._follower.tell((started(self._addressee),))
        for frame in frames:
            self._follower.tell(events_of(frame, self._addressee))


_WORKING_RUNGS: Final = ("begin", "attach", "rerun_unseen", "rerun", "continue")
