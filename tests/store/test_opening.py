"""Opening a store by its address."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from perdure.errors import UsageError
from perdure.store.memory import MemoryStore
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore, ThreadRenewal
from perdure.store.sql.store import SqlStore
from perdure.testing.clock import ManualClock
from perdure.testing.samples import hold, manifest


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.db"))


async def use(store: RunStore) -> None:
    assert isinstance(store, ThreadRenewal)
    await hold(store)
    await store.close()


@pytest.mark.parametrize("url", ["memory:", "memory://"])
async def test_memory_is_a_store_that_forgets(url: str) -> None:
    store = await open_store(url)
    assert isinstance(store, MemoryStore)
    await use(store)
    again = await open_store(url)
    assert await again.read_run("run") is None
    await again.close()


@pytest.mark.parametrize("form", ["sqlite:runs.db", "sqlite:///runs.db", "sqlite:./runs.db"])
async def test_a_relative_path_is_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    store = await open_store(form)
    assert isinstance(store, SqlStore)
    monkeypatch.chdir("/")
    await use(store)
    assert files(tmp_path) == ["runs.db"]


@pytest.mark.parametrize("form", ["sqlite:{}", "sqlite:///{}"])
async def test_an_absolute_path_is_absolute(tmp_path: Path, form: str) -> None:
    await use(await open_store(form.format(tmp_path / "runs #1 100%.db")))
    assert files(tmp_path) == ["runs #1 100%.db"]
    again = await open_store(form.format(tmp_path / "runs #1 100%.db"))
    assert await again.read_run("run") is not None
    await again.close()


@pytest.mark.parametrize(
    "url",
    ["", "runs.db", "/runs.db", "mysql://host/db", "sqlite3:runs.db", "memory", "MEMORY:x"],
)
async def test_an_unknown_address_names_the_known_ones(url: str) -> None:
    with pytest.raises(UsageError, match=r"memory:.*sqlite:PATH"):
        await open_store(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:", "not a file"),
        ("sqlite::memory:", "not a file"),
        ("sqlite://host/runs.db", "names the host 'host'"),
        ("sqlite://runs.db", "sqlite:///PATH"),
        ("sqlite:runs.db?mode=ro", "query"),
        ("sqlite:/no/such/folder/runs.db", "does not exist"),
    ],
)
async def test_an_address_that_is_no_file_says_why(url: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        await open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:hunter2@db/shop",
        "postgresql+asyncpg://me:p/a@hunter2@db/shop",
        "bogus:runs?password=hunter2",
        "sqlite://me:hunter2@db/shop",
        "sqlite:runs.db?key=hunter2",
    ],
)
async def test_a_refused_address_keeps_its_password(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        await open_store(url)
    assert "hunter2" not in str(refused.value)
    assert url.partition(":")[0] in str(refused.value)


async def test_an_unknown_durability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="durability"):
        await open_store(f"sqlite:{tmp_path}/runs.db", durability=cast(Any, "most"))
    assert files(tmp_path) == []


def test_a_store_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys, threading\n"
        "from perdure.store.opening import open_store\n"
        "async def main():\n"
        "    try:\n"
        "        await open_store('sqlite:' + sys.argv[1])\n"
        "    except Exception as error:\n"
        "        sys.stdout.write(type(error).__name__)\n"
        "    names = [thread.name for thread in threading.enumerate()]\n"
        "    sys.stdout.write(str(any('perdure' in name for name in names)))\n"
        "asyncio.run(main())\n"
    )
    (tmp_path / "runs.db").write_bytes(b"no database" * 1_000)
    command = [sys.executable, "-c", script, str(tmp_path / "runs.db")]
    assert subprocess.check_output(command, text=True) == "StoreCorruptErrorFalse"


@pytest.mark.parametrize("scheme", ["memory:", "sqlite:{}"])
async def test_clock_and_code_version_reach_the_store(tmp_path: Path, scheme: str) -> None:
    clock = ManualClock()
    url = scheme.format(tmp_path / "runs.db")
    store = await open_store(url, clock=clock, code_version="2026.1")
    claim = await store.start_or_resume("run", manifest(), worker_id="ann")
    assert claim.run.created_at == clock.iso()
    (attempt,) = (await store.read_details("run")).attempts
    assert attempt.code_version == "2026.1"
    await store.close()


async def test_the_durability_is_that_of_the_file(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:{tmp_path}/runs.db", durability="normal")
    await use(store)
    connection = sqlite3.connect(tmp_path / "runs.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_memory_needs_no_database_driver() -> None:
    script = (
        "import asyncio, sys\n"
        "from perdure.store.opening import open_store\n"
        "asyncio.run(open_store('memory:'))\n"
        "sys.stdout.write(str('sqlite3' in sys.modules))\n"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "False"
