"""Every case of the contract on the other versions of PostgreSQL that this machine has."""

from __future__ import annotations

import psycopg
import pytest

from perdure.testing.contract import STORE_CASES, check_run_store
from tests.contract.test_stores import postgres_lab
from tests.store.postgres_server import MAJOR, installed, running_server

OTHERS = (14, 15, 16, 17)
"""Beside the one that all other tests are run on: 16 is in the wheel, others are a package."""


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("major", OTHERS)
async def test_every_case_passes_on_another_version_of_the_server(major: int) -> None:
    if not (installed(major) / "bin" / "postgres").exists():
        pytest.skip(f"needs the programs of PostgreSQL {major}: apt-get install postgresql-{major}")
    with running_server(major) as server:
        with psycopg.connect(server.url) as connection:
            assert connection.info.server_version // 10_000 == major != MAJOR
        passed = await check_run_store(lambda: postgres_lab(server.url, server.clean_schema()))
    assert passed == len(STORE_CASES)
