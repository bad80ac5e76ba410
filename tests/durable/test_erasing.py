"""Erasing: in flight or not, by one or by many, and to the last byte of a database."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from pathlib import Path

import pytest

from perdure.core.changes import CompleteStep, SaveHandle, Suspend
from perdure.core.records import RunRecord, SessionKey
from perdure.durable import erasing
from perdure.durable.erasing import Erased, erase_session, erase_user, stop_for_good
from perdure.errors import RunNotFoundError, SessionBusyError, UsageError
from perdure.store.erasure import erasure_of
from perdure.store.memory import MemoryStore
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.samples import HANDLER, completed, ended, finish, hold, manifest, row


def turn(session: str, index: int = 0, owner: str = "olga") -> SessionKey:
    return SessionKey(session, index, 0, owner)


async def never(run: RunRecord) -> None:
    raise AssertionError(f"{run.run_id} should not be stopped")


async def test_a_session_at_rest_goes_without_a_stop() -> None:
    store = MemoryStore()
    await finish(store, "a", completed(0), session=turn("s"))
    await finish(store, "b", completed(0), session=turn("s", 1))
    assert await erase_session(store, "s", owner_id="olga", stop=never) == Erased(1, 2)
    with pytest.raises(RunNotFoundError, match="'s'"):
        await erase_session(store, "s", stop=never)


async def test_a_turn_in_flight_is_stopped_and_one_in_line_is_not_begun() -> None:
    store = MemoryStore()
    lease = await hold(store, "live", session=turn("s"))
    await store.enqueue("next", manifest(), handler=HANDLER, session=turn("s", 1))
    with pytest.raises(SessionBusyError, match="in flight or queued"):
        await erase_session(store, "s")
    stopped: list[str] = []

    async def stop(run: RunRecord) -> None:
        stopped.append(run.run_id)
        await store.write(lease, ended("stopped"))

    assert await erase_session(store, "s", stop=stop) == Erased(1, 2)
    assert stopped == ["live"]
    assert list(await store.list_runs()) == []


async def test_whoever_works_elsewhere_is_waited_for() -> None:
    store = MemoryStore()
    lease = await hold(store, "live", session=turn("s"))
    asked = asyncio.Event()

    async def ask(run: RunRecord) -> None:
        await store.request_stop(run.run_id)
        asked.set()

    erased = asyncio.create_task(erase_session(store, "s", stop=ask))
    await asked.wait()
    await asyncio.sleep(0)
    assert not erased.done()
    await store.write(lease, ended("stopped"))
    assert await erased == Erased(1, 1)


async def test_a_turn_that_nobody_stops_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(erasing, "STOP_WAIT_MS", 1)
    monkeypatch.setattr(erasing, "POLL_MS", 5)
    store = MemoryStore()
    await hold(store, "live", session=turn("s"))

    async def ask(run: RunRecord) -> RunRecord:
        return await store.request_stop(run.run_id)

    with pytest.raises(SessionBusyError):
        await erase_session(store, "s", stop=ask)
    assert await store.read_run("live") is not None


async def test_a_turn_without_an_engine_is_stopped_unless_somebody_works_on_it() -> None:
    store = MemoryStore()
    lease = await hold(store, "live", session=turn("s"))
    live = await store.read_run("live")
    assert live is not None
    await stop_for_good(store, live)
    marked = await store.read_run("live")
    assert marked is not None
    assert (marked.state, marked.stop_requested_at is None) == ("running", False)
    await store.write(lease, Suspend("sleeping", wake_in_ms=1_000_000))
    await stop_for_good(store, live)
    stopped = await store.read_run("live")
    assert stopped is not None
    assert stopped.state == "stopped"
    await stop_for_good(store, stopped)


async def test_a_user_with_many_sessions_loses_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasing, "_PAGE", 3)
    store = MemoryStore()
    for number in range(10):
        await finish(store, f"run-{number}", session=turn(f"s-{number}"))
    await finish(store, "eve's", session=turn("other", owner="eve"))
    assert await erase_user(store, "olga") == Erased(10, 10)
    assert await erase_user(store, "olga") == Erased(0, 0)
    assert [run.run_id for run in await store.list_runs()] == ["eve's"]


async def test_a_user_is_kept_whole_while_one_of_his_turns_goes_on() -> None:
    store = MemoryStore()
    await finish(store, "over", session=turn("a"))
    lease = await hold(store, "live", session=turn("b"))
    with pytest.raises(SessionBusyError, match="'b'"):
        await erase_user(store, "olga")
    assert await store.read_run("over") is not None
    await store.write(lease, ended())
    assert await erase_user(store, "olga") == Erased(2, 2)


async def test_two_who_erase_the_same_share_the_work() -> None:
    store = MemoryStore()
    for number in range(20):
        await finish(store, f"run-{number}", session=turn(f"s-{number}"))
    both = await asyncio.gather(erase_user(store, "olga"), erase_user(store, "olga"))
    assert sum(erased.sessions for erased in both) == 20
    assert list(await store.list_runs()) == []


async def test_nobody_is_no_user() -> None:
    with pytest.raises(UsageError, match="named"):
        await erase_user(MemoryStore(), "")


async def record(store: RunStore, chance: random.Random, number: int, mark: str) -> None:
    """Record a turn with values of all sizes, in one write or in two."""
    run_id = f"{mark}-{number}"
    session = SessionKey(f"{mark}-{chance.randrange(20)}", number, 0, f"user-{mark}")
    lease = await hold(store, run_id, session=session)
    sizes = [chance.choice([1, 5, 50, 400]) for _ in range(chance.randrange(1, 6))]
    changes = [
        CompleteStep(at, f"step-{at}", json.dumps(mark * size)) for at, size in enumerate(sizes)
    ]
    await store.emit_event(run_id, f"key-{mark}", mark * chance.choice([1, 100]))
    cut = chance.randrange(len(changes) + 1)
    await store.write(lease, *changes[:cut], SaveHandle(json.dumps(mark * sizes[0])))
    deltas = [mark * size for size in sizes]
    await store.write(lease, *changes[cut:], row(1, *deltas), ended())


def files_with(folder: Path, mark: bytes) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if mark in path.read_bytes()]


async def test_no_byte_of_a_database_that_was_scrubbed_has_what_was_erased(tmp_path: Path) -> None:
    # With this history the unused room of pages still has some of it before the scrub.
    chance = random.Random(1)
    store = await open_store(f"sqlite:{tmp_path / 'runs.db'}", durability="normal")
    for number in range(1_000):
        await record(store, chance, number, chance.choice(["canary", "others"]))
    kept = len(await store.list_runs(limit=1_000))
    erased = await erase_user(store, "user-canary")
    assert erased.turns > 100
    assert (tmp_path / "runs.db-wal").stat().st_size == 0
    await erasure_of(store).scrub(whole=True)
    assert not files_with(tmp_path, b"canary")
    assert len(await store.list_runs(limit=1_000)) == kept - erased.turns
    assert files_with(tmp_path, b"others")
    await store.close()


async def test_a_log_that_somebody_still_reads_is_emptied_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("perdure.store.sql.sqlite_connection.SCRUB_MS", 20)
    store = await open_store(f"sqlite:{tmp_path / 'runs.db'}", durability="normal")
    await finish(store, "run", session=turn("s"))
    reader = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM durable_runs").fetchone()
    assert await erase_session(store, "s") == Erased(1, 1)
    assert "stays in the log" in caplog.text
    reader.close()
    await erasure_of(store).scrub()
    assert (tmp_path / "runs.db-wal").stat().st_size == 0
    await store.close()
