"""The contract of backends finds what is planted, and says which case found it."""

from __future__ import annotations

import pytest

from perdure.testing import BACKEND_CASES, backend_conformance
from tests.testing.broken_backends import (
    FAULTS,
    HidesItsFailures,
    SoundBackend,
    lab_of,
    opening,
)

CASES = {case.__name__: case for case in BACKEND_CASES}


@pytest.mark.parametrize(("kind", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
async def test_bb_20_a_planted_fault_is_found_by_the_case_that_names_it(
    kind: type[SoundBackend], name: str
) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 a broken backend fails in its own way
        await CASES[name](lab_of(kind))


def test_every_case_has_a_fault_that_it_finds() -> None:
    assert {name for _, name in FAULTS} == set(CASES)


async def test_the_backend_that_faults_are_planted_in_is_sound_without_them() -> None:
    assert await backend_conformance(opening(SoundBackend)) == len(BACKEND_CASES)


async def test_all_failures_are_raised_together_and_name_their_cases() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await backend_conformance(opening(HidesItsFailures))
    notes = [note for failure in caught.value.exceptions for note in failure.__notes__]
    assert notes == ["case: a_failure_is_raised_behind_what_was_said"]
    assert str(caught.value).startswith(f"1 of {len(BACKEND_CASES)} cases failed")
