"""The contract of hosts as a product: the same task, with the same result, on every engine.

With pytest, one lab for all cases, since a worker may take seconds to start:

    @pytest.mark.parametrize("case", HOST_CASES, ids=lambda case: case.__name__)
    async def test_my_engine(case, lab):
        await case(lab)

Without a test framework: `await host_conformance(new_lab)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from perdure.testing.cases import hosts
from perdure.testing.conforming import cases_in, run_cases
from perdure.testing.host_lab import HostLab, NewHostLab

HostCase = Callable[[HostLab], Awaitable[None]]

HOST_CASES: Final[tuple[HostCase, ...]] = cases_in(hosts)
"""Every case: an async function that takes a HostLab, named as the sentence that it proves."""


async def host_conformance(new_lab: NewHostLab) -> int:
    """Run every case, and return how many were run.

    Raises one ExceptionGroup of all failures, each with the name of its case as a note.
    """
    return await run_cases(HOST_CASES, new_lab)
