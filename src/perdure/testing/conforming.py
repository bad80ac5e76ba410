"""Running the cases of a conformance kit, one by one, and raising all failures together."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import TypeVar

L = TypeVar("L")


def cases_in(module: ModuleType) -> tuple[Callable[..., Awaitable[None]], ...]:
    """Return the public coroutine functions that `module` defines, in order."""
    return tuple(
        function
        for name, function in vars(module).items()
        if inspect.iscoroutinefunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
    )


async def run_cases(
    cases: Sequence[Callable[[L], Awaitable[None]]],
    new_lab: Callable[[], AbstractAsyncContextManager[L]],
) -> int:
    """Run every case in a fresh lab, and return how many were run.

    Raises one ExceptionGroup of all failures, each with the name of its case as a note.
    """
    failures: list[Exception] = []
    for case in cases:
        try:
            async with new_lab() as lab:
                await case(lab)
        except Exception as error:
            error.add_note(f"case: {getattr(case, '__name__', case)}")
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(cases)} cases failed", failures)
    return len(cases)
