"""Waiting for everything that a Restate handler has asked for, in the one place that may."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from datetime import timedelta
from typing import Any, Final, TypeVar

from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.records import JsonValue
from perdure.errors import AwaitEventTimeoutError, UsageError

try:
    from restate import RunOptions, TerminalError, WorkflowContext
    from restate.serde import BytesSerde
    from restate.server_context import ServerInvocationContext
    from restate.server_types import RestateEvent
    from restate.vm import FirstCompletedUnresolvedFuture, SingleUnresolvedFuture
except ImportError as error:
    raise ImportError("Restate needs its SDK: pip install 'perdure[restate]'") from error

logger = logging.getLogger("perdure.engines")

T = TypeVar("T")

CONFLICT: Final = 409
"""The status by which Restate says that a call was cancelled, or that a workflow ran before."""
_REST_MS: Final = 15_000
"""How long what is cancelled may take to clean up, and a turn to give its lease back."""
_SETTLING: Final = 16
"""Rounds of the event loop in which a task that replays asks for what it goes on with."""
_WAKE: Final[RestateEvent] = {"type": "restate.run_completed", "data": None}


class RestateCalls:
    """What a workflow's handler asks Restate for, from any number of asyncio tasks.

    Restate's own awaiting is for one asyncio task: a second one that waits meanwhile would not
    hear of its answer. So only `over` waits for Restate, for all of them, and also while nothing
    is asked, since that is when it hears of a cancellation.
    """

    def __init__(self, context: WorkflowContext) -> None:
        if not isinstance(context, ServerInvocationContext):
            raise UsageError("a task runs on the context that Restate gives to a handler")
        self._context: Any = context
        # While nothing is asked we wait with a run that never ends. So we hear of a cancellation,
        # and are not suspended: what wakes a suspended handler is only what it waited for then.
        options = RunOptions(serde=BytesSerde())
        attending: Any = self._context.run_typed("attending", _for_ever, options)
        self._idle = SingleUnresolvedFuture(attending.handle)
        self._open: list[Any] = [self._idle]
        self._waiters: dict[Any, asyncio.Future[Any]] = {}
        self._unrecorded: set[Any] = set()
        """Runs that have no result in the journal, so that a replay cannot answer them."""
        self._asked = asyncio.Event()

    @property
    def invocation(self) -> str:
        """The id of the invocation, the same in all of its attempts."""
        invocation: str = self._context.request().id
        return invocation

    async def over(
        self, work: Coroutine[Any, Any, T], *, on_cancel: Callable[[], Coroutine[Any, Any, Any]]
    ) -> T:
        """Return what `work` returns, and answer meanwhile what it asks Restate for.

        When Restate cancels the invocation, `on_cancel` is awaited, which has to bring the work
        to its end. When this attempt is over (suspended, cut off) the work is cancelled.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)
        task.add_done_callback(lambda _: self._leave())
        try:
            while not task.done():
                try:
                    await self._progress(task)
                except TerminalError as error:
                    if error.status_code != CONFLICT:
                        raise
                    await on_cancel()
                    await asyncio.wait((task,), timeout=_REST_MS / 1_000)
                    if not task.done():
                        raise
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=_REST_MS / 1_000)
            if not task.done():
                logger.warning("a handler does not let itself be cancelled: it is left behind")
        return task.result()

    # For the work, in any task.

    async def run(self, name: str, body: Callable[[], Awaitable[str]]) -> str:
        """Return what Restate has recorded of this step, or let it record what `body` returns.

        Whoever cancels the call cancels the body. What a body raises ends this attempt.
        """
        outside = copy_context()
        running: asyncio.Task[str] | None = None

        async def action() -> bytes:
            nonlocal running

            async def called() -> str:
                return await body()

            loop = asyncio.get_running_loop()
            running = loop.create_task(called(), context=outside)
            return (await running).encode()

        options: RunOptions[bytes] = RunOptions(serde=BytesSerde())
        try:
            future = self._context.run_typed(name, action, options)
            if future.handle in self._context.run_coros_to_execute:
                self._unrecorded.add(future)
            recorded: bytes = await self._answer(future)
            return recorded.decode()
        except asyncio.CancelledError:
            if running is not None:
                running.cancel()
            raise

    async def sleep(self, duration_ms: int) -> None:
        """Return after `duration_ms`, counted by Restate from the first attempt at it."""
        await self._answer(self._context.sleep(timedelta(milliseconds=duration_ms)))

    async def event(self, key: str, *, intent: str, timeout_ms: int | None) -> JsonValue:
        """Return the payload of the durable promise `key`; raise AwaitEventTimeoutError else.

        Which of the two was first stays so: Restate tells it in the order of its journal.
        """
        promise = self._context.promise(key, serde=BytesSerde())
        # Both at once: on a replay nobody may be waited for while another command is due.
        asked = [promise.value()]
        if timeout_ms is not None:
            asked.append(self._context.sleep(timedelta(milliseconds=timeout_ms)))
        waiting = [asyncio.ensure_future(self._answer(one)) for one in asked]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting[0].done():
                return decode_value(waiting[0].result().decode())
        finally:
            for one in waiting:
                one.cancel()
        told = f"no event {key!r} arrived within {timeout_ms} ms"
        raise AwaitEventTimeoutError(told, intent=intent)

    async def emit(self, key: str, payload: JsonValue) -> bool:
        """Resolve the durable promise `key` of this workflow; False if it was before."""
        return await resolve(self._context, key, payload, self._answer)

    # Parts of the above.

    async def _answer(self, future: Any) -> Any:
        waiter = self._waiters[future] = asyncio.get_running_loop().create_future()
        self._reopen()
        self._asked.set()
        await self._wake()
        try:
            return await waiter
        finally:
            self._waiters.pop(future, None)
            self._unrecorded.discard(future)
            self._reopen()

    async def _progress(self, work: asyncio.Task[Any]) -> None:
        """Wait for Restate until something is answered, and pass it on."""
        waited_for: list[Any] = self._open
        if self._context.vm.is_replaying():
            for _ in range(_SETTLING):
                await asyncio.sleep(0)
        if self._context.vm.is_replaying():
            # Whoever waits now for what the journal has no answer to has left its path: what is
            # recorded there is still to be asked for, by another asyncio task.
            answerable = [one for one in self._waiters if one not in self._unrecorded]
            if not answerable:
                self._asked.clear()
                await self._asked.wait()
                return
            waited_for = [SingleUnresolvedFuture(one.handle) for one in answerable]
        try:
            # The list is read anew whenever Restate is woken, so what is added meanwhile counts.
            waiting = FirstCompletedUnresolvedFuture(waited_for)
            await self._context.create_poll_or_cancel_coroutine(waiting)
        except TypeError:
            if not work.done():
                raise
            return
        for future, waiter in list(self._waiters.items()):
            if not future.is_completed() or waiter.done():
                continue
            try:
                waiter.set_result(await future)
            except TerminalError as error:
                waiter.set_exception(error)
        await asyncio.sleep(0)

    def _reopen(self) -> None:
        """Have waited for what is asked, and only for that: it is what a suspended one awaits."""
        if None not in self._open:
            asked = [SingleUnresolvedFuture(future.handle) for future in self._waiters]
            self._open[:] = asked or [self._idle]

    def _leave(self) -> None:
        """Have nothing more waited for: what is no handle ends the waiting."""
        self._open.append(None)
        self._asked.set()
        waking = asyncio.ensure_future(self._wake())
        self._context.tasks.add(waking)

    async def _wake(self) -> None:
        await self._context.receive.enqueue_restate_event(_WAKE)


async def resolve(
    context: Any,
    key: str,
    payload: JsonValue,
    answer: Callable[[Any], Awaitable[Any]],
) -> bool:
    """Resolve the durable promise `key` of a workflow; False if it was before."""
    promise = context.promise(key, serde=BytesSerde())
    try:
        await answer(promise.resolve(encode_value(payload, name="payload").encode()))
    except TerminalError:
        return False
    return True


async def _for_ever() -> bytes:
    await asyncio.get_running_loop().create_future()
    return b""
