"""What the SQL store adds to the contract: how often it commits, and its heartbeat thread."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from perdure.core.changes import Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease, SessionKey
from perdure.errors import DivergenceError, LeaseLostError, StoreUnavailableError
from perdure.store.sql.sqlite import Sqlite
from perdure.store.sql.sqlite_connection import PAGE_BYTES
from perdure.store.sql.store import SqlStore
from perdure.testing.clock import ManualClock
from perdure.testing.lab import read
from perdure.testing.samples import (
    HANDLER,
    begun,
    completed,
    delivery,
    ended,
    finish,
    hold,
    manifest,
    restart_row,
    row,
    text_of,
)

FRAME_HEAD = 24
"""What SQLite's log notes before each page."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def database(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Sqlite]:
    database = Sqlite(tmp_path / "runs.db", clock=clock)
    yield database
    await database.close()


@pytest.fixture
def store(database: Sqlite) -> SqlStore:
    return SqlStore(database)


async def test_a_store_opens_its_database_with_the_first_call(store: SqlStore) -> None:
    assert await store.read_run("run") is None
    await hold(store)


async def test_a_claim_and_a_write_cost_one_commit_each(store: SqlStore, database: Sqlite) -> None:
    await store.read_run("run")
    before = database.commits
    lease = await hold(store, session=SessionKey("s", 0))
    assert database.commits == before + 1
    await store.write(lease, begun(0), completed(0), row(1, "x"), delivery(0), ended())
    assert database.commits == before + 2


async def test_a_finished_run_is_replayed_without_a_commit(
    store: SqlStore, database: Sqlite
) -> None:
    await finish(store, "run", completed(0))
    before = database.commits
    calls = (store.start_or_resume("run", manifest(), worker_id=f"reader-{n}") for n in range(50))
    claims = await asyncio.gather(*calls)
    assert {claim.lease for claim in claims} == {None}
    assert all(claim.steps[0].result == "done" for claim in claims)
    assert await store.claim_due([HANDLER], worker_id="bob", lease_ms=1, limit=9) == []
    assert await store.claim_deliveries([HANDLER], limit=9) == []
    assert database.commits == before


async def test_steps_of_many_runs_share_commits(store: SqlStore, database: Sqlite) -> None:
    leases = await asyncio.gather(*(hold(store, f"run-{number}") for number in range(200)))
    before = database.commits
    await asyncio.gather(*(store.write(lease, completed(0)) for lease in leases))
    assert database.commits - before <= 20


def stored_rows(database: Sqlite) -> list[tuple[int, int, int]]:
    """Return first seq, last seq and epoch of every row of frames."""
    with closing(sqlite3.connect(database.path)) as connection:
        asked = "SELECT first_seq, last_seq, epoch FROM perdure_frames ORDER BY run_id, first_seq"
        return connection.execute(asked).fetchall()


def log_pages(database: Sqlite) -> int:
    """Return how many pages the log has, if it has not begun anew."""
    return Path(f"{database.path}-wal").stat().st_size // (FRAME_HEAD + PAGE_BYTES)


async def test_a_token_is_written_with_one_page_and_now_and_then_another(
    store: SqlStore, database: Sqlite, clock: ManualClock
) -> None:
    lease = await hold(store, session=SessionKey("s", 0))
    await store.write(lease, row(1, "tok"))
    before, commits = log_pages(database), database.commits
    for number in range(2, 202):
        clock.advance(5)
        await store.write(lease, row(number, f"tok{number:03d}"))
    assert database.commits - commits == 200
    assert log_pages(database) - before < 1.5 * 200
    assert text_of(await store.read_frames("run")) == "tok" + "".join(
        f"tok{number:03d}" for number in range(2, 202)
    )


async def test_short_rows_join_the_one_before_until_that_is_full(
    store: SqlStore, database: Sqlite
) -> None:
    lease = await hold(store)
    for number in range(1, 41):
        await store.write(lease, row(number, "x" * 50))
    rows = stored_rows(database)
    assert 2 <= len(rows) <= 4
    assert [first for first, _, _ in rows[1:]] == [last + 1 for _, last, _ in rows[:-1]]
    await store.write(lease, row(41, "y" * 1_000))
    await store.write(lease, row(42, "z"))
    assert stored_rows(database)[-1][:2] == (41, 42)


