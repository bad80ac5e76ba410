"""Every store of the package can be looked after."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from perdure.errors import UsageError
from perdure.store.upkeep import RunQuery, upkeep_of
from perdure.testing.contract import UPKEEP_CASES
from perdure.testing.lab import Case
from perdure.testing.samples import delivery, finish
from tests.contract.test_stores import LABS, postgres_lab
from tests.store.postgres_server import PostgresServer


@pytest.mark.parametrize("name", sorted(set(LABS) - {"sealed"}))
@pytest.mark.parametrize("case", UPKEEP_CASES, ids=lambda case: case.__name__)
async def test_upkeep_contract(case: Case, name: str, tmp_path: Path) -> None:
    async with LABS[name](tmp_path) as lab:
        await case(lab)


@pytest.mark.parametrize("case", UPKEEP_CASES, ids=lambda case: case.__name__)
async def test_upkeep_contract_on_postgresql(case: Case, postgres: PostgresServer) -> None:
    async with postgres_lab(postgres.url, postgres.clean_schema()) as lab:
        await case(lab)


async def test_a_protected_store_is_looked_after_as_the_one_beneath(tmp_path: Path) -> None:
    async with LABS["sealed"](tmp_path) as lab:
        store = await lab.open()
        await finish(store, "run", delivery(0))
        upkeep = upkeep_of(store)
        assert [run.run_id for run in await upkeep.find_runs(RunQuery())] == ["run"]
        assert (await upkeep.survey()).waiting == 1


def test_a_store_without_upkeep_is_named() -> None:
    class Bare:
        """Some other store."""

    with pytest.raises(UsageError, match="Bare"):
        upkeep_of(cast("object", Bare()))  # type: ignore[arg-type]  # it is no store at all
