"""Stores and engines for threads that wait: each call runs the asynchronous one, and waits."""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from perdure.core.limits import DRAIN_MS
from perdure.core.records import RunRecord
from perdure.durable import runner
from perdure.durable.signals import hearing_signals
from perdure.store import opening
from perdure.store.protocol import RunStore
from perdure.sync.loop import THREAD, Items, Opened, Streams
from perdure.turn.closing import Produce
from perdure.turn.engine import ChatTurnEngine, SubmittedTurn

P = ParamSpec("P")
T = TypeVar("T")
H = TypeVar("H")


class SyncStore:
    """A store by its address, opened by its first use; options are those of `perdure.open_store`.

    `call` reaches everything: `store.call(lambda store: store.read_run("run"))`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        inspect.signature(opening.open_store).bind(url, **options)
        self._open = partial(opening.open_store, url, **options)
        self._opened = Opened[RunStore](name="store")

    def open(self) -> RunStore:
        """Return the store itself, for coroutines that run on the same loop."""
        if not self._opened.is_open:
            THREAD.at_close(self, self.close)
        return self._opened.get(self._open)

    def call(self, function: Callable[[RunStore], Awaitable[T]]) -> T:
        """Return what `function(store)` comes to, on the loop."""
        return THREAD.run(_awaited(function, self.open()))

    def close(self) -> None:
        """Close the store, if it was opened. It is done when the interpreter ends, at the latest.

        Engines on it give their turns back.
        """
        THREAD.forget(self)
        store = self._opened.take()
        if store is not None:
            THREAD.run(store.close())

    def __enter__(self) -> SyncStore:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(url: str, **options: Any) -> SyncStore:
    """Open a store as `perdure.open_store` does; close it, or use it as a context manager."""
    store = SyncStore(url, **options)
    store.open()
    return store


def _on_store(
    function: Callable[Concatenate[RunStore, P], Awaitable[T]],
) -> Callable[Concatenate[SyncStore, P], T]:
    @wraps(function)
    def waited(store: SyncStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return store.call(lambda opened: function(opened, *args, **kwargs))

    return waited


run_durable = _on_store(runner.run_durable)
emit_event = _on_store(runner.emit_event)


class SyncSubmittedTurn(NamedTuple):
    """A SubmittedTurn whose `lines(after=None, wire="ndjson", dialect="perdure")` are Items."""

    created: bool
    run: RunRecord
    lines: Callable[..., Items[bytes]]


def _on_engine(
    method: Callable[Concatenate[ChatTurnEngine, P], Awaitable[T]],
) -> Callable[Concatenate[SyncEngine, P], T]:
    @wraps(method)
    def waited(self: SyncEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.call(lambda engine: method(engine, *args, **kwargs))

    return waited


def _streaming(
    method: Callable[Concatenate[ChatTurnEngine, P], AsyncGenerator[bytes, None]],
) -> Callable[Concatenate[SyncEngine, P], Items[bytes]]:
    @wraps(method)
    def streamed(self: SyncEngine, /, *args: P.args, **kwargs: P.kwargs) -> Items[bytes]:
        return self.iterate(lambda engine: method(engine, *args, **kwargs))

    return streamed


def _submitting(
    method: Callable[Concatenate[ChatTurnEngine, P], Awaitable[SubmittedTurn]],
) -> Callable[Concatenate[SyncEngine, P], SyncSubmittedTurn]:
    @wraps(method)
    def submitted(self: SyncEngine, /, *args: P.args, **kwargs: P.kwargs) -> SyncSubmittedTurn:
        turn = self.call(lambda engine: method(engine, *args, **kwargs))

        def lines(**how: Any) -> Items[bytes]:
            return self.iterate(lambda _: turn.lines(**how))

        return SyncSubmittedTurn(turn.created, turn.run, lines)

    return submitted


class SyncEngine:
    """A ChatTurnEngine for WSGI applications; options are those of ChatTurnEngine.

    It may be made when a module is imported: the first use, or `start`, opens the store, so that
    every worker of a server that forks has its own. When the process ends, turns may go on for
    `drain_ms`; those that do not end in it are given back.
    """

    def __init__(
        self,
        store: str | SyncStore,
        *,
        produce: Produce,
        drain_ms: int = DRAIN_MS,
        **options: Any,
    ) -> None:
        inspect.signature(ChatTurnEngine).bind(None, produce=produce, **options)
        self._make: Callable[[RunStore], ChatTurnEngine]
        self._store = SyncStore(store) if isinstance(store, str) else store
        self._is_own = isinstance(store, str)
        self._drain_ms = drain_ms
        self._make = lambda opened: ChatTurnEngine(opened, produce=produce, **options)
        self._opened = Opened[ChatTurnEngine](name="engine")
        self._streams = Streams()
        self._signals = ExitStack()
        self._hears = False

    def start(self) -> None:
        """Open the store and look for turns that nobody works on, without waiting for a call.

        In the main thread, a signal to stop then cuts every stream, before the server that
        handles the signal waits for them.
        """
        self._engine()
        if not self._hears and threading.current_thread() is threading.main_thread():
            self._hears = True
            cut = partial(THREAD.tell, self._streams.cut)
            self._signals.enter_context(hearing_signals(cut, cut))

    submit = _submitting(ChatTurnEngine.submit)
    read = _streaming(ChatTurnEngine.read)
    stop = _on_engine(ChatTurnEngine.stop)

    def call(self, function: Callable[[ChatTurnEngine], Awaitable[T]]) -> T:
        """Return what `function(engine)` comes to, on the loop."""
        return THREAD.run(_awaited(function, self._engine()))

    def iterate(self, function: Callable[[ChatTurnEngine], AsyncGenerator[T, None]]) -> Items[T]:
        """Return the items of what `function(engine)` generates, on the loop."""
        return Items(function(self._engine()), self._streams)

    def _engine(self) -> ChatTurnEngine:
        if not self._opened.is_open:
            # The engine is closed first, so it comes last.
            store = self._store.open()
            THREAD.at_close(self, self.close)
            return self._opened.get(partial(self._open, store))
        return self._opened.get()

    async def _open(self, store: RunStore) -> ChatTurnEngine:
        engine = self._make(store)
        engine.start()
        return engine

    def close(self) -> None:
        """Cut streams, and let turns go on for `drain_ms`; then give them back."""
        THREAD.forget(self)
        engine = self._opened.take()
        if engine is not None:
            self._signals.close()
            THREAD.tell(self._streams.cut)
            THREAD.run(engine.aclose(drain_ms=self._drain_ms))
            if self._is_own:
                self._store.close()

    def __enter__(self) -> SyncEngine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _awaited(function: Callable[[H], Awaitable[T]], value: H) -> T:
    return await function(value)