async def test_rows_of_another_attempt_and_those_of_one_write_do_not_join(
    store: SqlStore, database: Sqlite, clock: ManualClock
) -> None:
    await store.write(await hold(store), row(1, "a"))
    clock.advance(LEASE_MS)
    lease = await hold(store, worker_id="bob")
    await store.write(lease, row(2, "b"))
    await store.write(lease, row(3, "c"), row(4, "d"))
    await store.write(lease, restart_row(5, "e"))
    assert stored_rows(database) == [(1, 1, 1), (2, 2, 2), (3, 3, 2), (4, 4, 2), (5, 6, 2)]


async def test_frames_alone_note_the_second_at_their_run_and_other_writes_the_moment(
    store: SqlStore, clock: ManualClock
) -> None:
    lease = await hold(store)
    begin = clock.iso()
    clock.advance(300)
    await store.write(lease, row(1, "a"))
    assert (await read(store, "run")).updated_at == begin
    await store.request_stop("run")
    clock.advance(300)
    assert (await store.write(lease, row(2, "b"))).stop_requested
    assert (await read(store, "run")).updated_at == begin
    clock.advance(1_000)
    await store.write(lease, row(3, "c"))
    assert (await read(store, "run")).updated_at == clock.iso()
    clock.advance(1)
    await store.write(lease)
    assert (await read(store, "run")).updated_at == clock.iso()


async def test_a_divergence_among_many_writes_undoes_its_own_write_alone(
    store: SqlStore,
) -> None:
    leases = await asyncio.gather(*(hold(store, f"run-{number}") for number in range(50)))
    await store.write(leases[7], completed(0))
    diverging = completed(0)._replace(intent="another")
    writes = [store.write(lease, row(1, "x"), completed(0)) for lease in leases]
    writes[7].close()
    writes[7] = store.write(leases[7], row(1, "x"), diverging)
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert [number for number, answer in enumerate(answers) if isinstance(answer, Exception)] == [7]
    assert isinstance(answers[7], DivergenceError)
    assert await store.read_frames("run-7") == []
    assert len(await store.read_frames("run-8")) == 1


async def test_a_run_that_is_to_be_stopped_does_not_fall_asleep(
    store: SqlStore, clock: ManualClock
) -> None:
    lease = await hold(store)
    await store.request_stop("run")
    written = await store.write(lease, Suspend("sleeping", wake_in_ms=3_600_000))
    assert written.stop_requested
    assert written.wake_at == clock.iso()
    (claim,) = await store.claim_due([HANDLER], worker_id="bob", lease_ms=1_000, limit=1)
    assert claim.run.stop_requested_at == clock.iso()


async def test_a_thread_renews_leases_while_the_loop_is_blocked(
    store: SqlStore, clock: ManualClock
) -> None:
    lease, lost = await hold(store, "run"), await hold(store, "lost")
    await store.request_stop("run")
    await store.write(lost, ended())
    clock.advance(10_000)
    renewer = store.open_renewer()
    answers: list[dict[Lease, bool]] = []
    thread = threading.Thread(
        target=lambda: answers.append(dict(renewer.renew([lease, lost], 15_000)))
    )
    thread.start()
    # The loop does nothing else until the thread has its answer.
    thread.join()
    assert answers == [{lease: True}]
    assert renewer.renew([], 15_000) == {}
    renewer.close()
    run = await store.read_run("run")
    assert run is not None
    assert run.lease_expires_at == clock.iso(15_000)
    assert run.updated_at == clock.iso(-10_000)


async def test_many_leases_are_renewed_in_one_commit(store: SqlStore, database: Sqlite) -> None:
    leases = await asyncio.gather(*(hold(store, f"run-{number}") for number in range(300)))
    before = database.commits
    assert await store.renew(leases, 15_000) == dict.fromkeys(leases, False)
    assert database.commits == before + 1


