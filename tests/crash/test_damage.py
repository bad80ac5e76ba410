"""Stores whose files a disk has changed, cut short or locked: an error of ours, and no hang."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from perdure.errors import PerdureError, StoreCorruptError
from perdure.store.opening import open_store
from perdure.testing.samples import HANDLER, completed, delivery, ended, hold, manifest, row
from tests.store.file_folders import drop_privilege, files_of, read_only

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
FLIPS, FLIPS_MANY = 40, 1_000
STEPS = 4


async def made(scheme: str, folder: Path) -> Path:
    """Make a store with runs of several kinds in a folder of its own."""
    place = folder / "whole"
    place.mkdir()
    store = await open_store(f"{scheme}:{place / 'store'}", durability="normal")
    for number in range(3):
        lease = await hold(store, f"run-{number}")
        for position in range(STEPS):
            step = completed(position, {"said": "x" * 300})
            await store.write(lease, step, row(position + 1, "y" * 100))
        await store.emit_event(f"run-{number}", "fact", {"known": True})
        if number == 0:
            await store.write(lease, delivery(0), ended())
    await store.enqueue("queued", manifest(), handler=HANDLER)
    await store.close()
    return place


async def use(url: str) -> Counter[str]:
    """Do what a service does; count what comes of it. Only errors of ours may be raised."""
    came: Counter[str] = Counter()
    try:
        store = await open_store(url, durability="normal")
    except PerdureError as error:
        return Counter([type(error).__name__])
    calls: list[Callable[[], Awaitable[object]]] = [
        partial(store.list_runs, with_answer=True),
        partial(store.claim_due, [HANDLER], worker_id="w", lease_ms=60_000, limit=9),
        partial(store.claim_deliveries, [HANDLER], limit=9),
        partial(hold, store, "new"),
    ]
    for run_id in ("run-0", "run-1", "run-2"):
        reads = (store.read_run, store.read_steps, store.read_frames, store.read_details)
        calls.extend(partial(read, run_id) for read in reads)
        calls.append(partial(store.load_event, run_id, "fact"))
    for call in calls:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await call()
        except PerdureError as error:
            came[type(error).__name__] += 1
        else:
            came["answered"] += 1
    await store.close()
    return came


def size_of(path: Path) -> int:
    """Return how many bytes may be changed."""
    return path.stat().st_size if path.is_file() else 0


async def flip_many(scheme: str, folder: Path, *, flips: int, seed: int) -> Counter[str]:
    dice, came = random.Random(seed), Counter[str]()
    whole = await made(scheme, folder)
    names = [name for name in files_of(whole) if size_of(whole / name)]
    for number in range(flips):
        place = folder / "damaged"
        shutil.copytree(whole, place)
        damaged = place / dice.choice(names)
        data = bytearray(damaged.read_bytes())
        at = dice.randrange(len(data))
        if dice.random() < 0.2:
            del data[at:]
        else:
            data[at : at + dice.choice([1, 1, 8, 512])] = dice.randbytes(1)
        damaged.write_bytes(data)
        try:
            came += await use(f"{scheme}:{place / 'store'}")
        except BaseException as error:
            error.add_note(f"seed {seed}, number {number}: {damaged.name} at {at}")
            raise
        shutil.rmtree(place)
    return came


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_a_disk_that_changes_bytes_raises_errors_of_ours(tmp_path: Path, scheme: str) -> None:
    came = await flip_many(scheme, tmp_path, flips=FLIPS, seed=random.randrange(2**32))
    assert came["answered"] > 0


async def test_a_damaged_schema_that_is_no_text_is_damage(tmp_path: Path) -> None:
    place = await made("sqlite", tmp_path)
    whole = (place / "store").read_bytes()
    # SQLite quotes what it does not understand, whatever bytes these are.
    damaged = whole.replace(b"CREATE TABLE durable_runs", b"CREATE TABL\xf0 durable_runs")
    assert damaged != whole
    (place / "store").write_bytes(damaged)
    with pytest.raises(StoreCorruptError, match="UTF-8"):
        await open_store(f"sqlite:{place / 'store'}")


@pytest.mark.campaign
@pytest.mark.parametrize("scheme", ["sqlite", "file"])
@pytest.mark.parametrize("seed", range(6))
async def test_a_disk_that_changes_bytes_raises_errors_of_ours_thousands_of_times(
    tmp_path: Path, scheme: str, seed: int, record_property: Callable[[str, object], None]
) -> None:
    came = await flip_many(scheme, tmp_path, flips=FLIPS_MANY, seed=seed)
    record_property("came", dict(came))
    assert came[StoreCorruptError.__name__] > 0


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_a_store_that_cannot_be_written_says_so(tmp_path: Path, scheme: str) -> None:
    place = await made(scheme, tmp_path)
    command = [sys.executable, "-m", "tests.crash.damage_process", f"{scheme}:{place / 'store'}"]
    with read_only(place):
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
            preexec_fn=drop_privilege,
        )
    assert done.stdout.startswith("StoreUnavailableError: "), done.stdout
    assert str(place / "store") in done.stdout
