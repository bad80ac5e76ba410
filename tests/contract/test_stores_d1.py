"""Cloudflare D1 passes every case of every contract, through its binding and over HTTP."""

from __future__ import annotations

import pytest

from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.contract import (
    ERASURE_CASES,
    SCHEDULE_CASES,
    STORE_CASES,
    UPKEEP_CASES,
    check_run_store,
)
from perdure.testing.lab import Case, StoreLab
from tests.store.d1_server import D1Server

pytestmark = pytest.mark.node
CASES = (*STORE_CASES, *SCHEDULE_CASES, *UPKEEP_CASES, *ERASURE_CASES)
WAYS = ("binding", "http")


def d1_lab(d1: D1Server, way: str) -> StoreLab:
    database = d1.clean()

    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        binding = d1.binding(database) if way == "binding" else d1.api(database)
        return d1.store(binding, clock, code_version)

    return StoreLab(open_handle)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_contract_on_d1(case: Case, way: str, d1: D1Server) -> None:
    async with d1_lab(d1, way) as lab:
        await case(lab)
    await d1.let_go()


@pytest.mark.campaign
@pytest.mark.timeout(300)  # All cases in a row.
@pytest.mark.parametrize("way", WAYS)
async def test_d1_skips_no_case(way: str, d1: D1Server) -> None:
    assert await check_run_store(lambda: d1_lab(d1, way)) == len(STORE_CASES)
    await d1.let_go()
