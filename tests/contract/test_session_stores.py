"""Every store of agent sessions passes every case of its contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import cast

import pytest

from perdure.agent.sessions import EventKeepingSessionStore, InMemoryRuntimeSessionStore
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.testing import (
    COMPARING_SESSION_STORE_CASES,
    SESSION_STORE_CASES,
    NewSessionStoreLab,
    SessionStoreLab,
    StoreLab,
    session_store_conformance,
)
from perdure.testing.samples import manifest
from perdure.testing.session_stores import SessionStoreCase
from tests.contract.test_stores import LABS, postgres_lab
from tests.store.postgres_server import PostgresServer

CASES = SESSION_STORE_CASES + COMPARING_SESSION_STORE_CASES


def in_memory() -> AbstractAsyncContextManager[SessionStoreLab]:
    store = InMemoryRuntimeSessionStore()

    async def open_store() -> EventKeepingSessionStore:
        return store

    return nullcontext(SessionStoreLab(open_store))


@asynccontextmanager
async def stored(new_lab: Callable[[], StoreLab]) -> AsyncIterator[SessionStoreLab]:
    async with new_lab() as runs:
        yield lab_on(runs, lambda store: store)


@asynccontextmanager
async def within_a_run(new_lab: Callable[[], StoreLab]) -> AsyncIterator[SessionStoreLab]:
    async with new_lab() as runs:
        for tenant in ("", "another"):
            store = await runs.open(tenant=tenant)
            await store.enqueue("chat:s:0", manifest(), handler="h")
        yield lab_on(runs, lambda store: store.beside("chat:s:0"))


def lab_on(
    runs: StoreLab, keep: Callable[[DurableSessionStore], DurableSessionStore]
) -> SessionStoreLab:
    async def open_store(tenant: str = "") -> EventKeepingSessionStore:
        return keep(DurableSessionStore(await runs.open(tenant=tenant)))

    return SessionStoreLab(
        open_store, restart=runs.close, open_elsewhere=lambda: open_store("another")
    )


@pytest.fixture(params=sorted(["in_memory", *LABS, "postgres", "within_a_run"]))
def new_lab(request: pytest.FixtureRequest, tmp_path: Path) -> NewSessionStoreLab:
    name = cast("str", request.param)
    if name == "in_memory":
        return in_memory
    if name == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return lambda: stored(lambda: postgres_lab(server.url, server.clean_schema()))
    kind = "sqlite" if name == "within_a_run" else name
    numbers = iter(range(len(CASES) + 1))

    def fresh() -> StoreLab:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return LABS[kind](folder)

    return lambda: (stored if kind == name else within_a_run)(fresh)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_session_store_contract(case: SessionStoreCase, new_lab: NewSessionStoreLab) -> None:
    async with new_lab() as lab:
        await case(lab)


@pytest.mark.timeout(120)  # All cases in a row, on a server for one of the stores.
async def test_no_session_store_skips_a_case(new_lab: NewSessionStoreLab) -> None:
    assert await session_store_conformance(new_lab) == len(CASES)


def test_the_cases_are_sentences_of_their_own() -> None:
    names = [case.__name__ for case in CASES]
    assert len(set(names)) == len(names) > 20
    assert all(name.count("_") >= 3 for name in names)
