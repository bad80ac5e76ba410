"""Looking after a folder: damaged logs, and no more reading than is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.core.records import SessionKey
from perdure.errors import StoreCorruptError
from perdure.store import filetending
from perdure.store.files import FileStore
from perdure.store.upkeep import RunQuery
from perdure.testing.clock import ManualClock
from perdure.testing.samples import finish, row
from tests.store.file_folders import flip, log_of


async def test_a_damaged_run_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "runs")
    for run_id in ("a", "b", "c"):
        await finish(store, run_id, row(1, "x"))
    await store.close()
    flip(log_of(tmp_path / "runs", "b"), 120)
    again = FileStore(tmp_path / "runs")
    with pytest.raises(StoreCorruptError):
        await again.read_run("b")
    upkeep = again.upkeep()
    assert [run.run_id for run in await upkeep.find_runs(RunQuery())] == ["c", "a"]
    now = await upkeep.now()
    assert (await upkeep.find_framed(now, limit=9)).run_ids == ["a", "c"]
    assert (await upkeep.find_ended(now, limit=9)).run_ids == ["a", "c"]
    assert await upkeep.remove_ended(["a", "c"], now) == ["a", "c"]
    await again.close()


async def test_a_session_with_a_damaged_turn_is_kept(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "runs")
    for turn in range(2):
        await finish(store, f"turn-{turn}", session=SessionKey("s", turn))
    await store.close()
    flip(log_of(tmp_path / "runs", "turn-1"), 120)
    again = FileStore(tmp_path / "runs")
    upkeep = again.upkeep()
    now = await upkeep.now()
    assert (await upkeep.find_ended(now, limit=9)).run_ids == []
    assert await upkeep.remove_ended(["turn-0"], now) == []
    await again.close()


async def test_a_page_reads_only_so_many_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filetending, "LOOKED_MAX", 2)
    clock = ManualClock()
    store = FileStore(tmp_path / "runs", durability="normal", clock=clock)
    for run_id in "abcde":
        await finish(store, run_id, *([row(1, "x")] if run_id == "e" else []))
    upkeep = store.upkeep()
    now = await upkeep.now()
    first = await upkeep.find_framed(now, limit=9)
    assert (first.run_ids, first.after) == ([], "b")
    second = await upkeep.find_framed(now, after=first.after, limit=9)
    third = await upkeep.find_framed(now, after=second.after, limit=9)
    assert (third.run_ids, third.after) == (["e"], None)
    # What has no frames is not read for them again.
    assert (await upkeep.find_framed(now, limit=9)).run_ids == ["e"]
    await store.close()
