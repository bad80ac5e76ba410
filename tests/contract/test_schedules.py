"""Every store of the package keeps schedules."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from perdure.errors import UsageError
from perdure.store.scheduling import schedules_of
from perdure.testing.cases import schedules
from perdure.testing.contract import SCHEDULE_CASES
from perdure.testing.lab import Case
from tests.contract.test_stores import LABS, postgres_lab
from tests.store.postgres_server import PostgresServer


@pytest.mark.parametrize("name", sorted(LABS))
@pytest.mark.parametrize("case", SCHEDULE_CASES, ids=lambda case: case.__name__)
async def test_schedules_contract(case: Case, name: str, tmp_path: Path) -> None:
    async with LABS[name](tmp_path) as lab:
        await case(lab)


@pytest.mark.parametrize("case", SCHEDULE_CASES, ids=lambda case: case.__name__)
async def test_schedules_contract_on_postgresql(case: Case, postgres: PostgresServer) -> None:
    async with postgres_lab(postgres.url, postgres.clean_schema()) as lab:
        await case(lab)


def test_no_case_is_left_out() -> None:
    written = [
        name
        for name, value in vars(schedules).items()
        if callable(value) and value.__module__ == schedules.__name__ and name[0] != "_"
    ]
    assert sorted(written) == sorted(case.__name__ for case in SCHEDULE_CASES)


def test_a_store_without_schedules_is_named() -> None:
    class Bare:
        """Some other store."""

    with pytest.raises(UsageError, match="Bare"):
        schedules_of(cast("object", Bare()))  # type: ignore[arg-type]  # it is no store at all
