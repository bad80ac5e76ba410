"""The contract with handles in two processes in turn, on every store that two can share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.contract import STORE_CASES
from perdure.testing.lab import Case, StoreLab
from tests.contract.other_process import OtherProcess, open_at

STORES = ["sqlite", "file", "postgres", pytest.param("d1", marks=pytest.mark.node)]


@pytest.fixture
async def other() -> AsyncIterator[OtherProcess]:
    process = await OtherProcess.start()
    yield process
    await process.close()


def lab_on(url: str, other: OtherProcess, *, there_first: bool) -> StoreLab:
    """Return a lab whose handles are opened here and there in turn."""
    is_there = cycle((there_first, not there_first))

    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        if next(is_there):
            return await other.open(url, clock, code_version)
        return await open_at(url, clock, code_version)

    return StoreLab(open_handle)


def there_first_in(case: Case, there_first: bool) -> bool:
    """Whoever works with a handle hears of its end in one process, so that one is opened here."""
    return there_first and not case.__module__.endswith(".handles")


@pytest.mark.campaign
@pytest.mark.parametrize("there_first", [False, True], ids=["here first", "there first"])
@pytest.mark.parametrize("name", STORES)
async def test_no_store_skips_a_case_with_handles_in_two_processes(
    name: str,
    there_first: bool,
    other: OtherProcess,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    server: Any = request.getfixturevalue(name) if name in ("d1", "postgres") else None
    for count, case in enumerate(STORE_CASES):
        url = f"{name}:{tmp_path / str(count)}"
        if name == "postgres":
            url = f"{server.url}?schema={server.clean_schema()}"
        elif name == "d1":
            url = f"d1 {server.origin} {server.clean()}"
        async with lab_on(url, other, there_first=there_first_in(case, there_first)) as lab:
            try:
                await case(lab)
            except Exception as error:
                error.add_note(f"case: {case.__name__}")
                raise


async def test_of_two_processes_one_wins_a_claim(other: OtherProcess, tmp_path: Path) -> None:
    claims = [case for case in STORE_CASES if case.__module__.endswith(".claiming")]
    assert len(claims) > 10
    for count, case in enumerate(claims):
        async with lab_on(f"sqlite:{tmp_path / str(count)}", other, there_first=True) as lab:
            await case(lab)
