"""Calls: how a task calls its user's code, so that each call happens once and is cut in time.

In a durable task each call is a step. What a task's course depends on is taken from the record:
the value, how long the call took, and whether it was cut off. So a replay takes the same course.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

from perdure.agent.adapter import resolve
from perdure.agent.cancel import CancelSignal
from perdure.core import observing
from perdure.core.effects import Clock, monotonic_ms, system_clock
from perdure.core.observing import Told
from perdure.core.records import Effect, JsonValue, Retry, StepKind
from perdure.core.wire import to_wire
from perdure.core.wording import error_text
from perdure.durable.context import DurableContext
from perdure.durable.failures import CANCELLED_WITHIN
from perdure.errors import AgentRuntimeError, StepFailedError, UsageError

GRACE_MS: Final = 1_000
"""How long a call that was cancelled may take to clean up before it is left behind."""

Cut = Literal["cancelled", "wall_time"]


class Recording(Protocol):
    """Where calls are recorded: a DurableContext, or a Turn."""

    def step(
        self,
        intent: str,
        fn: Callable[[], Awaitable[Any]],
        *,
        kind: StepKind = "logic",
        retry: Retry | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[Any]: ...
    def await_event(self, key: str, *, timeout_ms: int | None = 60_000) -> Awaitable[JsonValue]: ...


class CutShort(Exception):
    """The signal fired before, or while, something was called whose value is needed."""


@dataclass(frozen=True, slots=True)
class Called:
    """What a call came to: a value, an error, or a cut. `at_ms` is when it began."""

    value: Any = None
    error: BaseException | None = None
    cut: Cut | None = None
    at_ms: int = 0
    duration_ms: float = 0.0

    @property
    def message(self) -> str:
        """What is told of the error."""
        error = self.error
        if isinstance(error, StepFailedError):
            return error.original_message
        return "" if error is None else error_text(error)


class Calls:
    """Calls the hooks of one task: directly, or as steps of a run, or of another `recording`.

    `work_ms` is how long all calls so far took together.
    """

    def __init__(
        self,
        context: DurableContext | None = None,
        signal: CancelSignal | None = None,
        *,
        recording: Recording | None = None,
        grace_ms: int = GRACE_MS,
        clock: Clock = system_clock,
    ) -> None:
        self.context = context
        self.recording: Recording | None = recording or context
        self.signal = signal or CancelSignal()
        self.work_ms = 0.0
        self.now_ms = 0
        self._grace_ms = grace_ms
        self.clock = clock

    async def call(
        self,
        intent: str,
        fn: Callable[[], Any],
        *,
        read: Callable[[JsonValue], Any] | None = None,
        kind: StepKind = "logic",
        timeout_ms: float | None = None,
        retry: Retry | None = None,
        effect: Effect | None = None,
    ) -> Called:
        """Call `fn`, plain or async, and return what it came to; only Exceptions are held.

        In a durable task the value is recorded in wire form, and `read` makes of it what the
        caller works with. What concerns the run itself (a lost lease, a store) is raised. One that
        cancels itself has failed.
        """
        if self.recording is None:
            try:
                called = await self._perform(fn, timeout_ms)
            except Exception as error:
                called = Called(error=error, at_ms=self.clock())
        else:
            tool = intent.partition(":")[0] if kind == "tool" else None
            called = await self._step(
                intent,
                lambda: self._recorded(fn, timeout_ms, tool=tool),
                read=read,
                kind=kind,
                retry=retry,
                effect=effect,
            )
        self.work_ms += called.duration_ms
        self.now_ms = max(self.now_ms, called.at_ms + round(called.duration_ms))
        return called

    async def value(
        self,
        intent: str,
        fn: Callable[[], Any],
        *,
        read: Callable[[JsonValue], Any] | None = None,
        kind: StepKind = "logic",
        effect: Effect | None = None,
    ) -> Any:
        """Return what `fn` returns, like `call`; raise its error, or CutShort."""
        called = await self.call(intent, fn, read=read, kind=kind, effect=effect)
        if called.error is not None:
            raise called.error
        if called.cut is not None:
            raise CutShort
        return called.value

    async def _step(
        self,
        intent: str,
        fn: Callable[[], Any],
        *,
        read: Callable[[JsonValue], Any] | None,
        kind: StepKind,
        retry: Retry | None,
        effect: Effect | None,
    ) -> Called:
        assert self.recording is not None
        try:
            found: dict[str, JsonValue] = await self.recording.step(
                intent, fn, kind=kind, retry=retry, effect=effect
            )
        except StepFailedError as error:
            return Called(error=error, at_ms=self.now_ms)
        called = Called(
            found.get("value"), None, found.get("cut"), found["atMs"], found["durationMs"]
        )
        if read is None or called.cut is not None:
            return called
        try:
            return replace(called, value=read(called.value))
        except UsageError as error:
            return replace(called, value=None, error=error)

    async def _recorded(
        self, fn: Callable[[], Any], timeout_ms: float | None, *, tool: str | None
    ) -> JsonValue:
        observing.tell(Told(tool=tool))
        called = await self._perform(fn, timeout_ms)
        return {
            "value": to_wire(called.value),
            "atMs": called.at_ms,
            "durationMs": called.duration_ms,
            "cut": called.cut,
        }

    async def _perform(self, fn: Callable[[], Any], timeout_ms: float | None) -> Called:
        """Call `fn` unless the signal has fired; cut it off when that fires, or in time."""
        at_ms, begun = self.clock(), monotonic_ms()
        if self.signal.cancelled:
            return Called(cut="cancelled", at_ms=at_ms)
        work = asyncio.ensure_future(_run(fn))
        fired = asyncio.ensure_future(self.signal.wait())
        limit = None if timeout_ms is None else max(0.0, timeout_ms) / 1_000
        try:
            await asyncio.wait({work, fired}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cut: Cut = "cancelled" if fired.done() else "wall_time"
            fired.cancel()
            was_cut = not work.done()
            if was_cut:
                await self._leave(work)
        length = monotonic_ms() - begun
        if was_cut and (not work.done() or work.cancelled()):
            return Called(cut=cut, at_ms=at_ms, duration_ms=length)
        if work.cancelled():
            # Nobody has cancelled the task: for it this is a failure like any other.
            raise AgentRuntimeError(CANCELLED_WITHIN)
        return Called(work.result(), at_ms=at_ms, duration_ms=length)

    async def _leave(self, work: asyncio.Future[Any]) -> None:
        """Cancel `work` and give it time to clean up; what it still does is nobody's concern."""
        work.cancel()
        work.add_done_callback(lambda over: over.cancelled() or over.exception())
        await asyncio.wait({work}, timeout=self._grace_ms / 1_000)


async def _run(fn: Callable[[], Any]) -> Any:
    return await resolve(fn())
