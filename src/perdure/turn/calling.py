"""Calling hooks that a turn waits for: bounded in time, and cut short by what ends the attempt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from perdure.core.effects import monotonic_ms
from perdure.core.limits import HOOK_TIMEOUT_MS
from perdure.durable.attempt import Attempt
from perdure.durable.calls import note_failure
from perdure.errors import DurableRunError
from perdure.turn.hooks import ENDS_THE_PROCESS, call_hook

logger = logging.getLogger("perdure.turn")

INTERRUPTED_HOOK_MS: Final = 2_000
"""How long the last hook of a turn may go on once the turn is to be stopped, or given back."""


class Drained(BaseException):
    """The attempt is to be given back: whoever goes on calls the hook again.

    Not an Exception, so that nobody takes it for a failure of the hook.
    """


class HookCalls:
    """Calls hooks on behalf of one attempt; `wake` makes them look at what became of it."""

    def __init__(self, attempt: Attempt) -> None:
        self.draining = False
        self._attempt = attempt
        self._news: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Say that a stop, a drain or the loss of the lease is known."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def call(
        self,
        hook: Callable[..., Any],
        *values: Any,
        grace_ms: int = 0,
        limit_ms: float | None = None,
    ) -> Any:
        """Return what the hook returns, plain or async.

        Raises what it raises; DurableRunError if it cancels itself, or raises what is no
        Exception; TimeoutError after `limit_ms` (30 s); once it is interrupted it has `grace_ms`,
        then this raises TimeoutError (a stop) or Drained; LeaseLostError at once.
        """
        calling = asyncio.get_running_loop().create_task(call_hook(hook, *values))
        calling.add_done_callback(note_failure)
        deadline_ms = monotonic_ms() + (HOOK_TIMEOUT_MS if limit_ms is None else limit_ms)
        try:
            is_done = False
            while not is_done:
                self._attempt.check()
                if self._is_interrupted:
                    deadline_ms = min(deadline_ms, monotonic_ms() + grace_ms)
                is_done = await self._is_done(calling, deadline_ms)
        finally:
            calling.cancel()
        if calling.cancelled():
            raise DurableRunError(f"{_name(hook)} cancelled itself")
        raised = calling.exception()
        if raised is not None and not isinstance(raised, (Exception, *ENDS_THE_PROCESS)):
            # Whoever ends the turn handles what is an Exception; the model was paid for.
            raise DurableRunError(f"{_name(hook)} raised {type(raised).__name__}") from raised
        return calling.result()

    @property
    def _is_interrupted(self) -> bool:
        return self.draining or self._attempt.stop_requested

    async def _is_done(self, calling: asyncio.Task[Any], deadline_ms: float) -> bool:
        """Wait for the hook, for news, or for the deadline, which raises."""
        news = self._news
        if news is None or news.done():
            news = self._news = asyncio.get_running_loop().create_future()
        left_ms = max(0.0, deadline_ms - monotonic_ms())
        done, _ = await asyncio.wait(
            (calling, news), timeout=left_ms / 1_000, return_when=asyncio.FIRST_COMPLETED
        )
        if done:
            return calling in done
        if self.draining and not self._attempt.stop_requested:
            raise Drained
        raise TimeoutError("a hook that the turn waits for took too long")


def _name(hook: Callable[..., Any]) -> str:
    return f"the hook {getattr(hook, '__name__', type(hook).__name__)}"
