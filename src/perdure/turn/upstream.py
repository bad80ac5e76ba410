"""The answer that goes on upstream although its worker is lost: joined again, or ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

from perdure.core.frames import Frame
from perdure.core.limits import HOOK_TIMEOUT_MS
from perdure.core.records import JsonValue
from perdure.errors import LeaseLostError, UsageError
from perdure.turn.calling import HookCalls
from perdure.turn.closing import Produce, TurnSettings
from perdure.turn.handout import Turn
from perdure.turn.hooks import call_hook
from perdure.turn.recovery import DECISIONS, SavedHandle
from perdure.turn.stepping import TurnSteps

logger = logging.getLogger("perdure.turn")

CANCEL_MS: Final = 5_000
"""How long the provider has to end an answer that nobody wants any more."""


class AttachingProducer(Protocol):
    """A producer that can do more with an interrupted answer than begin it again.

    Each of its methods may be missing. `turn.upstream` is the handle that was saved.
    """

    def __call__(self, turn: Turn) -> Any:
        """Answer the turn, as every producer."""
        ...

    async def attach(self, turn: Turn) -> AsyncIterator[Frame] | None:
        """Join the answer that goes on upstream; None where that is not possible any more.

        `turn.partial` is what readers have of that answer. What is returned yields what follows
        it; readers see no restart.
        """
        ...

    def continue_partial(self, turn: Turn) -> Any:
        """Go on behind `turn.partial`, which readers keep; yield, as a producer, what follows."""
        ...

    async def cancel(self, handle: JsonValue) -> None:
        """End the answer upstream: its turn was stopped, has failed, or does not join it."""
        ...


def check_policy(policy: object, produce: object) -> None:
    """Raise UsageError unless `produce` can answer, and `policy` decide on a lost attempt."""
    if not callable(produce):
        raise UsageError(
            f"produce must be callable with a turn, not {produce!r:.60}: `answer_with(backend)` "
            "makes a producer of a model, `AgentTaskProducer(backend, …)` of a backend of tasks"
        )
    if callable(policy):
        return
    if policy not in DECISIONS:
        told = ", ".join(map(repr, DECISIONS))
        raise UsageError(f"on_interrupted must be one of {told} or a callable, it is {policy!r}")
    if policy == "continue" and not callable(getattr(produce, "continue_partial", None)):
        raise UsageError(
            "on_interrupted='continue' needs a producer with a method `continue_partial`, "
            "such as `answer_with(backend)`"
        )


class Upstream:
    """What one attempt at a turn does with the answer that may go on upstream.

    `handle` is that of the answer, None if none is known. `joined` is what follows behind what
    readers have, once `attach` has returned True; that may take as long as a turn may be silent.
    """

    def __init__(
        self,
        settings: TurnSettings,
        calls: HookCalls,
        steps: TurnSteps,
        saved: SavedHandle | None,
    ) -> None:
        produce = settings.produce
        self.handle = None if saved is None else saved.handle
        self.joined: AsyncIterator[Frame] | None = None
        self.continue_partial: Produce | None = getattr(produce, "continue_partial", None)
        self._attach = getattr(produce, "attach", None)
        self._cancel = getattr(produce, "cancel", None)
        self._calls = calls
        self._attach_ms = max(HOOK_TIMEOUT_MS, settings.idle_timeout_ms)
        self._leaving: asyncio.Task[None] | None = None
        self._steps = steps

    @property
    def can_attach(self) -> bool:
        return self.handle is not None and callable(self._attach)

    async def attach(self, turn: Turn) -> bool:
        """Join the answer, if it can be; whatever fails of it, the ladder has other rungs."""
        assert self._attach is not None
        try:
            limit_ms = self._attach_ms
            self.joined = await self._calls.call(self._attach, turn, limit_ms=limit_ms)
        except LeaseLostError:
            raise
        except Exception:
            logger.warning("the answer upstream could not be joined", exc_info=True)
        if self.joined is None:
            await self._steps.begin_again()
        return self.joined is not None

    def produce(self, _turn: Turn) -> AsyncIterator[Frame]:
        """Return what was joined, as a producer does; closing it is for whoever drives it."""
        joined, self.joined = self.joined, None
        assert joined is not None
        return joined

    def leave(self) -> None:
        """End the answer beside the work that takes its place: nobody will join it any more."""
        if self.handle is not None:
            ending = self.cancel(self.handle)
            self._leaving = asyncio.get_running_loop().create_task(ending)

    async def close(self) -> None:
        """Leave what was joined and is driven by nobody, and have ended what was left."""
        close = getattr(self.joined, "aclose", None)
        if close is not None:
            await close()
        if self._leaving is not None:
            await self._leaving

    async def end(self, handle: JsonValue, *, is_whole: bool) -> None:
        """End what goes on upstream once the turn is over: its answer, unless that `is_whole`.

        The answer of a stream that was broken off goes on beside a whole one.
        """
        left = self._steps.upstream
        handles = [None if is_whole else handle, None if left is None else left.handle]
        for each in handles:
            if each is not None:
                await self.cancel(each)

    async def cancel(self, handle: JsonValue) -> None:
        """End an answer for which nobody waits any more; a failure is logged."""
        if not callable(self._cancel):
            return
        try:
            async with asyncio.timeout(CANCEL_MS / 1_000):
                await call_hook(self._cancel, handle)
        except Exception:
            logger.warning("the answer upstream could not be ended", exc_info=True)
