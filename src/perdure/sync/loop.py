"""The thread of the event loop: it runs coroutines for other threads, and ends in good order."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

from perdure.errors import StoreClosedError, StoreUnavailableError, UsageError

T = TypeVar("T")


class LoopThread:
    """One event loop in a daemon thread. It is started by its first use, after any fork.

    `generation` tells a process from its forks: what was opened in another generation has its
    loop in the parent.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._begin()

    def _begin(self) -> None:
        self.lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing: dict[object, Callable[[], None]] = {}

    def after_fork(self) -> None:
        """Forget the parent's loop: its thread does not live here."""
        self.generation += 1
        self._begin()

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, which runs."""
        with self.lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_default_executor(ThreadPoolExecutor())
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="perdure-sync", daemon=True
                )
                self._thread.start()
                _at_end(self.close)
            return self._loop

    def check(self, generation: int | None, name: str) -> None:
        """Raise UsageError unless what was opened in `generation` was opened in this process."""
        if generation != self.generation:
            raise UsageError(
                f"the {name} was opened before this process was forked: make it where you like, "
                "but use it first in the worker (with gunicorn --preload: in post_worker_init)"
            )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, wait for it, and return or raise what it does.

        A caller that is interrupted (by Ctrl-C, say) cancels the work. Raises UsageError on the
        loop's own thread, which would wait for itself.
        """
        loop = self.loop()
        if threading.current_thread() is self._thread:
            work.close()
            raise UsageError("this would wait for itself: within a task or producer, use `await`")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except CancelledError:
            raise StoreUnavailableError("the process ends: nothing is waited for") from None
        except BaseException:
            future.cancel()
            raise

    def tell(self, call: Callable[[], object]) -> None:
        """Have a call made on the loop, if that is there; nothing waits for it.

        Takes no lock, so it may be used in signal handlers and by the collector.
        """
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(call)

    def at_close(self, owner: object, close: Callable[[], None]) -> None:
        """Have `close` called before the loop ends, the latest owner's first."""
        with self.lock:
            self._closing[owner] = close

    def forget(self, owner: object) -> None:
        """Take `at_close` back."""
        with self.lock:
            self._closing.pop(owner, None)

    def close(self) -> None:
        """Close what is open, and end the loop. The interpreter calls it when it ends."""
        for close in reversed([*self._closing.values()]):
            close()
        with self.lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def _at_end(close: Callable[[], None]) -> None:
    """Have `close` called when the interpreter ends."""
    # Before the pools of threads are closed, on which work still relies: `atexit` comes later.
    register = getattr(threading, "_register_atexit", atexit.register)
    register(close)


async def _cancel_all() -> None:
    """Cancel what still runs, and wait for it; so a pending call is told that it is over."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


THREAD: Final = LoopThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=THREAD.after_fork)


class Opened(Generic[T]):
    """Something that is opened on the loop, by its first use, once per process."""

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._value: T | None = None
        self._generation: int | None = None
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        return self._value is not None

    def get(self, opening: Callable[[], Coroutine[Any, Any, T]] | None = None) -> T:
        """Return it, opened by `opening` if it is not yet.

        Raises StoreClosedError, and UsageError in a fork of the process that opened it.
        """
        with THREAD.lock:
            if self._is_closed:
                raise StoreClosedError(f"the {self._name} was closed: make another one")
            if self._value is None and opening is not None:
                self._value = THREAD.run(opening())
                self._generation = THREAD.generation
            THREAD.check(self._generation, self._name)
            assert self._value is not None
            return self._value

    def take(self) -> T | None:
        """Return it for the last time, to be closed; None if there is nothing to close here."""
        with THREAD.lock:
            self._is_closed = True
            return self._value if self._generation == THREAD.generation else None


class Streams:
    """The iterators of one owner, so that they can be cut together."""

    def __init__(self) -> None:
        self.is_cut = False
        self._pulls: set[asyncio.Task[Any]] = set()

    def cut(self) -> None:
        """Make every iterator raise, now and later. To be called on the loop."""
        self.is_cut = True
        for pull in self._pulls:
            pull.cancel()

    async def pull(self, items: AsyncGenerator[T, None]) -> T | None:
        """Return the next item, None at the end. Raises StoreUnavailableError when cut."""
        task = asyncio.current_task()
        assert task is not None
        self._pulls.add(task)
        try:
            if not self.is_cut:
                return await anext(items, None)
        except asyncio.CancelledError:
            if not self.is_cut:
                raise
        finally:
            self._pulls.discard(task)
        raise StoreUnavailableError("the process was told to stop: read on where another one runs")


class Items(Iterator[T]):
    """The items of an asynchronous generator, for a thread that waits for each; none is None.

    `close()` closes the generator at once: WSGI servers call it when a client has gone.
    """

    def __init__(self, items: AsyncGenerator[T, None], streams: Streams) -> None:
        self._items: AsyncGenerator[T, None] | None = items
        self._streams = streams
        self._generation = THREAD.generation
        # An interrupted pull may still be on its way out when the generator is closed.
        self._pulling = asyncio.Lock()

    def __next__(self) -> T:
        items = self._items
        if items is None:
            raise StopIteration
        THREAD.check(self._generation, "stream")
        try:
            item = THREAD.run(self._pull(items))
        except BaseException:
            self.close()
            raise
        if item is None:
            self.close()
            raise StopIteration
        return item

    def close(self) -> None:
        """End the reading; it ends nothing else."""
        items, self._items = self._items, None
        if items is not None and self._generation == THREAD.generation:
            THREAD.run(self._close(items))

    def __del__(self) -> None:
        items, self._items = self._items, None
        if items is not None and self._generation == THREAD.generation:
            # The collector may come on any thread: nothing may be waited for.
            THREAD.tell(lambda: asyncio.ensure_future(self._close(items)))

    async def _pull(self, items: AsyncGenerator[T, None]) -> T | None:
        async with self._pulling:
            return await self._streams.pull(items)

    async def _close(self, items: AsyncGenerator[T, None]) -> None:
        async with self._pulling:
            await items.aclose()
