"""The store contract as a product: every case that every store must pass.

With pytest, a lab for each case:

    @pytest.mark.parametrize("case", STORE_CASES, ids=lambda case: case.__name__)
    async def test_store_contract(case):
        async with StoreLab(open_my_store) as lab:
            await case(lab)

Without a test framework: `await check_run_store(lambda: StoreLab(open_my_store))`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from itertools import chain
from typing import Final

from perdure.testing.cases import (
    claiming,
    deletion,
    due,
    erasure,
    events,
    fencing,
    handles,
    journal,
    ledger,
    life,
    limits,
    listing,
    outbox,
    parents,
    schedules,
    sessions,
    steps,
    tenants,
    upkeep,
    usage,
    waiting_turns,
)
from perdure.testing.lab import Case, StoreLab, cases_of

NewLab = Callable[[], AbstractAsyncContextManager[StoreLab]]
"""Makes a lab with fresh data; a case is run within it."""

_GROUPS = (
    claiming,
    life,
    fencing,
    steps,
    journal,
    events,
    due,
    sessions,
    waiting_turns,
    parents,
    outbox,
    usage,
    listing,
    tenants,
    deletion,
    limits,
    handles,
)

STORE_CASES: Final[tuple[Case, ...]] = tuple(chain.from_iterable(map(cases_of, _GROUPS)))
"""Every case: an async function that takes a StoreLab, named as the sentence that it proves."""

UPKEEP_CASES: Final[tuple[Case, ...]] = cases_of(upkeep) + cases_of(ledger)
"""What a store must pass that can be looked after: one that has `upkeep()`."""

ERASURE_CASES: Final[tuple[Case, ...]] = cases_of(erasure)
"""What a store must pass that can erase a person's sessions: one that has `erasure()`."""

SCHEDULE_CASES: Final[tuple[Case, ...]] = cases_of(schedules)
"""What a store must pass that keeps schedules: one that has `schedules()`."""


async def check_run_store(new_lab: NewLab) -> int:
    """Run every case in a fresh lab and return how many were run.

    Raises one ExceptionGroup of all failures, each with the name of its case as a note.
    """
    failures: list[Exception] = []
    for case in STORE_CASES:
        try:
            async with new_lab() as lab:
                await case(lab)
        except Exception as error:
            error.add_note(f"case: {case.__name__}")
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(STORE_CASES)} cases failed", failures)
    return len(STORE_CASES)
