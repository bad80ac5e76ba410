"""CancelSignal: how a caller tells work, politely, that its result is no longer wanted."""

from __future__ import annotations

import asyncio

from perdure.errors import AgentRuntimeError


class CancelSignal:
    """Fires once, for good. A signal with a parent fires with it.

    Waiting is bound to one event loop; `cancel` is called in that loop.
    """

    def __init__(self, parent: CancelSignal | None = None) -> None:
        self._fired = asyncio.Event()
        self._reason: object = None
        self._children: list[CancelSignal] = []
        self._parent = parent
        if parent is not None:
            if parent.cancelled:
                self.cancel(parent.reason)
            else:
                parent._children.append(self)

    @property
    def cancelled(self) -> bool:
        return self._fired.is_set()

    @property
    def reason(self) -> object:
        """What the canceller gave as the reason; None before."""
        return self._reason

    def cancel(self, reason: object = None) -> None:
        """Fire; a second call changes nothing."""
        if self.cancelled:
            return
        self._reason = reason
        self._fired.set()
        for child in self._children:
            child.cancel(reason)
        self._children.clear()

    def raise_if_cancelled(self) -> None:
        """Raise AgentRuntimeError if the signal has fired."""
        if self.cancelled:
            raise AgentRuntimeError(f"cancelled: {self._reason or 'no reason was given'}")

    async def wait(self) -> None:
        """Return as soon as the signal has fired."""
        await self._fired.wait()

    def release(self) -> None:
        """Leave the parent, once the work is over; the parent keeps nothing of it."""
        if self._parent is not None and self in self._parent._children:
            self._parent._children.remove(self)
