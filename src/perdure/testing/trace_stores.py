"""The contract of trace stores as a product: every case that every trace store must pass.

With pytest, a lab with fresh data for each case:

    @pytest.mark.parametrize("case", TRACE_STORE_CASES, ids=lambda case: case.__name__)
    async def test_my_traces(case):
        async with new_lab() as lab:
            await case(lab)

Without a test framework: `await trace_store_conformance(new_lab)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from perdure.testing.cases import trace_pages, traces
from perdure.testing.conforming import cases_in, run_cases
from perdure.testing.trace_store_lab import NewTraceStoreLab, TraceStoreLab

TraceStoreCase = Callable[[TraceStoreLab], Awaitable[None]]

TRACE_STORE_CASES: Final[tuple[TraceStoreCase, ...]] = (
    *cases_in(traces),
    *cases_in(trace_pages),
)
"""Every case: an async function that takes a TraceStoreLab, named as what it proves."""


async def trace_store_conformance(new_lab: NewTraceStoreLab) -> int:
    """Run every case in a fresh lab, and return how many were run.

    Raises one ExceptionGroup of all failures, each with the name of its case as a note.
    """
    return await run_cases(TRACE_STORE_CASES, new_lab)
