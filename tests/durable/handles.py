"""What the tests of the durable floor share: handles on one store, stores that fail, waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from perdure.core.changes import Change, Release
from perdure.core.effects import Clock, iso_time, system_clock
from perdure.core.records import AttemptRecord, Lease, RunOutcome, RunRecord, StepRecord
from perdure.durable.context import DurableContext
from perdure.durable.runner import RunResult, run_durable
from perdure.errors import StoreUnavailableError
from perdure.store.protocol import Renewer, RunStore, ThreadRenewal
from perdure.testing.clock import ManualClock
from perdure.testing.crashing import CrashingStore, Process
from perdure.testing.samples import hold, manifest

T = TypeVar("T")
MANIFEST = manifest()
PATIENCE_S = 10.0
"""How long a test waits for what must happen; only a test that fails waits that long."""


class Handles:
    """Opens handles on one set of data and closes them all; `clock` is there for whoever asks."""

    def __init__(self, open_handle: Callable[[Clock], Awaitable[RunStore]]) -> None:
        self.clock = ManualClock(system_clock())
        self._open_handle = open_handle
        self._stack = AsyncExitStack()

    async def open(self, *, clock: Clock = system_clock) -> RunStore:
        store = await self._open_handle(clock)
        self._stack.push_async_callback(store.close)
        return store

    async def open_alone(self) -> RunStore:
        """Open a handle that the caller closes, on another loop if he likes."""
        return await self._open_handle(system_clock)

    async def __aenter__(self) -> Handles:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


async def run(
    store: RunStore,
    task: Callable[[DurableContext], Awaitable[T]],
    *,
    run_id: str = "run",
    lease_ms: int = 15_000,
    default_outcome: RunOutcome | None = None,
) -> RunResult[T]:
    """Run `task` as the one sample run."""
    return await run_durable(
        store,
        run_id=run_id,
        manifest=MANIFEST,
        task=task,
        lease_ms=lease_ms,
        default_outcome=default_outcome,
    )


async def leave_behind(store: RunStore, *changes: Change, run_id: str = "run") -> None:
    """Write `changes` as an attempt that was then drained."""
    lease = await hold(store, run_id, handler=None)
    await store.write(lease, *changes, Release("drained"))


async def crash_after(store: RunStore, *changes: Change, run_id: str = "run") -> None:
    """Write `changes` as an attempt that then died; return when its lease has lapsed."""
    lease = await hold(store, run_id, handler=None, lease_ms=1)
    await store.write(lease, *changes)
    lapses_at = (await read(store, run_id)).lease_expires_at or ""
    await until(lambda: iso_time(system_clock()) > lapses_at)


async def until(condition: Callable[[], Awaitable[object] | object]) -> None:
    """Return as soon as the condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return
        if time.monotonic() > deadline:
            raise AssertionError("what the test waits for does not happen")
        await asyncio.sleep(0.002)


async def within(awaitable: Awaitable[T], seconds: float = PATIENCE_S) -> T:
    """Return what `awaitable` gives, or fail instead of hanging."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def read(store: RunStore, run_id: str = "run") -> RunRecord:
    found = await store.read_run(run_id)
    assert found is not None
    return found


async def steps_of(store: RunStore, run_id: str = "run") -> Sequence[StepRecord]:
    return await store.read_steps(run_id)


async def attempts_of(store: RunStore, run_id: str = "run") -> Sequence[AttemptRecord]:
    return (await store.read_details(run_id)).attempts


async def is_in(store: RunStore, state: str, run_id: str = "run") -> bool:
    found = await store.read_run(run_id)
    return found is not None and found.state == state


class Broken(Exception):
    """What the body of a step raises."""

    code = "broken"


class Body:
    """The body of a step: counts its calls, fails as often as it is told, then returns."""

    def __init__(self, value: object = "done", *, fails: int = 0) -> None:
        self.calls = 0
        self._value = value
        self._fails = fails

    def __call__(self) -> object:
        self.calls += 1
        if self.calls <= self._fails:
            raise Broken("it broke")
        return self._value


class Hanging:
    """A task whose second step waits until it is told to go on; it sees who interrupts it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.interrupted = False
        self.first = Body("first")

    async def __call__(self, context: DurableContext) -> list[object]:
        first = await context.step("first", self.first)
        return [first, await context.step("second", self._body)]

    async def _body(self) -> str:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.interrupted = True
            raise
        return "second"


class Trouble(Process):
    """A process that lives, and whose store fails as long and as often as a test wants.

    `writes` counts the calls of `write` that got through.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_down = False
        self.failures_left = 0
        self.failures = 0
        self.gate: asyncio.Event | None = None
        self.held_up = asyncio.Event()

    @property
    def writes(self) -> int:
        return self.calls.count("write")

    def trip(self) -> None:
        """Raise StoreUnavailableError if it is time for that."""
        if self.is_down or self.failures_left > 0:
            self.failures_left -= 1
            self.failures += 1
            raise StoreUnavailableError("the store is away")

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        self.trip()
        return await super().read(call)

    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        self.trip()
        if self.gate is not None and name == "write":
            self.held_up.set()
            await self.gate.wait()
        return await super().write(name, call)


class TroubledStore(CrashingStore):
    """A store in trouble whose leases are renewed from the loop."""


class ThreadedTroubledStore(CrashingStore):
    """A store in trouble whose leases are renewed from a thread, in the same trouble."""

    def __init__(self, inner: RunStore, trouble: Trouble) -> None:
        super().__init__(inner, trouble)
        self.trouble = trouble
        self.inner = inner

    def open_renewer(self) -> Renewer:
        assert isinstance(self.inner, ThreadRenewal)
        return _TroubledRenewer(self.inner.open_renewer(), self.trouble)


class _TroubledRenewer:
    def __init__(self, inner: Renewer, trouble: Trouble) -> None:
        self._inner = inner
        self._trouble = trouble
        self.renew: Callable[[Sequence[Lease], int], Mapping[Lease, bool]] = self._renew
        self.close: Callable[[], None] = inner.close

    def _renew(self, leases: Sequence[Lease], lease_ms: int) -> Mapping[Lease, bool]:
        self._trouble.trip()
        return self._inner.renew(leases, lease_ms)


def described(error: BaseException) -> tuple[Any, ...]:
    """Return everything of an error that code may branch on."""
    return (type(error), str(error), vars(error))


async def deadline(store: RunStore, run_id: str = "run") -> str:
    return (await read(store, run_id)).lease_expires_at or ""


async def moves(store: RunStore, run_id: str = "run") -> None:
    """Return when the deadline of the run's lease has moved."""
    before = await deadline(store, run_id)

    async def has_moved() -> bool:
        return await deadline(store, run_id) > before

    await until(has_moved)


def in_trouble(store: RunStore, trouble: Trouble, *, threaded: bool) -> RunStore:
    return (ThreadedTroubledStore if threaded else TroubledStore)(store, trouble)
