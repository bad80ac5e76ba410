"""What must be brought to rest before a store handle closes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Hashable
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Final

from perdure.core.effects import monotonic_ms
from perdure.errors import StoreClosedError

logger = logging.getLogger("perdure.store")

Rest = Callable[[], Awaitable[object]]

CLOSED: Final = "the store was closed: open another handle, as with open_store(url)"
REST_MS: Final = 20_000
"""A handle that is being closed waits this long for what does not come to rest."""

_kept_open: Final[ContextVar[Hashable]] = ContextVar("perdure_kept_open", default=None)

_waiting: Final[dict[Hashable, dict[object, Rest]]] = {}
_closing: Final[dict[Hashable, asyncio.Task[None]]] = {}


def before_close(handle: Hashable, rest: Rest) -> Callable[[], None]:
    """Have `rest` awaited before the handle closes; return what takes that back."""
    mark = object()
    _waiting.setdefault(handle, {})[mark] = rest

    def forget() -> None:
        waiting = _waiting.get(handle, {})
        waiting.pop(mark, None)
        if not waiting:
            _waiting.pop(handle, None)

    return forget


def keeping_open(handle: Hashable) -> AbstractContextManager[None]:
    """Have the handle closed only behind this block, and behind what it has begun when it ends.

    Whoever claims a run within it registers what works on the run, without an `await` between.
    """
    return _Block(handle)


class _Block:
    """A block behind which a handle is closed; hardly ever is somebody just closing it."""

    def __init__(self, handle: Hashable) -> None:
        self._handle = handle
        self._is_over = False
        self._over: asyncio.Event | None = None

    def __enter__(self) -> None:
        self._forget = before_close(self._handle, self._end)

    def __exit__(self, *_: object) -> None:
        self._forget()
        self._is_over = True
        if self._over is not None:
            self._over.set()

    async def _end(self) -> None:
        if not self._is_over:
            self._over = asyncio.Event()
            await self._over.wait()


@contextmanager
def asking_again(handle: Hashable) -> Generator[None, None, None]:
    """Let a claim that was asked for while the handle was open be asked for again within.

    Only whoever keeps the handle open may do so: it is not closed before the answer is there.
    """
    mark = _kept_open.set(handle)
    try:
        yield
    finally:
        _kept_open.reset(mark)


def is_closing(handle: Hashable) -> bool:
    """Return whether the handle is being closed, so that nobody may claim a run with it."""
    return handle in _closing


def check_open(handle: Hashable) -> None:
    """Raise StoreClosedError if the handle is being closed, but for who asks again."""
    if is_closing(handle) and _kept_open.get() is not handle:
        raise StoreClosedError(CLOSED)


async def bring_to_rest(handle: Hashable) -> None:
    """Await what is registered for the handle; what is registered meanwhile counts too.

    A store calls it first when it is closed, and goes on without an `await`. Whoever closes it at
    the same time waits for the same. What raises, or takes longer than `REST_MS`, is logged.
    """
    resting = _closing.get(handle)
    if resting is None:
        if handle not in _waiting:
            return
        resting = asyncio.get_running_loop().create_task(_rest(handle))
        _closing[handle] = resting
    # A caller that is cancelled has begun what cannot be taken back.
    await asyncio.shield(resting)
    _closing.pop(handle, None)


async def _rest(handle: Hashable) -> None:
    loop = asyncio.get_running_loop()
    deadline_ms = monotonic_ms() + REST_MS
    while waiting := _waiting.pop(handle, None):
        tasks = [loop.create_task(_logged(rest)) for rest in waiting.values()]
        left_ms = max(0.0, deadline_ms - monotonic_ms())
        _, late = await asyncio.wait(tasks, timeout=left_ms / 1_000)
        for task in late:
            logger.error("work on a store does not come to rest: its lease will lapse")
            task.cancel()
        if late:
            return


async def _logged(rest: Rest) -> None:
    try:
        await rest()
    except Exception:
        logger.exception("work on a store that is being closed did not end well")
