"""Rows of runs live in the database of the runs, each with its workspace and its owner."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from perdure.agent.runtime_run import RuntimeRun, start_runtime_run
from perdure.agent.stored_rows import DurableRunRows
from perdure.core.records import AgentTaskSpec
from perdure.durable.erasing import erase_user
from perdure.errors import RunNotFoundError
from perdure.store.opening import open_store

TASK = AgentTaskSpec("intake", "Answer a question", domain="support")


def started(**options: Any) -> RuntimeRun:
    return start_runtime_run(workspace_id="ws-7", task_spec=TASK, **options)


@pytest.mark.parametrize("url", ["memory:", "sqlite:{}/runs.db", "file:{}/runs"])
async def test_10_r5_rows_live_in_the_database_of_the_runs(url: str, tmp_path: Path) -> None:
    store = await open_store(url.format(tmp_path))
    rows = DurableRunRows(store)
    run = started(adapter=rows, id="intake:1")
    assert await rows.get("intake:1", workspace_id="ws-7") is None
    run.complete("completed")
    await run.persist()
    await run.persist({"route": "chat"})
    assert await rows.get("intake:1", workspace_id="ws-7") == run.to_row({"route": "chat"})
    await store.close()


@pytest.mark.parametrize("url", ["memory:", "sqlite:{}/runs.db", "file:{}/runs"])
async def test_rows_of_somebody_else_are_not_there(url: str, tmp_path: Path) -> None:
    store = await open_store(url.format(tmp_path))
    hers = DurableRunRows(store, owner_id="ada")
    run = started(adapter=hers, id="intake:1")
    run.complete("completed")
    await run.persist()
    for owner_id in ("bob", None):
        other = DurableRunRows(store, owner_id=owner_id)
        assert await other.get("intake:1", workspace_id="ws-7") is None
        with pytest.raises(RunNotFoundError):
            await other.upsert(run.to_row({"by": "another"}))
    assert (
        await DurableRunRows(store.for_tenant("acme"), owner_id="ada").get(
            "intake:1", workspace_id="ws-7"
        )
        is None
    )
    await run.persist({"again": 1})
    assert await hers.get("intake:1", workspace_id="ws-7") == run.to_row({"again": 1})
    await erase_user(store, "ada")
    assert await hers.get("intake:1", workspace_id="ws-7") is None
    assert await store.list_runs() == []
    await store.close()


@pytest.mark.parametrize(
    ("one", "other"),
    [(("a", "r"), ("b", "r")), (("a/b", "r"), ("a", "b/r")), (("w" * 300, "r"), ("w" * 301, "r"))],
)
async def test_10_r5_rows_of_two_workspaces_share_nothing(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    store = await open_store("memory:")
    rows = DurableRunRows(store)
    for workspace_id, id in (one, other):
        run = start_runtime_run(
            workspace_id=workspace_id, task_spec=AgentTaskSpec("t", "i"), id=id, adapter=rows
        )
        run.complete("completed", result_summary=workspace_id)
        await run.persist()
    for workspace_id, id in (one, other):
        row = await rows.get(id, workspace_id=workspace_id)
        assert row is not None
        assert (row.workspace_id, row.result_summary) == (workspace_id, workspace_id)
    assert await rows.get(one[1], workspace_id="nobody") is None
    await store.close()


async def test_10_r5_a_row_that_two_write_at_once_for_the_first_time_is_kept() -> None:
    store = await open_store("memory:")
    run = started(id="intake:1")
    run.complete("completed")
    writers = [DurableRunRows(store) for _ in range(3)]
    await asyncio.gather(*(rows.upsert(run.to_row({"by": n})) for n, rows in enumerate(writers)))
    kept = [await rows.get("intake:1", workspace_id="ws-7") for rows in writers]
    assert kept[0] is not None
    assert kept == [kept[0]] * 3
    await store.close()
