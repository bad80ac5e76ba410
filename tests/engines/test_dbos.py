"""Tasks on DBOS, on SQLite and on PostgreSQL, with a worker that is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from dbos import DBOS

from perdure.engines.dbos import run_on_dbos, task_workflow
from perdure.errors import UsageError
from perdure.testing.hosts import HOST_CASES, HostCase
from tests.engines.dbos_lab import DbosLab
from tests.store.postgres_server import PostgresServer

pytestmark = pytest.mark.xdist_group("dbos")


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DbosLab]:
    folder = tmp_path_factory.mktemp("dbos")
    lab = DbosLab(f"sqlite:///{folder / 'dbos.db'}", folder)
    yield lab
    lab.close()


@pytest.mark.parametrize("case", HOST_CASES, ids=lambda case: case.__name__)
async def test_dbos_keeps_the_contract_of_hosts_on_sqlite(
    case: HostCase, on_sqlite: DbosLab
) -> None:
    await case(on_sqlite)


@pytest.fixture(scope="module")
def on_postgres(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DbosLab]:
    """Return a lab on a database of its own, which DBOS makes."""
    url = urlsplit(postgres.url)._replace(path="/dbos_tests", query="")
    lab = DbosLab(url.geturl(), tmp_path_factory.mktemp("dbos"))
    yield lab
    lab.close()


@pytest.mark.campaign
@pytest.mark.parametrize("case", HOST_CASES, ids=lambda case: case.__name__)
async def test_dbos_keeps_the_contract_of_hosts_on_postgres(
    case: HostCase, on_postgres: DbosLab
) -> None:
    await case(on_postgres)


async def test_a_cancelled_task_is_interrupted_where_it_waits(on_sqlite: DbosLab) -> None:
    log = on_sqlite.folder / "interrupted.log"
    log.touch()
    await on_sqlite.start("cancelled", "interrupted", {"log": str(log)})
    await seen(log, "begun")
    await on_sqlite.cancel("interrupted")
    await seen(log, "left")
    assert words(log) == ["begun", "left"]


async def seen(log: Path, word: str) -> None:
    """Return once the word is in the log, long before the wait of the task would be over."""
    async with asyncio.timeout(20):
        while True:
            if word in words(log):
                return
            await asyncio.sleep(0.02)


def words(log: Path) -> list[str]:
    return log.read_text("ascii").split()


async def test_outside_a_workflow_a_task_is_refused() -> None:
    async def task(ctx: object) -> None: ...

    with pytest.raises(UsageError, match="in a workflow of DBOS"):
        await run_on_dbos(task, project_id="tests")


async def test_an_input_that_is_no_object_is_refused_by_what_it_is(tmp_path: Path) -> None:
    async def task(ctx: object) -> None: ...

    url = f"sqlite:///{tmp_path / 'dbos.db'}"
    DBOS(config={"name": "tests", "system_database_url": url, "log_level": "ERROR"})
    workflow: Any = task_workflow("refused", task)
    DBOS.launch()
    try:
        run = await DBOS.start_workflow_async(workflow, "Ann")
        with pytest.raises(UsageError, match="an object or None, not 'Ann'"):
            await run.get_result(polling_interval_sec=0.02)
    finally:
        DBOS.destroy(destroy_registry=True)