async def test_a_lost_lease_stays_lost_beside_the_one_that_followed(
    store: SqlStore, clock: ManualClock
) -> None:
    lost = await hold(store)
    clock.advance(15_000)
    held = await hold(store)
    assert await store.renew([lost, held], 15_000) == {held: False}


async def test_whoever_drains_the_queue_gets_each_run_once(store: SqlStore) -> None:
    for number in range(40):
        await store.enqueue(f"run-{number}", manifest(), handler=HANDLER)
    sweeps = (
        store.claim_due([HANDLER], worker_id=f"worker-{n}", lease_ms=9_000, limit=10)
        for n in range(8)
    )
    claims = [claim for claims in await asyncio.gather(*sweeps) for claim in claims]
    ids = [claim.run.run_id for claim in claims]
    assert len(ids) == len(set(ids))
    assert 10 <= len(ids) <= 40


async def test_a_worker_waits_its_turn_behind_the_active_turn_of_a_session(
    store: SqlStore,
) -> None:
    first = await hold(store, "first", session=SessionKey("s", 0))
    await store.enqueue("second", manifest(), handler=HANDLER, session=SessionKey("s", 1))
    assert await store.claim_due([HANDLER], worker_id="bob", lease_ms=9_000, limit=9) == []
    await store.write(first, ended())
    (claim,) = await store.claim_due([HANDLER], worker_id="bob", lease_ms=9_000, limit=9)
    assert claim.run.run_id == "second"


async def test_a_view_of_a_tenant_closes_with_its_handle(store: SqlStore) -> None:
    acme = store.for_tenant("acme")
    assert acme.handle is store.handle
    lease = await hold(acme)
    assert lease.run_id == "@acme/run"
    await store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        await acme.read_run("run")


async def test_a_zombie_writes_nothing_however_many_changes_it_brings(
    store: SqlStore, clock: ManualClock
) -> None:
    zombie = await hold(store, worker_id="ann")
    clock.advance(15_000)
    await hold(store, worker_id="bob")
    with pytest.raises(LeaseLostError):
        await store.write(zombie, begun(0), completed(1), row(1, "x"), delivery(0), ended())
    assert await store.read_steps("run") == []
    assert await store.read_frames("run") == []
    details = await store.read_details("run")
    assert details.deliveries == []
    assert [attempt.ended for attempt in details.attempts] == ["lost", None]


async def test_a_run_ends_as_it_stands_in_the_database_whatever_its_lease_remembers(
    store: SqlStore, database: Sqlite
) -> None:
    claim = await store.start_or_resume("run", manifest(), worker_id="ann")
    assert claim.lease is not None
    assert claim.run == await store.read_run("run")
    # What a task does to the input that it was given, and what others ask, is seen or it is not.
    assert claim.run.manifest is not None
    cast("dict[str, object]", claim.run.manifest.input)["seen"] = True
    await store.request_stop("run")
    await store.write(claim.lease, completed(0), completed(1))
    written = await store.write(claim.lease, row(1, "x"), ended())
    assert written.run == await SqlStore(database).read_run("run")


@pytest.mark.parametrize("step_of_another", [1, 4])
async def test_a_run_ends_with_the_steps_that_it_has_whoever_wrote_them(
    store: SqlStore, database: Sqlite, step_of_another: int
) -> None:
    claim = await store.start_or_resume("run", manifest(), worker_id="ann")
    assert claim.lease is not None
    await store.write(claim.lease, completed(0), completed(1), completed(2))
    # The same lease in other hands: what was granted here knows nothing of this step.
    await store.write(Lease(*claim.lease), completed(step_of_another))
    written = await store.write(claim.lease, ended())
    assert written.run == await SqlStore(database).read_run("run")
    assert written.run is not None
    assert written.run.step_count == max(step_of_another + 1, 3)
    details = await store.read_details("run")
    assert [attempt.ended for attempt in details.attempts] == ["completed"]


async def test_a_lease_longer_than_a_year_ends_when_the_database_says(store: SqlStore) -> None:
    claim = await store.start_or_resume("run", manifest(), worker_id="ann", lease_ms=10**12)
    assert claim.run == await store.read_run("run")
