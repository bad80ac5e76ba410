"""What a contract case works with: the lab, the mark `@case`, and a few ways to look and check."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, contextmanager
from types import ModuleType, TracebackType
from typing import NamedTuple

from perdure.core.frames import Frame
from perdure.core.records import RunDetails, RunRecord, StepRecord
from perdure.errors import RunNotFoundError
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock

OpenHandle = Callable[[ManualClock, str | None], Awaitable[RunStore]]
"""Opens one more handle on the same data: `(clock, code_version)` in, a store out."""


class StoreLab:
    """Fresh data, a clock, and as many handles on that data as a case wants.

    `StoreLab(open_handle)`: `open_handle(clock, code_version)` opens one more handle on the data
    that this lab is about. Use it as an async context manager: leaving it closes every handle that
    it opened. `clock` stands still until it is moved, for all of them.
    """

    def __init__(self, open_handle: OpenHandle) -> None:
        self.clock = ManualClock()
        self._open_handle = open_handle
        self._handles = AsyncExitStack()

    async def open(self, *, tenant: str = "", code_version: str | None = None) -> RunStore:
        """Return another handle on the same data, or its view for `tenant`."""
        store = await self._open_handle(self.clock, code_version)
        self._handles.push_async_callback(store.close)
        return store.for_tenant(tenant) if tenant else store

    async def close(self) -> None:
        """Close every handle, as when the last process ends; the data stays."""
        await self._handles.aclose()

    async def __aenter__(self) -> StoreLab:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


Case = Callable[[StoreLab], Awaitable[None]]

_cases: dict[str, list[Case]] = {}


def case(function: Case) -> Case:
    """Mark `function` as a case of the contract; its name is the sentence that it proves."""
    _cases.setdefault(function.__module__, []).append(function)
    return function


def cases_of(module: ModuleType) -> tuple[Case, ...]:
    """Return the cases that `module` defines, in the order of their definition."""
    return tuple(_cases[module.__name__])


def check(condition: object, message: str) -> None:
    """Fail with `message` unless `condition` is true; unlike `assert`, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def same(actual: object, expected: object, what: str) -> None:
    """Fail unless `actual` equals `expected`; `what` names the thing that is compared."""
    if actual != expected:
        raise AssertionError(f"{what}: expected {expected!r}, found {actual!r}")


@contextmanager
def refused(kind: type[BaseException]) -> Generator[None]:
    """Fail unless the block raises an error of `kind`; any other error passes through."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"this should have raised {kind.__name__}")


class Snapshot(NamedTuple):
    """All that a store shows of one run, to be compared with what it shows later."""

    run: RunRecord | None
    steps: Sequence[StepRecord]
    details: RunDetails | None
    frames: Sequence[Frame]


async def snapshot(store: RunStore, run_id: str) -> Snapshot:
    """Return all that `store` shows of the run now; of an unknown run, nothing."""
    return Snapshot(
        run=await store.read_run(run_id),
        steps=list(await store.read_steps(run_id)),
        details=await _details(store, run_id),
        frames=list(await store.read_frames(run_id)),
    )


async def _details(store: RunStore, run_id: str) -> RunDetails | None:
    try:
        found = await store.read_details(run_id)
    except RunNotFoundError:
        return None
    return RunDetails(
        attempts=list(found.attempts),
        events=list(found.events),
        usage=list(found.usage),
        deliveries=list(found.deliveries),
    )


async def read(store: RunStore, run_id: str) -> RunRecord:
    """Return the run, which must be there."""
    run = await store.read_run(run_id)
    if run is None:
        raise AssertionError(f"run {run_id!r} is not there")
    return run


async def unchanged(store: RunStore, run_id: str, before: Snapshot) -> None:
    """Fail unless the store shows of the run exactly what it showed in `before`."""
    after = await snapshot(store, run_id)
    for name, then, now in zip(Snapshot._fields, before, after, strict=True):
        same(now, then, f"the {name} of run {run_id!r} after what should change nothing")
