"""A store of files: what is on the disk, what two processes do with it, and what a step costs."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import pytest

import perdure.store.fileindex
import perdure.store.fileruns
from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease, SessionKey
from perdure.errors import (
    RunNotFoundError,
    SchemaError,
    SessionBusyError,
    StoreCorruptError,
    StoreUnavailableError,
    UsageError,
)
from perdure.store.filehandle import check_folder
from perdure.store.files import FileStore
from perdure.store.opening import open_store
from perdure.testing.clock import ManualClock
from perdure.testing.lab import snapshot
from perdure.testing.samples import HANDLER, completed, delivery, ended, finish, hold, manifest, row
from tests.store.file_folders import bytes_of, exists, files_of, log_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(folder: Path, clock: ManualClock) -> AsyncIterator[FileStore]:
    store = FileStore(folder, durability="normal", clock=clock)
    yield store
    await store.close()


# The folder.


@pytest.mark.parametrize("form", ["file:{}", "file://{}"])
async def test_an_absolute_path_is_absolute(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "runs #1 100%"
    store = await open_store(form.format(folder))
    assert isinstance(store, FileStore)
    await hold(store)
    await store.close()
    assert log_of(folder).is_file()


async def test_a_relative_path_is_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = await open_store("file:runs")
    monkeypatch.chdir("/")
    await hold(store)
    await store.close()
    assert log_of(tmp_path / "runs").is_file()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:", "no folder"),
        ("file://host/runs", "names the host 'host'"),
        ("file:runs?mode=ro", "query"),
        ("file:/no/such/folder/runs", "does not exist"),
        (f"file:{__file__}", "is not a folder"),
        ("file:a\0b", "zero byte"),
    ],
)
async def test_an_address_that_cannot_be_a_folder_says_why(url: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        await open_store(url)


async def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Ann")
    with pytest.raises(UsageError, match=r"letter\.txt"):
        await open_store(f"file:{tmp_path}")
    assert files_of(tmp_path) == ["letter.txt"]


def test_a_network_mount_is_refused(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"disk / ext4 rw 0 0\nserver:/x {tmp_path}/shared nfs4 rw 0 0\n")
    (tmp_path / "shared").mkdir()
    for name in ("shared", "shared/runs"):
        with pytest.raises(UsageError, match=r"network mount \(nfs4\)"):
            check_folder(tmp_path / name, mounts=str(mounts))
    assert check_folder(tmp_path / "runs", mounts=str(mounts)) == str(tmp_path / "runs")


async def test_an_unknown_durability_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="durability"):
        FileStore(folder, durability=cast(Any, "most"))
    assert not exists(folder)


async def test_a_folder_of_a_newer_format_is_refused(folder: Path, store: FileStore) -> None:
    await store.open()
    start = b"perdure-log 2 " + b"0" * 32
    (folder / "index").write_bytes(b"%b %08x\n" % (start, zlib.crc32(start)))
    with pytest.raises(SchemaError, match="format 2"):
        await open_store(f"file:{folder}")


HOSTILE_IDS = ["../../run", "/etc/run", "a/../../b", "..", ".", "CON", "run ", "~", "a" * 200, "é"]


async def test_no_id_becomes_a_name_of_a_file(
    tmp_path: Path, folder: Path, store: FileStore
) -> None:
    for run_id in HOSTILE_IDS:
        for view in (store, store.for_tenant("../acme")):
            await finish(view, run_id, session=SessionKey(run_id, 0))
    assert files_of(tmp_path)[0] == "runs"
    assert os.listdir(tmp_path) == ["runs"]
    names = {name for path in files_of(folder) for name in path.split("/")}
    allowed = re.compile(r"index|live|runs|sessions|log|[0-9a-f]{64}|[0-9a-f]{12}-[0-9a-f]{32}")
    assert [name for name in names if not allowed.fullmatch(name)] == []
    assert len(await store.list_runs()) == len(HOSTILE_IDS)


async def test_a_refused_opening_leaves_no_file(folder: Path, store: FileStore) -> None:
    await hold(store, "turn-0", session=SessionKey("s", 0))
    before = files_of(folder)
    with pytest.raises(SessionBusyError):
        await hold(store, "turn-1", session=SessionKey("s", 1))
    for read in (store.read_run("nobody"), store.read_steps("nobody"), store.delete("nobody")):
        await read
    assert files_of(folder) == before


async def test_of_a_deleted_run_nothing_is_on_the_disk(folder: Path, store: FileStore) -> None:
    await finish(store, "run", completed(0, "a secret"), row(1, "a secret"))
    assert b"a secret" in bytes_of(folder)
    await store.delete("run")
    assert b"a secret" not in bytes_of(folder)
    assert not log_of(folder).parent.exists()


async def test_of_expired_frames_nothing_is_on_the_disk(folder: Path, store: FileStore) -> None:
    await finish(store, "run", completed(0, "kept"), row(1, "a secret"))
    other = FileStore(folder)
    before = await snapshot(other, "run")
    await store.delete("run", frames_only=True)
    assert b"a secret" not in bytes_of(folder)
    after = await snapshot(other, "run")
    assert (after.frames, after.steps, after.details) == ([], before.steps, before.details)
    await other.close()
    again = FileStore(folder)
    assert await snapshot(again, "run") == after
    await again.close()


# Handles.


async def test_a_handle_that_is_dropped_ends_its_thread(folder: Path) -> None:
    before = set(threading.enumerate())
    store = FileStore(folder)
    await hold(store)
    (thread,) = set(threading.enumerate()) - before
    del store
    gc.collect()
    await asyncio.to_thread(thread.join, 20)
    assert not thread.is_alive()


async def test_a_handle_belongs_to_one_event_loop(store: FileStore) -> None:
    await hold(store)
    with pytest.raises(UsageError, match="one event loop"):
        await asyncio.to_thread(lambda: asyncio.run(_read(store)))


async def _read(store: FileStore) -> None:
    await store.read_run("run")


async def test_a_lease_is_renewed_while_the_loop_is_blocked(
    store: FileStore, clock: ManualClock
) -> None:
    lease = await hold(store)
    clock.advance(5_000)
    renewer = store.open_renewer()
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(renewer.renew([lease], LEASE_MS)))
    thread.start()
    thread.join(20)
    assert answers == [{lease: False}]
    run = await store.read_run("run")
    assert run is not None
    assert run.lease_expires_at == clock.iso(LEASE_MS)
    await store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        renewer.renew([lease], LEASE_MS)


async def test_a_write_of_another_handle_wakes_who_waits(folder: Path, store: FileStore) -> None:
    lease = await hold(store)
    other = FileStore(folder)
    assert await other.read_run("run")
    async with asyncio.timeout(20):
        await store.write(lease, completed(0))
        await other.wait_for_change("run", timeout_ms=60_000)
        waits = [
            asyncio.ensure_future(other.wait_for_change(run_id, timeout_ms=60_000))
            for run_id in ("another", None)
        ]
        await asyncio.sleep(0)
        while not all(wait.done() for wait in waits):
            await store.enqueue("another", manifest(), handler=HANDLER)
            await store.delete("another")
            await asyncio.sleep(0.005)
    await other.close()


# What a crash leaves behind.

CLOSED = b'{"closed":"run"'


async def test_a_session_that_died_with_its_first_turn_never_was(
    folder: Path, store: FileStore
) -> None:
    await hold(store, "turn-0", session=SessionKey("s", 0, 0, "ann"))
    await store.close()
    shutil.rmtree(log_of(folder, "turn-0").parent)
    again = FileStore(folder)
    await hold(again, "turn-1", session=SessionKey("s", 0, 0, "bob"))
    with pytest.raises(RunNotFoundError):
        await hold(again, "turn-2", session=SessionKey("s", 1, 0, "ann"))
    assert [run.run_id for run in await again.list_runs(session_id="s")] == ["turn-1"]
    await again.close()


async def test_a_run_that_a_crash_kept_from_being_closed_is_closed_by_a_sweep(
    folder: Path, store: FileStore
) -> None:
    lease = await hold(store)
    before = (folder / "index").read_bytes()
    await store.write(lease, ended())
    assert CLOSED in (folder / "index").read_bytes()
    await store.close()
    (folder / "index").write_bytes(before)
    again = FileStore(folder)
    assert [run.state for run in await again.list_runs()] == ["completed"]
    assert await again.claim_due([HANDLER], worker_id="w", lease_ms=1, limit=9) == []
    assert CLOSED in (folder / "index").read_bytes()[len(before) :]
    await again.close()


async def test_a_deletion_that_a_crash_cut_off_is_a_deletion(
    folder: Path, store: FileStore
) -> None:
    await finish(store, "run", completed(0, "a secret"))
    log = log_of(folder)
    with log.open("rb") as file:
        await store.delete("run")
        kept = file.read()
    log.parent.mkdir()
    log.write_bytes(kept)
    for handle in (store, FileStore(folder)):
        assert await handle.read_run("run") is None
        assert await handle.list_runs() == []
    assert not await store.delete("run")
    assert b"a secret" not in bytes_of(folder)
    log.parent.mkdir()
    log.write_bytes(kept)
    lease = await hold(store)
    assert lease.epoch == 1
    assert await store.read_steps("run") == []
    await handle.close()


async def test_the_index_is_written_anew_when_most_of_it_is_old(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perdure.store.fileindex, "LINES_SPARE", 10)
    other = FileStore(folder)
    await finish(store, "first")
    assert len(await other.list_runs()) == 1
    for _ in range(20):
        await finish(store, "again")
        await store.delete("again")
    await finish(store, "last")
    assert [run.run_id for run in await other.list_runs()] == ["first", "last"]
    assert (folder / "index").read_bytes().count(b"\n") < 20
    await finish(other, "more")
    assert len(await store.list_runs()) == 3
    await other.close()


async def test_what_memory_let_go_is_read_again(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perdure.store.fileruns, "CACHE_BYTES", 0)
    leases: list[Lease] = [await hold(store, f"run-{number}") for number in range(5)]
    for position in range(3):
        for lease in leases:
            await store.write(lease, completed(position, position))
    await store.write(leases[0], delivery(0), ended())
    (claimed,) = await store.claim_deliveries([HANDLER], limit=9)
    assert claimed.run_id == "run-0"
    assert len(await store.list_runs(state="running")) == 4
    assert len(await store.read_steps("run-3")) == 3


# Flushes, and damage.


@pytest.mark.parametrize(("durability", "for_a_step"), [("full", 1), ("normal", 0)])
async def test_what_is_acknowledged_was_flushed(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    durability: Literal["full", "normal"],
    for_a_step: int,
) -> None:
    flushed: list[str] = []

    def noting(sync: Callable[[int], None], file: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{file}"))
        sync(file)

    for name in ("fdatasync", "fsync"):
        monkeypatch.setattr(os, name, partial(noting, getattr(os, name)))
    store = FileStore(folder, durability=durability)
    lease = await hold(store)
    assert str(folder / "index") in flushed
    of_run = [str(log_of(folder)), str(log_of(folder).parent), str(folder / "runs")]
    assert [path for path in flushed if path in of_run] == of_run * for_a_step
    flushed.clear()
    await store.write(lease, completed(0), row(1, "x"))
    assert flushed == [str(log_of(folder))] * for_a_step
    await store.renew([lease], LEASE_MS)
    assert len(flushed) == for_a_step
    await store.close()


async def test_a_failed_flush_ends_the_handle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(folder)
    lease = await hold(store)

    def fail(_file: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreUnavailableError, match="could not flush"):
            await store.write(lease, completed(0))
    for call in (store.write(lease, completed(0)), store.read_run("run")):
        with pytest.raises(StoreUnavailableError, match="open another handle"):
            await call
    await store.close()
    again = FileStore(folder)
    await again.write(lease, completed(0))
    await again.close()


async def test_a_header_that_is_none_is_damage(folder: Path, store: FileStore) -> None:
    await hold(store)
    await store.close()
    log_of(folder).write_bytes(b"no log at all, but as long as the header of one would be")
    again = FileStore(folder)
    with pytest.raises(StoreCorruptError, match="does not begin") as caught:
        await again.read_run("run")
    assert str(log_of(folder)) in str(caught.value)
    await again.close()
