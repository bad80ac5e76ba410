"""Live leases of the dead: taken at once, by name and by sweep, from nobody who lives."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from perdure.core.changes import Release
from perdure.core.identity import manifest_hash
from perdure.core.limits import LEASE_MS
from perdure.core.records import AttemptRecord, Claim
from perdure.core.transitions import lease_is_live
from perdure.errors import LeaseHeldError, LeaseLostError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.store.sql.database import Statement
from perdure.store.sql.sqlite import Sqlite
from perdure.store.sql.store import SqlStore
from perdure.testing.clock import ManualClock
from perdure.testing.samples import HANDLER, completed, ended, finish, hold, manifest
from tests.store.lock_children import start
from tests.store.sql.processes import next_line, output


class Place:
    """Where a store is: its address, and the folder of its locks."""

    def __init__(self, url: str, locks: Path) -> None:
        self.url = url
        self.locks = locks
        self._children: list[subprocess.Popen[str]] = []

    def begin(self, *run_ids: str) -> subprocess.Popen[str]:
        """Return a process that holds runs."""
        child = start("hold_run", self.url, *run_ids)
        self._children.append(child)
        assert next_line(child) == "ready"
        return child

    def end(self) -> None:
        for child in self._children:
            child.kill()
            child.communicate()


@pytest.fixture(params=["sqlite", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if cast(str, request.param) == "sqlite":
        place = Place(f"sqlite:{tmp_path / 'runs.db'}", tmp_path / "runs.db-live")
    else:
        place = Place(f"file:{tmp_path / 'runs'}", tmp_path / "runs" / "live")
    yield place
    place.end()


@pytest.fixture
async def store(place: Place) -> AsyncIterator[RunStore]:
    store = await open_store(place.url)
    yield store
    await store.close()


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait(60)


def pause(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)


async def sweep(store: RunStore, limit: int = 9) -> Sequence[Claim]:
    return await store.claim_due([HANDLER], worker_id="bob", lease_ms=LEASE_MS, limit=limit)


async def attempts_of(store: RunStore, run_id: str = "run") -> Sequence[AttemptRecord]:
    return (await store.read_details(run_id)).attempts


async def test_a_killed_holder_loses_his_run_to_whoever_asks_for_it(
    place: Place, store: RunStore
) -> None:
    child = place.begin("run")
    with pytest.raises(LeaseHeldError):
        await hold(store, worker_id="bob")
    kill(child)
    claim = await store.start_or_resume("run", manifest(), worker_id="bob")
    assert claim.lease is not None
    assert (claim.lease.epoch, claim.run.strikes) == (2, 1), "it was not given back"
    assert [step.result for step in claim.steps] == ["done"]
    await store.write(claim.lease, completed(1), ended())
    assert [attempt.ended for attempt in await attempts_of(store)] == ["lost", "completed"]


async def test_a_killed_holder_loses_his_runs_to_the_first_sweep(place: Place) -> None:
    child = place.begin("one", "two", "three")
    kill(child)
    store = await open_store(place.url)
    before = await store.read_run("one")
    assert before is not None
    claims = await sweep(store)
    assert sorted(claim.run.run_id for claim in claims) == ["one", "three", "two"]
    assert {claim.run.strikes for claim in claims} == {1}
    assert all(lease_is_live(before, claim.run.updated_at) for claim in claims)
    assert await sweep(store) == []
    await store.close()


async def test_a_sweep_of_the_dead_keeps_its_limit_and_its_handlers(place: Place) -> None:
    child = place.begin("one", "two", "three", "numbers:four")
    kill(child)
    store = await open_store(place.url)
    claims = [claim for _ in range(3) for claim in await sweep(store, limit=2)]
    assert {claim.run.run_id for claim in claims} == {"one", "two", "three"}
    (other,) = await store.claim_due(["numbers"], worker_id="bob", lease_ms=LEASE_MS, limit=9)
    assert other.run.run_id == "numbers:four"
    await store.close()


async def test_those_who_sweep_for_other_handlers_see_their_own_dead(place: Place) -> None:
    for run_id in ("one", "numbers:two", "one-more"):
        kill(place.begin(run_id))
    store = await open_store(place.url)
    found = [
        await store.claim_due([handler], worker_id="bob", lease_ms=LEASE_MS, limit=9)
        for handler in (HANDLER, "numbers")
    ]
    assert [len(claims) for claims in found] == [2, 1]
    await store.close()


async def test_a_process_that_lives_on_finds_the_death_of_another(
    place: Place, store: RunStore
) -> None:
    child = place.begin("run")
    assert await sweep(store) == []
    kill(child)
    for _ in range(500):
        if await sweep(store):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the dead is not found")


@pytest.mark.parametrize("stopped", [False, True])
async def test_nobody_who_lives_is_robbed(place: Place, store: RunStore, stopped: bool) -> None:
    child = place.begin("run")
    if stopped:
        pause(child)
    assert await sweep(store) == []
    with pytest.raises(LeaseHeldError):
        await hold(store, worker_id="bob")


async def test_a_lease_of_a_process_that_closed_its_store_has_to_lapse(
    place: Place, store: RunStore
) -> None:
    output(place.begin("run"))
    assert await sweep(store) == []
    with pytest.raises(LeaseHeldError):
        await hold(store, worker_id="bob")


async def test_two_handles_of_one_process_leave_each_other_alone(
    place: Place, store: RunStore
) -> None:
    lease = await hold(store, worker_id="ann")
    other = await open_store(place.url)
    await hold(other, "own")
    for handle, run_id in ((other, "run"), (store, "own")):
        assert await sweep(handle) == []
        with pytest.raises(LeaseHeldError):
            await hold(handle, run_id, worker_id="ann")
    locks = {(await attempts_of(store, run_id))[0].liveness for run_id in ("run", "own")}
    assert locks == set(os.listdir(place.locks))
    assert len(locks) == 2
    await other.close()
    await store.write(lease, completed(1))


async def test_of_many_who_find_the_dead_at_once_one_gets_the_run(place: Place) -> None:
    kill(place.begin("run"))
    stores = [await open_store(place.url) for _ in range(4)]
    calls = [sweep(store) for store in stores[:2]]
    claimed = [hold(store, worker_id=f"w{number}") for number, store in enumerate(stores)]
    answers = await asyncio.gather(*calls, *claimed, return_exceptions=True)
    got = [answer for answer in answers if answer and not isinstance(answer, BaseException)]
    assert len(got) == 1, answers
    lost = [answer for answer in answers if isinstance(answer, BaseException)]
    assert {type(answer) for answer in lost} <= {LeaseHeldError}
    run = await stores[0].read_run("run")
    assert run is not None
    assert (run.epoch, run.strikes) == (2, 1)
    for store in stores:
        await store.close()


async def test_a_run_that_was_taken_is_not_free_because_an_earlier_holder_is_dead(
    place: Place, store: RunStore
) -> None:
    kill(place.begin("run"))
    await hold(store, worker_id="ann")
    other = await open_store(place.url)
    assert await sweep(other) == []
    with pytest.raises(LeaseHeldError):
        await hold(other, worker_id="ann")
    await other.close()


async def test_what_was_given_back_costs_no_strike_though_the_process_is_dead(
    place: Place, store: RunStore
) -> None:
    lease = await hold(store)
    await store.write(lease, Release())
    kill(place.begin("run"))
    (claim,) = await sweep(store)
    assert claim.run.strikes == 1
    assert claim.lease is not None
    await store.write(claim.lease, Release())
    assert (await sweep(store))[0].run.strikes == 1


async def test_whoever_was_robbed_by_mistake_writes_nothing(place: Place, store: RunStore) -> None:
    lease = await hold(store)
    (lock,) = os.listdir(place.locks)
    # As a lock would look whose file was replaced by a copy of it.
    (place.locks / lock).unlink()
    (place.locks / lock).touch()
    output(start("claim_run", place.url))
    with pytest.raises(LeaseLostError):
        await store.write(lease, completed(1))
    assert len(await attempts_of(store)) == 2


async def test_a_handle_that_only_reads_takes_no_lock(place: Place, store: RunStore) -> None:
    await finish(store, "run")
    other = await open_store(place.url)
    assert (await other.start_or_resume("run", manifest(), worker_id="bob")).lease is None
    await other.read_steps("run")
    assert len(os.listdir(place.locks)) == 1
    await other.close()
    await store.close()
    assert not place.locks.exists()


async def test_without_a_lock_the_lease_has_to_lapse(place: Place, store: RunStore) -> None:
    await store.read_run("run")
    place.locks.write_text("in the way")
    child = place.begin("run")
    assert [attempt.liveness for attempt in await attempts_of(store)] == [None]
    kill(child)
    assert await sweep(store) == []
    with pytest.raises(LeaseHeldError):
        await hold(store, worker_id="bob")


async def test_a_typescript_worker_that_took_over_is_not_taken_for_our_dead_one(
    tmp_path: Path,
) -> None:
    place = Place(f"sqlite:{tmp_path / 'runs.db'}", tmp_path / "runs.db-live")
    kill(place.begin("run"))
    with closing(sqlite3.connect(tmp_path / "runs.db", isolation_level=None)) as connection:
        connection.execute("UPDATE durable_runs SET lease_holder_id = 'ts:1'")
    store = await open_store(place.url)
    assert await sweep(store) == []
    with pytest.raises(LeaseHeldError):
        await hold(store, worker_id="bob")
    await store.close()
    place.end()


@pytest.mark.parametrize(
    ("change", "is_free"),
    [
        ("SELECT 1", True),
        ("UPDATE durable_runs SET lease_holder_id = 'ts:1'", False),
        ("UPDATE durable_runs SET epoch = 2", False),
        ("UPDATE perdure_attempts SET liveness = 'another'", False),
        ("UPDATE perdure_attempts SET liveness = NULL", False),
    ],
)
async def test_the_claim_itself_sees_whether_the_dead_still_holds_the_run(
    tmp_path: Path, change: str, is_free: bool
) -> None:
    database = Sqlite(tmp_path / "runs.db")
    store = SqlStore(database)
    await hold(store)
    (attempt,) = await attempts_of(store)
    with closing(sqlite3.connect(tmp_path / "runs.db", isolation_level=None)) as connection:
        connection.execute(change)
    claim = ("run", manifest_hash(manifest()), "bob", LEASE_MS, "t", 0, None, None, None, None)
    (rows,) = await database.run([Statement("take_run", (*claim, f'[["{attempt.liveness}"]]'))])
    assert bool(rows) is is_free
    await store.close()


async def test_memory_has_no_locks() -> None:
    store = await open_store("memory:", clock=ManualClock())
    await hold(store)
    assert [attempt.liveness for attempt in await attempts_of(store)] == [None]
    await store.close()
