"""What a product hangs on its turns: hooks that may change or follow them."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from perdure.core.records import JsonValue, RunRecord
from perdure.durable.calls import is_cancelled
from perdure.errors import UsageError
from perdure.turn.identity import ChatTurnIdentity

logger = logging.getLogger("perdure.turn")

PERSIST: Final = "persist_assistant_message"
COMPLETE: Final = "on_turn_complete"
TRACE_FLUSH_MS: Final = 5_000
"""How long a turn that is over waits for hooks that follow it."""
EVENTS_WAITING_MAX: Final = 1_024
"""So many events wait for an async `on_event` of one turn; then the oldest is dropped for each."""
OnFailure = Callable[[str, BaseException], None]
"""Hears of what failed beside the stream: the name of a hook, or "turn", and what it raised."""
ENDS_THE_PROCESS: Final = (KeyboardInterrupt, SystemExit)
"""What a hook raises for the process; anything else that it raises is a failure of the hook."""
NAMES: Final = (
    PERSIST,
    COMPLETE,
    "on_event",
    "transform_final_text",
    "trace_flush",
    "produce",
)


class FinishedTurn(NamedTuple):
    """A turn that ended with an answer, as its hooks get it.

    `final_text` is what `transform_final_text` made of it. `finish_reason` is why the model's last
    answer ended, in its provider's words ("stop", "length", "content_filter"); None where that is
    not known, and for a turn that was stopped. `idempotency_key` is the same on every
    delivery of this turn to this hook: what was done under it needs no doing again.
    """

    identity: ChatTurnIdentity
    status: Literal["completed", "stopped"]
    final_text: str
    parts: Sequence[Mapping[str, JsonValue]]
    record: RunRecord
    idempotency_key: str
    finish_reason: str | None = None


class ChatTurnHooks:
    """Subclass it, or pass the callables by name; each may be plain or async.

    `persist_assistant_message` and then `on_turn_complete` are delivered from the outbox after a
    completed or stopped turn, at least once, until they succeed. `transform_final_text` runs
    before the end is recorded; raising fails the turn. `on_event` sees each event that the owner
    of the turn has written, in order; it never slows a stream, and raising is logged.
    `trace_flush` runs when an attempt at a turn is over, however it went. `produce`, without
    arguments, is the producer of the reference's `run_turn` and is not used elsewhere.
    """

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        for name, hook in hooks.items():
            if name not in NAMES:
                raise UsageError(f"there is no hook {name!r} (known: {', '.join(NAMES)})")
            if not callable(hook):
                raise UsageError(f"the hook {name!r} is not callable")
            setattr(self, name, hook)

    def persist_assistant_message(self, turn: FinishedTurn) -> Awaitable[None] | None:
        """Store the answer in the product's own database."""

    def on_turn_complete(self, turn: FinishedTurn) -> Awaitable[None] | None:
        """Do what else must follow a turn: bill it, notify somebody."""

    def on_event(self, event: Mapping[str, JsonValue]) -> Awaitable[None] | None:
        """Follow the events of turns."""

    def transform_final_text(self, text: str) -> Awaitable[str] | str:
        """Return what hooks get as the final text; the stream stays as it was."""
        return text

    def trace_flush(self) -> Awaitable[None] | None:
        """Send what tracing has collected."""

    def produce(self) -> Any:
        """Return the producer of one turn."""
        raise UsageError("run_turn needs hooks with a `produce`")


def has_hook(hooks: ChatTurnHooks, name: str) -> bool:
    """Return whether the product gave this hook, so that nothing is done for one it did not."""
    return name in vars(hooks) or getattr(type(hooks), name) is not getattr(ChatTurnHooks, name)


async def call_hook(hook: Callable[..., Any], *values: Any) -> Any:
    """Call a hook, plain or async, and return what it returns."""
    answer = hook(*values)
    return await answer if inspect.isawaitable(answer) else answer


def tell_nobody(_name: str, _error: BaseException) -> None:
    """Be the OnFailure of whoever has none: what failed is in the log of this package."""


async def flush_trace(hooks: ChatTurnHooks, on_failure: OnFailure = tell_nobody) -> None:
    """Call the hook `trace_flush`; its failure is logged and ends nothing."""
    try:
        async with asyncio.timeout(TRACE_FLUSH_MS / 1_000):
            await call_hook(hooks.trace_flush)
    except ENDS_THE_PROCESS:
        raise
    except BaseException as error:
        if is_cancelled():
            raise
        logger.exception("the hook trace_flush failed")
        on_failure("trace_flush", error)


class EventFollower:
    """Hands the events of a turn to the hook `on_event`, in order, and logs what it raises.

    One that is async is awaited beside the stream, which it never holds up: what it is too slow for
    is dropped, the oldest first, so that it is told how the turn ended.
    """

    def __init__(self, hooks: ChatTurnHooks, on_failure: OnFailure = tell_nobody) -> None:
        self.dropped = 0
        """Events that the hook was not told of."""
        self._on_failure = on_failure
        self._hook = hooks.on_event if has_hook(hooks, "on_event") else None
        self._waiting: deque[Mapping[str, JsonValue]] = deque()
        self._telling: asyncio.Task[None] | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether the product gave the hook, so that events need to be made for it."""
        return self._hook is not None

    def tell(self, events: Iterable[Mapping[str, JsonValue]]) -> None:
        """Tell the hook of these events, now or when it is done with earlier ones."""
        for event in events:
            self._wait(event)
            if self._telling is None:
                self._begin()

    async def finish(self) -> None:
        """Wait until the hook has been told of everything; what takes too long is given up."""
        telling = self._telling
        if telling is not None:
            await asyncio.wait((telling,), timeout=TRACE_FLUSH_MS / 1_000)
            if not telling.done():
                telling.cancel()
        self.dropped += len(self._waiting)
        self._waiting.clear()
        if self.dropped:
            logger.error("the hook on_event was too slow: it missed %d events", self.dropped)

    def _wait(self, event: Mapping[str, JsonValue]) -> None:
        if len(self._waiting) >= EVENTS_WAITING_MAX:
            if not self.dropped:
                logger.warning("the hook on_event is too slow: the oldest events are dropped")
            self.dropped += 1
            self._waiting.popleft()
        self._waiting.append(event)

    def _begin(self) -> None:
        """Tell the hook of what waits, until it has to be awaited."""
        while self._waiting:
            answer = self._call(self._waiting.popleft())
            if inspect.isawaitable(answer):
                loop = asyncio.get_running_loop()
                self._telling = loop.create_task(self._tell_one_by_one(answer))
                return

    def _call(self, event: Mapping[str, JsonValue]) -> object:
        try:
            return None if self._hook is None else self._hook(event)
        except ENDS_THE_PROCESS:
            raise
        except BaseException as error:
            self._failed(error)
            return None

    async def _tell_one_by_one(self, answer: object) -> None:
        try:
            while True:
                if inspect.isawaitable(answer):
                    await self._finished(answer)
                if not self._waiting:
                    break
                answer = self._call(self._waiting.popleft())
        finally:
            self._telling = None

    async def _finished(self, answer: Awaitable[object]) -> None:
        try:
            await answer
        except ENDS_THE_PROCESS:
            raise
        except BaseException as error:
            if is_cancelled():
                raise
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        logger.error("the hook on_event failed", exc_info=error)
        self._on_failure("on_event", error)
