"""A checkpointer's two doors: its coroutines, awaited where its store lives or waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar, runtime_checkable

from perdure.errors import UsageError
from perdure.store.protocol import RunStore

T = TypeVar("T")


@runtime_checkable
class WaitingStore(Protocol):
    """What `perdure.sync.open_store` returns: a store on an event loop of its own."""

    def open(self) -> RunStore: ...
    def call(self, function: Callable[[RunStore], Awaitable[Any]]) -> Any: ...


class Door:
    """Runs coroutines on the event loop on which a store lives, whoever asks.

    That loop is the one that runs when the door is made, or else when it is first awaited; a
    store of `perdure.sync` has its own.
    """

    def __init__(self, store: RunStore | WaitingStore) -> None:
        if not isinstance(store, WaitingStore) and not hasattr(store, "read_run"):
            raise UsageError(
                f"the store of a checkpointer is no {store!r:.60}: give it "
                'PerdureSaver(await perdure.open_store("sqlite:…")), or perdure.sync.open_store\'s'
            )
        self._waiting = store if isinstance(store, WaitingStore) else None
        self.store: RunStore = store.open() if isinstance(store, WaitingStore) else store
        self._loop: asyncio.AbstractEventLoop | None = None
        if self._waiting is None:
            self._loop = _running_loop()

    async def awaited(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the coroutine comes to, for whoever awaits."""
        if self._waiting is not None:
            return await asyncio.to_thread(self.waited, work)
        running = asyncio.get_running_loop()
        self._loop = self._loop or running
        if running is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def waited(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the coroutine comes to, for whoever does not await.

        Raises UsageError on the store's own loop, which would wait for itself, and where none is
        known.
        """
        if self._waiting is not None:
            result: T = self._waiting.call(lambda _: work)
            return result
        loop = self._loop
        if loop is None or loop is _running_loop():
            work.close()
            raise UsageError(
                "this would wait for the event loop that it holds up: await the graph (ainvoke, "
                "astream), or open the store with perdure.sync.open_store"
                if loop is not None
                else "no event loop is known on which the store lives: open it with "
                "perdure.sync.open_store, or make the checkpointer within a coroutine"
            )
        return asyncio.run_coroutine_threadsafe(work, loop).result()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
