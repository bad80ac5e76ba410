"""The contract of session stores finds what is planted, and says which case found it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

import pytest

from perdure.agent.sessions import EventKeepingSessionStore, InMemoryRuntimeSessionStore
from perdure.testing import (
    COMPARING_SESSION_STORE_CASES,
    SESSION_STORE_CASES,
    SessionStoreLab,
    session_store_conformance,
)
from tests.testing.broken_session_stores import FAULTS, LosesTheEnd, SoundStore, lab_of

CASES = {case.__name__: case for case in SESSION_STORE_CASES + COMPARING_SESSION_STORE_CASES}


@pytest.mark.parametrize(("kind", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
async def test_bb_20_a_planted_fault_is_found_by_the_case_that_names_it(
    kind: type[SoundStore], name: str
) -> None:
    with pytest.raises(AssertionError):
        async with lab_of(kind) as lab:
            await CASES[name](lab)


def test_every_case_has_a_fault_that_it_finds() -> None:
    assert {name for _, name in FAULTS} == set(CASES)


async def test_the_store_that_faults_are_planted_in_is_sound_without_them() -> None:
    assert await session_store_conformance(partial(lab_of, SoundStore)) == len(CASES)


class PlainStore:
    """A store that compares nothing."""

    def __init__(self) -> None:
        store = InMemoryRuntimeSessionStore()
        self.get, self.put = store.get, store.put
        self.append_event, self.list_events = store.append_event, store.list_events

    async def open(self) -> EventKeepingSessionStore:
        return self


async def test_a_store_without_put_if_is_not_asked_for_it() -> None:
    def new_lab() -> AbstractAsyncContextManager[SessionStoreLab]:
        return nullcontext(SessionStoreLab(PlainStore().open))

    assert await session_store_conformance(new_lab) == len(SESSION_STORE_CASES)


async def test_all_failures_are_raised_together_and_name_their_cases() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await session_store_conformance(partial(lab_of, LosesTheEnd))
    notes = [note for failure in caught.value.exceptions for note in failure.__notes__]
    assert "case: a_stream_is_kept_as_it_was_told" in notes
    assert str(caught.value).startswith(f"{len(notes)} of {len(CASES)} cases failed")
