"""The contract of hosts passes on the smallest host, and finds what is planted in it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from perdure.testing import HOST_CASES, HostLab, host_conformance
from tests.testing.broken_hosts import FAULTS
from tests.testing.memory_host import MemoryLab

CASES = {case.__name__: case for case in HOST_CASES}


@pytest.mark.parametrize("case", HOST_CASES, ids=lambda case: case.__name__)
async def test_the_smallest_host_keeps_the_contract(case: object, tmp_path: Path) -> None:
    async with MemoryLab(tmp_path) as lab:
        await CASES[getattr(case, "__name__", "")](lab)


@pytest.mark.parametrize(("kind", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_planted_fault_is_found_by_the_case_that_names_it(
    kind: type[MemoryLab], name: str, tmp_path: Path
) -> None:
    with pytest.raises((AssertionError, ExceptionGroup)):
        async with kind(tmp_path) as lab:
            await CASES[name](lab)


def test_every_case_has_a_fault_that_it_finds() -> None:
    assert {name for _, name in FAULTS} == set(CASES)


async def test_all_failures_are_raised_together_and_name_their_cases(tmp_path: Path) -> None:
    broken = FAULTS[0][0]

    def new_lab() -> AbstractAsyncContextManager[HostLab]:
        return broken(tmp_path)

    with pytest.raises(ExceptionGroup) as caught:
        await host_conformance(new_lab)
    notes = [note for failure in caught.value.exceptions for note in failure.__notes__]
    assert f"case: {FAULTS[0][1]}" in notes
