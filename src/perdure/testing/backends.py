"""The contract of execution backends as a product: every case that every backend must pass.

With pytest, a test for each case:

    @pytest.mark.parametrize("case", BACKEND_CASES, ids=lambda case: case.__name__)
    async def test_my_backend(case):
        await case(BackendLab(open_my_backend, answer=PlannedAnswer(text="Hello")))

Without a test framework: `await backend_conformance(open_my_backend, answer=...)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Final

from perdure.testing.backend_lab import BackendLab, OpenBackend, PlannedAnswer
from perdure.testing.cases import answering, backend_sessions, leaving, secrecy
from perdure.testing.conforming import cases_in, run_cases

BackendCase = Callable[[BackendLab], Awaitable[None]]

BACKEND_CASES: Final[tuple[BackendCase, ...]] = (
    *cases_in(answering),
    *cases_in(backend_sessions),
    *cases_in(leaving),
    *cases_in(secrecy),
)
"""Every case: an async function that takes a BackendLab, named as the sentence that it proves."""


async def backend_conformance(
    open_backend: OpenBackend, *, answer: PlannedAnswer | None = None
) -> int:
    """Run every case against backends of `open_backend`, and return how many were run.

    See BackendLab for what it is called with, and for `answer`. Raises one ExceptionGroup of all
    failures, each with the name of its case as a note.
    """
    return await run_cases(
        BACKEND_CASES, lambda: nullcontext(BackendLab(open_backend, answer=answer))
    )
