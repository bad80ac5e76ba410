"""Every store passes every case of the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from perdure.encryption import EnvelopeSealer, LocalKeys
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protected import protect
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.contract import STORE_CASES, NewLab, check_run_store
from perdure.testing.lab import Case, StoreLab
from tests.store.postgres_server import PostgresServer


def new_memory_lab(_folder: Path) -> StoreLab:
    data = MemoryData()

    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        return MemoryStore(data, clock=clock, code_version=code_version)

    return StoreLab(open_handle)


def new_sqlite_lab(folder: Path) -> StoreLab:
    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        url = f"sqlite:{folder / 'runs.db'}"
        return await open_store(url, clock=clock, code_version=code_version)

    return StoreLab(open_handle)


def new_file_lab(folder: Path) -> StoreLab:
    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        url = f"file:{folder / 'runs'}"
        return await open_store(url, clock=clock, code_version=code_version)

    return StoreLab(open_handle)


def new_sealed_lab(folder: Path) -> StoreLab:
    keys = LocalKeys({"now": bytes(range(32))}, current="now")

    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        url = f"sqlite:{folder / 'runs.db'}"
        inner = await open_store(url, clock=clock, code_version=code_version)
        return protect(inner, sealer=EnvelopeSealer(keys))

    return StoreLab(open_handle)


def postgres_lab(url: str, schema: str) -> StoreLab:
    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        address = f"{url}?schema={schema}"
        return await open_store(address, migrate=True, clock=clock, code_version=code_version)

    return StoreLab(open_handle)


LABS = {
    "file": new_file_lab,
    "memory": new_memory_lab,
    "sealed": new_sealed_lab,
    "sqlite": new_sqlite_lab,
}


@pytest.fixture(params=sorted([*LABS, "postgres"]))
def new_lab(request: pytest.FixtureRequest, tmp_path: Path) -> NewLab:
    name = cast(str, request.param)
    if name == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return lambda: postgres_lab(server.url, server.clean_schema())
    make = LABS[name]
    count = 0

    def fresh() -> StoreLab:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        folder.mkdir()
        return make(folder)

    return fresh


@pytest.fixture
async def lab(new_lab: NewLab) -> AsyncIterator[StoreLab]:
    async with new_lab() as lab:
        yield lab


@pytest.mark.parametrize("case", STORE_CASES, ids=lambda case: case.__name__)
async def test_store_contract(case: Case, lab: StoreLab) -> None:
    await case(lab)


# Each case has run by itself on each store; in a row, where that takes long, in the campaign.
IN_A_ROW = [
    *("file", "memory"),
    *(pytest.param(name, marks=pytest.mark.campaign) for name in ("postgres", "sealed", "sqlite")),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("new_lab", IN_A_ROW, indirect=True)
async def test_no_store_skips_a_case(new_lab: NewLab) -> None:
    assert await check_run_store(new_lab) == len(STORE_CASES)


def test_the_cases_are_sentences_of_their_own() -> None:
    names = [case.__name__ for case in STORE_CASES]
    assert len(set(names)) == len(names) > 50
