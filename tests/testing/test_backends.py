"""The contract of backends finds what is planted, and says which case found it."""

from __future__ import annotations

import re

import pytest

from perdure.testing import BACKEND_CASES, PlannedAnswer, backend_conformance, conforming
from tests.testing.broken_backends import (
    ANSWER,
    FAULTS,
    HidesItsFailures,
    SoundBackend,
    lab_of,
    opening,
)
from tests.testing.careless_backends import MORE_FAULTS, LosesItsLastPiece, NeverEnds

CASES = {case.__name__: case for case in BACKEND_CASES}


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [*FAULTS, *MORE_FAULTS],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_bb_20_a_planted_fault_is_found_by_the_case_that_names_it(
    kind: type[SoundBackend], name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conforming, "PATIENCE_S", 2.0)
    with pytest.raises((AssertionError, ConnectionError)) as caught:
        await CASES[name](lab_of(kind))
    assert re.search(words, str(caught.value), re.DOTALL)


def test_every_case_has_a_fault_that_it_finds() -> None:
    assert {name for _, name, _ in (*FAULTS, *MORE_FAULTS)} == set(CASES)


async def test_the_backend_that_faults_are_planted_in_is_sound_without_them() -> None:
    assert await backend_conformance(opening(SoundBackend), answer=ANSWER) == len(BACKEND_CASES)


async def test_what_is_not_planned_is_not_looked_at() -> None:
    for planned in (None, PlannedAnswer(tools=("find",))):
        count = await backend_conformance(opening(LosesItsLastPiece), answer=planned)
        assert count == len(BACKEND_CASES)


async def test_all_failures_are_raised_together_and_name_their_cases() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await backend_conformance(opening(HidesItsFailures))
    notes = [note for failure in caught.value.exceptions for note in failure.__notes__]
    assert notes == [
        "case: a_failure_is_raised_behind_what_was_said",
        "case: a_session_that_failed_is_resumed_and_answers",
    ]
    assert str(caught.value).startswith(f"2 of {len(BACKEND_CASES)} cases failed")


async def test_a_backend_that_hangs_ends_the_kit_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conforming, "PATIENCE_S", 0.2)
    with pytest.raises(ExceptionGroup) as caught:
        await backend_conformance(opening(NeverEnds))
    told = [str(failure) for failure in caught.value.exceptions]
    assert any("an answer of the backend 'sound' is not over after 0.2 s" in text for text in told)
