"""The positions of a run: who takes the next one, and what is recorded there already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from perdure.core.pricing import PriceTable, prices_of
from perdure.core.records import StepRecord
from perdure.durable.attempt import Attempt
from perdure.durable.calls import OpenCalls, note_failure
from perdure.durable.failures import side_by_side
from perdure.durable.scope import StepSpec, current_scope
from perdure.errors import DivergenceError, StepInputMismatchError, UsageError

T = TypeVar("T")


class Positions:
    """The positions of one run, taken in the order in which the task asks for them.

    With an `attempt`, unknown steps are executed and recorded; without one (a finished run) they
    only replay.
    """

    def __init__(
        self,
        stored_id: str,
        attempt: Attempt | None,
        history: Mapping[int, StepRecord],
        *,
        first_position: int = 0,
    ) -> None:
        self.stored_id = stored_id
        self.attempt = attempt
        self.refusal: BaseException | None = None
        """Why this attempt may take no more steps; whoever swallowed it meets it again."""
        self.on_unwind: Callable[[], None] | None = None
        """Called when a wait has given the lease away for good: nothing else may go on."""
        self.attendant: asyncio.Task[Any] | None = None
        """The asyncio task that waits for this attempt's own."""
        self._history = history
        self._next_position = first_position
        self._asked: dict[int, str] = {}
        self._calls = OpenCalls()

    @property
    def history(self) -> Mapping[int, StepRecord]:
        return self._history if self.attempt is None else self.attempt.history

    @property
    def prices(self) -> PriceTable | None:
        """By what the store records the costs of the calls of these steps."""
        return None if self.attempt is None else prices_of(self.attempt.store)

    def take(self) -> int:
        """Return the next position. Raises what ended this attempt, if something did."""
        if self.refusal is not None:
            raise self.refusal
        scope = current_scope.get()
        if scope is not None and scope.owner is self and not scope.holds_steps:
            raise UsageError(
                f"a step was begun inside the body of the step {scope.spec.intent!r}: "
                "call it from the task instead"
            )
        position = self._next_position
        self._next_position += 1
        self._calls.opened(position)
        return position

    @property
    def unanswered(self) -> int:
        """How many calls took a position and have not returned.

        While there are others, no wait may give the lease away.
        """
        return self._calls.count

    def watched(self, call: Coroutine[Any, Any, T], *positions: int) -> Coroutine[Any, Any, T]:
        """Return the call that answers for these positions, which may be dropped unbegun."""
        return self._calls.watched(call, *positions)

    def refuse(self, reason: BaseException) -> None:
        """Take no more steps: what the task thinks happened is not what is recorded."""
        self.refusal = self.refusal or reason

    def unwind(self) -> None:
        """Interrupt what the task does beside a wait that ended the attempt."""
        waiting = asyncio.current_task()
        if waiting is not None:
            # If nobody awaits the wait any more, its end is no news.
            waiting.add_done_callback(note_failure)
        if self.on_unwind is not None:
            self.on_unwind()

    def answered(self, spec: StepSpec) -> None:
        """Note that the call which took this position returns."""
        self._calls.answered(spec.position)

    async def close(self) -> None:
        """Cancel what the task left running in asyncio tasks of its own, and wait for it."""
        await self._calls.close()

    # Replaying.

    def replays(self, known: StepRecord, spec: StepSpec) -> bool:
        """Return whether the recorded step is completed. Raises DivergenceError for another."""
        if known.intent != spec.intent:
            raise self.diverged(
                spec,
                f"the task asks for the step {spec.intent!r} at position {spec.position}, "
                f"where {known.intent!r} is recorded",
            )
        if spec.input_hash and known.input_hash and spec.input_hash != known.input_hash:
            self.refusal = StepInputMismatchError(
                f"the step {spec.intent!r} at position {spec.position} was recorded with "
                "another fingerprint"
            )
            raise self.refusal
        self._asked[spec.position] = spec.intent
        return known.status == "completed"

    def diverged(self, spec: StepSpec, message: str) -> DivergenceError:
        """Return the error, with both histories, after which this attempt takes no more steps."""
        asked = {**self._asked, spec.position: spec.intent}
        error = DivergenceError(message)
        error.add_note(side_by_side(self.history, asked))
        self.refusal = error
        return error
