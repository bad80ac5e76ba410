"""The contract suite finds what is planted, and says which case found it."""

from __future__ import annotations

from functools import partial

import pytest

from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.contract import STORE_CASES, check_run_store
from perdure.testing.lab import StoreLab
from tests.testing.broken_stores import FAULTS, BrokenStore, CountsNoStrikes

CASES = {case.__name__: case for case in STORE_CASES}


def lab_of(kind: type[MemoryStore]) -> StoreLab:
    data = MemoryData()

    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        return kind(data, clock=clock, code_version=code_version)

    return StoreLab(open_handle)


@pytest.mark.parametrize(("kind", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_planted_fault_is_found_by_the_case_that_names_it(
    kind: type[BrokenStore], name: str
) -> None:
    async with lab_of(kind) as lab:
        with pytest.raises(Exception):  # noqa: B017, PT011 a broken store fails in its own way
            await CASES[name](lab)


async def test_the_store_that_faults_are_planted_in_is_sound_without_them() -> None:
    assert await check_run_store(partial(lab_of, BrokenStore)) == len(STORE_CASES)


async def test_all_failures_are_raised_together_and_name_their_cases() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await check_run_store(partial(lab_of, CountsNoStrikes))
    failures = caught.value.exceptions
    notes = {note for failure in failures for note in failure.__notes__}
    assert len(failures) == len(notes) > 1
    assert "case: every_crash_counts_a_strike" in notes
    assert str(caught.value).startswith(f"{len(failures)} of {len(STORE_CASES)} cases failed")


def test_every_case_is_a_sentence_of_its_own() -> None:
    names = [case.__name__ for case in STORE_CASES]
    assert len(set(names)) == len(names) > 300
    assert all(name.count("_") >= 3 for name in names)
