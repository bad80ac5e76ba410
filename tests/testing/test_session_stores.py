"""The contract of session stores finds what is planted, and says which case found it."""

from __future__ import annotations

import asyncio
import re
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any

import pytest

from perdure.agent.sessions import EventKeepingSessionStore, InMemoryRuntimeSessionStore
from perdure.testing import (
    COMPARING_SESSION_STORE_CASES,
    SESSION_STORE_CASES,
    SessionStoreLab,
    conforming,
    session_store_conformance,
)
from tests.testing.broken_session_stores import FAULTS, LosesTheEnd, SoundStore, lab_of
from tests.testing.careless_session_stores import MORE_FAULTS

CASES = {case.__name__: case for case in SESSION_STORE_CASES + COMPARING_SESSION_STORE_CASES}


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [*FAULTS, *MORE_FAULTS],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_bb_20_a_planted_fault_is_found_by_the_case_that_names_it(
    kind: type[SoundStore], name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conforming, "PATIENCE_S", 0.5)
    with pytest.raises(AssertionError) as caught:
        async with lab_of(kind) as lab:
            await CASES[name](lab)
    assert re.search(words, str(caught.value), re.DOTALL)


def test_every_case_has_a_fault_that_it_finds() -> None:
    assert {name for _, name, _ in (*FAULTS, *MORE_FAULTS)} == set(CASES)


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


class Hanging(SoundStore):
    async def append_event(self, session_id: str, event: Any) -> None:
        await asyncio.Event().wait()


async def test_a_store_that_hangs_ends_the_kit_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conforming, "CASE_S", 0.1)
    with pytest.raises(ExceptionGroup) as caught:
        await session_store_conformance(partial(lab_of, Hanging))
    notes = {note: str(each) for each in caught.value.exceptions for note in each.__notes__}
    assert notes["case: events_come_back_in_order"] == "this case is not over after 0.1 s"


async def test_all_failures_are_raised_together_and_name_their_cases() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await session_store_conformance(partial(lab_of, LosesTheEnd))
    notes = [note for failure in caught.value.exceptions for note in failure.__notes__]
    assert "case: a_stream_is_kept_as_it_was_told" in notes
    assert str(caught.value).startswith(f"{len(notes)} of {len(CASES)} cases failed")
