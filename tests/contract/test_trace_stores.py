"""Every store of traces passes every case of its contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import cast

import pytest

from perdure.agent.stored_traces import DurableTraceStore
from perdure.observe.trace_store import InMemoryTraceStore, TraceStore
from perdure.testing import (
    TRACE_STORE_CASES,
    NewTraceStoreLab,
    StoreLab,
    TraceStoreLab,
)
from perdure.testing.trace_stores import TraceStoreCase
from tests.contract.test_stores import LABS, postgres_lab
from tests.store.postgres_server import PostgresServer


def in_memory() -> AbstractAsyncContextManager[TraceStoreLab]:
    store = InMemoryTraceStore()

    async def open_store() -> TraceStore:
        return store

    return nullcontext(TraceStoreLab(open_store))


@asynccontextmanager
async def stored(new_lab: Callable[[], StoreLab]) -> AsyncIterator[TraceStoreLab]:
    async with new_lab() as runs:

        async def open_store() -> TraceStore:
            return DurableTraceStore(await runs.open())

        yield TraceStoreLab(open_store)


# A sealed store is one on SQLite, which is tried as it is where a trace outlives its process.
KINDS = sorted({"in_memory", "postgres", *LABS} - {"sqlite"})


@pytest.fixture(params=KINDS)
def new_lab(request: pytest.FixtureRequest, tmp_path: Path) -> NewTraceStoreLab:
    name = cast("str", request.param)
    if name == "in_memory":
        return in_memory
    if name == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return lambda: stored(lambda: postgres_lab(server.url, server.clean_schema()))
    return lambda: stored(lambda: LABS[name](tmp_path))


@pytest.mark.parametrize("case", TRACE_STORE_CASES, ids=lambda case: case.__name__)
async def test_trace_store_contract(case: TraceStoreCase, new_lab: NewTraceStoreLab) -> None:
    async with new_lab() as lab:
        await case(lab)


def test_the_cases_are_sentences_of_their_own() -> None:
    names = [case.__name__ for case in TRACE_STORE_CASES]
    assert len(set(names)) == len(names) > 15
    assert all(name.count("_") >= 3 for name in names)
