"""Every store of the package can erase sessions."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from perdure.errors import UsageError
from perdure.store.erasure import erasure_of
from perdure.testing.contract import ERASURE_CASES
from perdure.testing.lab import Case
from tests.contract.test_stores import LABS, postgres_lab
from tests.store.postgres_server import PostgresServer


@pytest.mark.parametrize("name", sorted(LABS))
@pytest.mark.parametrize("case", ERASURE_CASES, ids=lambda case: case.__name__)
async def test_erasure_contract(case: Case, name: str, tmp_path: Path) -> None:
    async with LABS[name](tmp_path) as lab:
        await case(lab)


@pytest.mark.parametrize("case", ERASURE_CASES, ids=lambda case: case.__name__)
async def test_erasure_contract_on_postgresql(case: Case, postgres: PostgresServer) -> None:
    async with postgres_lab(postgres.url, postgres.clean_schema()) as lab:
        await case(lab)


def test_a_store_without_erasure_is_named() -> None:
    class Bare:
        """Some other store."""

    with pytest.raises(UsageError, match="Bare"):
        erasure_of(cast("object", Bare()))  # type: ignore[arg-type]  # it is no store at all
