"""The contract of trace stores finds what is planted, and says which case found it."""

from __future__ import annotations

from functools import partial

import pytest

from perdure.errors import PerdureError
from perdure.testing import TRACE_STORE_CASES, trace_store_conformance
from tests.testing.broken_trace_stores import FAULTS, LosesTheBreach, SoundStore, lab_of

CASES = {case.__name__: case for case in TRACE_STORE_CASES}


@pytest.mark.parametrize(("kind", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_planted_fault_is_found_by_the_case_that_names_it(
    kind: type[SoundStore], name: str
) -> None:
    with pytest.raises((AssertionError, PerdureError)):
        async with lab_of(kind) as lab:
            await CASES[name](lab)


def test_every_case_has_a_fault_that_it_finds() -> None:
    assert {name for _, name in FAULTS} == set(CASES)


async def test_the_store_that_faults_are_planted_in_is_sound_without_them() -> None:
    assert await trace_store_conformance(partial(lab_of, SoundStore)) == len(CASES)


async def test_all_failures_are_raised_together_and_name_their_cases() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await trace_store_conformance(partial(lab_of, LosesTheBreach))
    notes = [note for failure in caught.value.exceptions for note in failure.__notes__]
    assert "case: a_loop_is_kept_as_it_went" in notes
    assert str(caught.value).startswith(f"{len(notes)} of {len(CASES)} cases failed")
