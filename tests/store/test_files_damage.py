"""Logs that a crash cut off, that a disk damaged, and that found no room."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Literal

import pytest

from perdure.core.changes import Release
from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease
from perdure.errors import StoreBusyError, StoreCorruptError
from perdure.store.files import FileStore
from perdure.testing.lab import snapshot
from perdure.testing.samples import HANDLER, completed, hold, row
from tests.store.file_folders import (
    files_of,
    flip,
    log_of,
    read_only,
    start,
    start_without_privilege,
)
from tests.store.sql.processes import output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


async def written(
    folder: Path, count: int, durability: Literal["full", "normal"] = "full"
) -> Lease:
    """Make a run with so many steps, each of them one line."""
    store = FileStore(folder, durability=durability)
    lease = await hold(store)
    for position in range(count):
        await store.write(lease, completed(position, position), row(position + 1, "x"))
    await store.close()
    return lease


async def test_a_torn_last_line_is_never_read_and_makes_room_for_the_next(folder: Path) -> None:
    lease = await written(folder, 3)
    log = log_of(folder)
    whole = log.read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    for length in range(begin, len(whole)):
        log.write_bytes(whole[:length])
        store = FileStore(folder, durability="normal")
        assert len(await store.read_steps("run")) == len(await store.read_frames("run")) == 2
        assert log.read_bytes() == whole[:length]
        await store.write(lease, completed(2, 2), row(3, "x"))
        assert len(await store.read_steps("run")) == 3
        await store.close()
        again = FileStore(folder, durability="normal")
        assert [step.result for step in await again.read_steps("run")] == [0, 1, 2]
        await again.close()


@pytest.mark.parametrize("junk", [b"\0" * 300, b"\n\n\n", b"12345678 4 [junk]\n", b"\xff\n"])
async def test_junk_behind_the_last_line_is_a_torn_line(folder: Path, junk: bytes) -> None:
    lease = await written(folder, 2)
    log = log_of(folder)
    log.write_bytes(log.read_bytes() + junk)
    store = FileStore(folder)
    assert len(await store.read_steps("run")) == 2
    await store.write(lease, completed(2))
    await store.close()
    assert junk not in log.read_bytes()
    again = FileStore(folder)
    assert len(await again.read_steps("run")) == 3
    await again.close()


async def test_a_handle_that_reads_on_is_not_misled_by_a_torn_line(folder: Path) -> None:
    lease = await written(folder, 2)
    log = log_of(folder)
    reader, writer = FileStore(folder), FileStore(folder)
    assert len(await reader.read_steps("run")) == 2
    log.write_bytes(log.read_bytes() + b"0123abcd 4 [torn")
    assert len(await reader.read_steps("run")) == 2
    await writer.write(lease, completed(2))
    assert len(await reader.read_steps("run")) == 3
    await reader.close()
    await writer.close()


async def test_a_log_whose_first_write_was_cut_off_is_none(folder: Path) -> None:
    await written(folder, 0)
    log = log_of(folder)
    whole = log.read_bytes()
    first = whole.index(b"\n") + 1
    for length in [*range(first + 1), len(whole) - 1]:
        log.write_bytes(whole[:length])
        store = FileStore(folder, durability="normal")
        assert await store.read_run("run") is None
        claim = await hold(store)
        assert claim.epoch == 1
        await store.close()


async def test_a_flipped_bit_in_the_middle_is_damage_and_names_the_file(folder: Path) -> None:
    lease = await written(folder, 3)
    log = log_of(folder)
    whole = log.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for position in range(0, last - 1, 3):
        flip(log, position)
        store = FileStore(folder)
        with pytest.raises(StoreCorruptError) as caught:
            await store.read_steps("run")
        assert str(log) in str(caught.value)
        with pytest.raises(StoreCorruptError):
            await store.write(lease, completed(3))
        await hold(store, f"another-{position}")
        await store.close()
        flip(log, position)
        assert log.read_bytes() == whole


async def test_what_a_power_cut_took_of_unflushed_lines_is_no_damage(folder: Path) -> None:
    lease = await written(folder, 3, "normal")
    log = log_of(folder)
    whole = log.read_bytes()
    header = whole.index(b"\n") + 1
    for position in range(header, whole.rindex(b"\n", 0, -1), 40):
        log.write_bytes(whole[:position] + bytes(30) + whole[position + 30 :])
        store = FileStore(folder, durability="normal")
        results = [step.result for step in await store.read_steps("run")]
        assert results == [0, 1, 2][: len(results)]
        if results:
            await store.write(lease, completed(len(results), "after"))
            assert len(await store.read_steps("run")) == len(results) + 1
        await store.close()


async def test_a_renewal_that_a_power_cut_took_is_no_damage(folder: Path) -> None:
    store = FileStore(folder)
    lease = await hold(store)
    await store.write(lease, completed(0, 0))
    begin = log_of(folder).stat().st_size
    await store.renew([lease], LEASE_MS)
    end = log_of(folder).stat().st_size
    await store.write(lease, completed(1, 1))
    await store.close()
    cut = log_of(folder).read_bytes()
    # The line behind it is on the disk already, but its flush was not over: nobody was told.
    log_of(folder).write_bytes(cut[:begin] + bytes(end - begin) + cut[end:])
    again = FileStore(folder)
    assert [step.result for step in await again.read_steps("run")] == [0]
    await again.write(lease, completed(1, 1))
    await again.write(lease, completed(2, 2))
    await again.close()
    flip(log_of(folder), begin + 20)
    reader = FileStore(folder)
    with pytest.raises(StoreCorruptError, match="line 3"):
        await reader.read_steps("run")
    await reader.close()


async def test_a_damaged_run_keeps_no_sweep_from_the_others(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await written(folder, 3)
    flip(log_of(folder), 120)
    store = FileStore(folder)
    await store.write(await hold(store, "free"), Release())
    for expected in (["free"], []):
        claims = await store.claim_due([HANDLER], worker_id="w", lease_ms=60_000, limit=9)
        assert [claim.run.run_id for claim in claims] == expected
    (record,) = caplog.records
    assert str(log_of(folder)) in record.getMessage()
    await store.close()


async def test_a_missing_line_in_the_middle_is_damage(folder: Path) -> None:
    await written(folder, 3)
    log = log_of(folder)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2] + lines[3:]))
    store = FileStore(folder)
    with pytest.raises(StoreCorruptError, match="lacks its line 2"):
        await store.read_steps("run")
    await store.close()


async def test_a_lock_that_is_never_given_back_costs_only_its_own_run(folder: Path) -> None:
    store = FileStore(folder, durability="normal", patience_ms=50)
    stuck, free = await hold(store, "stuck"), await hold(store, "free")
    with log_of(folder, "stuck").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreBusyError, match="held the lock"):
            await store.write(stuck, completed(0))
        assert len(await store.read_steps("stuck")) == 0
        await store.write(free, completed(0))
        with pytest.raises(StoreBusyError):
            await store.renew([stuck, free], 60_000)
    assert await store.renew([stuck, free], 60_000) == {stuck: False, free: False}
    await store.write(stuck, completed(0))
    await store.close()


@pytest.mark.parametrize("bytes_max", [3_000, 3_100, 3_217, 3_500, 4_096])
async def test_a_full_disk_leaves_whole_lines(folder: Path, bytes_max: int) -> None:
    lines = output(start("fill_the_disk", folder, bytes_max))
    assert "no room left" in lines[0]
    assert lines[1] == "True"
    assert lines[2] == lines[3]
    store = FileStore(folder)
    steps = await store.read_steps("run")
    assert len(steps) == len(await store.read_frames("run")) == int(lines[2]) + 1
    await store.close()


async def test_a_run_that_finds_no_room_never_was(folder: Path) -> None:
    assert output(start("make_no_room_for_a_run", folder)) == ["full", "None"]
    store = FileStore(folder)
    (run,) = await store.list_runs()
    assert run.owner_id == "bob"
    await store.close()


async def test_a_folder_that_cannot_be_written_can_be_read(folder: Path) -> None:
    await written(folder, 2)
    before = files_of(folder)
    with read_only(folder):
        lines = output(start_without_privilege("read_and_write", folder))
    assert lines[0] == "running 1"
    assert lines[1].startswith("StoreUnavailableError: the store's folder may not be")
    assert files_of(folder) == before
    store = FileStore(folder)
    assert (await snapshot(store, "run")).run is not None
    await store.close()
