"""The floors of files and of D1 keep what they are given: one that stores nothing is none."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from unittest import mock

import pytest

from bench.d1_floor import D1Floor
from bench.file_floor import FileFloor
from perdure.store.sql.d1.address import TOKEN_VARIABLE
from tests.store.d1_server import TOKEN, D1Server


async def test_the_floor_on_files_keeps_steps_and_flushes_each_before_it_is_answered(
    tmp_path: Path,
) -> None:
    floor = FileFloor(str(tmp_path / "floor"), synchronous="full")
    with mock.patch.object(os, "fdatasync", wraps=os.fdatasync) as flushed:
        await floor.run_steps("a", 3)
        assert flushed.call_count == 5, "its begin, three steps, its end"
        await asyncio.gather(floor.run_steps("b", 1), floor.run_steps("c", 1))
    assert await floor.replay("a") == [{"i": index, "status": "ok"} for index in range(3)]
    assert await floor.replay("c") == [{"i": 0, "status": "ok"}]
    await floor.close()


async def test_the_floor_on_files_flushes_nothing_where_nothing_is_asked(tmp_path: Path) -> None:
    floor = FileFloor(str(tmp_path / "floor"), synchronous="normal")
    with mock.patch.object(os, "fdatasync", wraps=os.fdatasync) as flushed:
        await floor.run_steps("a", 2)
    assert flushed.call_count == 0
    assert len(await floor.replay("a")) == 2
    await floor.close()


@pytest.mark.node
async def test_the_floor_on_d1_keeps_steps_and_knows_when_a_run_ended(
    d1: D1Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    database = d1.drop()
    floor = await D1Floor.open(d1.url(database))
    await floor.run_steps("a", 2)
    assert await floor.replay("a") == [{"i": index, "status": "ok"} for index in range(2)]
    assert d1.run("SELECT id, status FROM run") == [[{"id": "a", "status": "done"}]]
    await floor.close()
    d1.drop(database)
