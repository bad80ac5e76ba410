"""Every case of the contract on each version of PostgreSQL beside the one of all other tests."""

from __future__ import annotations

import psycopg
import pytest

from perdure.testing.contract import STORE_CASES, check_run_store
from tests.contract.test_stores import postgres_lab
from tests.store.postgres_server import MAJOR, running_server

OTHERS = (14, 15, 16, 17)


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("major", OTHERS)
async def test_every_case_passes_on_another_version_of_the_server(major: int) -> None:
    with running_server(major) as server:
        with psycopg.connect(server.url) as connection:
            assert connection.info.server_version // 10_000 == major != MAJOR
        passed = await check_run_store(lambda: postgres_lab(server.url, server.clean_schema()))
    assert passed == len(STORE_CASES)
