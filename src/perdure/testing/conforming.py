"""Running the cases of a conformance kit, one by one, and raising all failures together."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import Final, TypeVar

from perdure.testing.lab import check

L = TypeVar("L")
T = TypeVar("T")

PATIENCE_S: Final = 10.0
"""So long a case waits for what should come at once."""
CASE_S: Final = 120.0
"""So long a whole case may take before it counts as one that hangs."""


def cases_in(module: ModuleType) -> tuple[Callable[..., Awaitable[None]], ...]:
    """Return the public coroutine functions that `module` defines, in order."""
    return tuple(
        function
        for name, function in vars(module).items()
        if inspect.iscoroutinefunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
    )


async def in_time(work: Awaitable[T], what: str, *, seconds: float | None = None) -> T:
    """Return what `work` comes to; fail, naming it as `what`, if it hangs or cancels itself.

    What ignores its cancellation is left behind: it must not hang whoever tests it.
    """
    limit_s = PATIENCE_S if seconds is None else seconds
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=limit_s)
        check(task.done(), f"{what} is not over after {limit_s:g} s")
        check(not task.cancelled(), f"{what} was cancelled, though nobody had asked for that")
        return task.result()
    finally:
        if not task.done():
            task.add_done_callback(lambda over: over.cancelled() or over.exception())
            task.cancel()


async def run_cases(
    cases: Sequence[Callable[[L], Awaitable[None]]],
    new_lab: Callable[[], AbstractAsyncContextManager[L]],
) -> int:
    """Run every case in a fresh lab, and return how many were run.

    Raises one ExceptionGroup of all failures, each with the name of its case as a note. A case
    that hangs is one of them.
    """
    failures: list[Exception] = []
    for case in cases:
        try:
            await in_time(_run(case, new_lab), "this case", seconds=CASE_S)
        except Exception as error:
            error.add_note(f"case: {getattr(case, '__name__', case)}")
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(cases)} cases failed", failures)
    return len(cases)


async def _run(
    case: Callable[[L], Awaitable[None]], new_lab: Callable[[], AbstractAsyncContextManager[L]]
) -> None:
    async with new_lab() as lab:
        await case(lab)
