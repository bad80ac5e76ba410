"""Hot lists in one statement each: what they write, and what they find when others were faster."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.changes import Change, EndRun
from perdure.core.records import Lease
from perdure.errors import LeaseHeldError, LeaseLostError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.store.sql.postgres.fused import fusion_of
from perdure.store.sql.writes import write_statements
from perdure.testing.samples import begun, completed, ended, failed, hold, manifest
from tests.store.postgres_server import SCHEMA
from tests.store.sql.outsider import execute
from tests.store.sql.postgres.test_texts import TAKEN, meanwhile

LEASE = Lease("run", 1, "token", "ann")


@pytest.mark.parametrize(
    ("changes", "is_fused"),
    [
        ([completed()], True),
        ([completed()._replace(is_begun=True)], True),
        ([begun()], True),
        ([ended()], True),
        ([failed()], False),
        ([completed(), ended()], False),
        ([begun(1), completed()], False),
        ([], False),
    ],
    ids=[
        "complete",
        "complete what was begun",
        "begin",
        "end",
        "fail",
        "complete and end",
        "two steps",
        "nothing",
    ],
)
def test_a_hot_write_is_one_statement(changes: list[Change], is_fused: bool) -> None:
    assert (fusion_of(write_statements(LEASE, changes)) is not None) is is_fused


async def test_a_new_run_and_its_attempt_are_one_transaction(store: RunStore, url: str) -> None:
    await hold(store)
    run, attempt = await _writers(url)
    assert run == attempt
    assert [one.epoch for one in (await store.read_details("run")).attempts] == [1]


async def _writers(url: str) -> list[object]:
    """Return the numbers of the transactions that wrote the run and its attempts."""
    tables = ("durable_runs", "perdure_attempts")
    found = [await execute(url, f"SELECT xmin::text FROM {{}}.{table}") for table in tables]
    return [number for rows in found for (number,) in rows]


async def test_a_claim_tells_the_run_as_it_is_stored(store: RunStore) -> None:
    claim = await store.start_or_resume(
        "run", manifest('It\'s "said" \\ \n é'), worker_id="ann", handler="letters"
    )
    assert claim.run == await store.read_run("run")


async def test_a_known_run_is_opened_without_a_write(store: RunStore, url: str) -> None:
    lease = await hold(store)
    await store.write(lease, completed())
    await store.write(lease, ended())
    before = await _writers(url)
    claim = await store.start_or_resume("run", manifest(), worker_id="bob")
    assert claim.lease is None
    assert [step.result for step in claim.steps] == ["done"]
    assert await _writers(url) == before


async def test_of_two_who_create_a_run_at_once_the_loser_finds_it_held(
    store: RunStore, url: str
) -> None:
    created = (
        "INSERT INTO {}.durable_runs (run_id, manifest_hash, project_id, status, created_at, "
        "updated_at, lease_holder_id, lease_expires_at, token, epoch) "
        f"VALUES ('run', '{await _hash(store)}', 'lab', 'running', 'then', 'then', 'bob', '9', "
        "'token', 1)"
    )
    async with meanwhile(url, created):
        opening = asyncio.ensure_future(store.start_or_resume("run", manifest(), worker_id="ann"))
    with pytest.raises(LeaseHeldError):
        await opening
    assert (await store.read_details("run")).attempts == []


async def _hash(store: RunStore) -> str:
    """Return the hash of the manifest that all runs here have."""
    await hold(store, "another")
    run = await store.read_run("another")
    assert run is not None
    return run.manifest_hash


async def test_an_end_that_waits_for_a_lease_that_is_lost_writes_nothing(
    store: RunStore, url: str
) -> None:
    lease = await hold(store)
    async with meanwhile(url, TAKEN):
        ending = asyncio.ensure_future(store.write(lease, ended()))
    with pytest.raises(LeaseLostError):
        await ending
    run = await store.read_run("run")
    assert run is not None
    assert (run.state, run.lease_holder_id) == ("running", "node")
    (attempt,) = (await store.read_details("run")).attempts
    assert attempt.ended is None


async def test_an_end_tells_of_a_stop_that_was_asked_for_while_it_waited(
    store: RunStore, url: str
) -> None:
    lease = await hold(store)
    stop = "UPDATE {}.durable_runs SET stop_requested_at = '2026', strikes = 2"
    async with meanwhile(url, stop):
        ending = asyncio.ensure_future(store.write(lease, EndRun("completed", reason="done")))
    written = await ending
    assert written.stop_requested
    assert written.run == await store.read_run("run")
    assert written.run is not None
    assert (written.run.strikes, written.run.reason) == (0, "done")
    (attempt,) = (await store.read_details("run")).attempts
    assert (attempt.ended, attempt.ended_at) == ("completed", written.run.completed_at)


async def test_a_lost_lease_in_a_group_costs_the_others_nothing(store: RunStore, url: str) -> None:
    leases = [await hold(store, f"run-{number}") for number in range(8)]
    await execute(url, TAKEN.format(SCHEMA).replace("'run'", "'run-3'"))
    answers = await asyncio.gather(
        *(store.write(lease, completed()) for lease in leases), return_exceptions=True
    )
    lost = [number for number, answer in enumerate(answers) if isinstance(answer, LeaseLostError)]
    assert lost == [3]
    assert not any(isinstance(answer, BaseException) for answer in answers[:3] + answers[4:]), (
        answers
    )


async def test_a_step_that_is_there_already_costs_the_others_of_a_group_nothing(
    store: RunStore,
) -> None:
    leases = [await hold(store, f"run-{number}") for number in range(8)]
    await store.write(leases[3], begun())
    await store.write(leases[5], completed(result="first"))
    answers = await asyncio.gather(*(store.write(lease, completed()) for lease in leases))
    results = [answer.steps[0].result for answer in answers]
    assert results == ["done"] * 5 + ["first"] + ["done"] * 2


async def test_a_completed_step_that_comes_again_is_answered_with_the_first(
    store: RunStore, url: str
) -> None:
    lease = await hold(store)
    await store.write(lease, begun(tries=3))
    (first,) = (await store.write(lease, completed(result="ours", tries=3))).steps
    other = await open_store(url)
    (again,) = (await other.write(lease, completed(result="theirs", tries=4))).steps
    assert await other.read_steps("run") == [first]
    assert again == first
    await other.close()
