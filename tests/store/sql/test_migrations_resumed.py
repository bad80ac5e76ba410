"""Runs of TypeScript workers that ours go on with, on one database, side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.core.records import RunOutcome, SessionKey, StepError
from perdure.errors import LeaseHeldError, LeaseLostError, RunInputMismatchError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.samples import completed, ended, hold, manifest
from tests.store.sql.reference_database import (
    FAR,
    LONG_AGO,
    add_version_2,
    connected,
    fill,
    old_rows,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


async def opened(path: Path) -> RunStore:
    return await open_store(f"sqlite:{path}")


@pytest.mark.parametrize("version", [1, 2])
async def test_a_crashed_run_of_a_typescript_worker_is_resumed(path: Path, version: int) -> None:
    fill(path)
    if version == 2:
        add_version_2(path)
    store = await opened(path)
    claim = await store.start_or_resume("lapsed", manifest(), worker_id="ann", handler="letters")
    assert claim.lease is not None
    assert (claim.run.epoch, claim.run.strikes, claim.run.state) == (1, 1, "running")
    assert claim.run.manifest == manifest()
    assert claim.run.handler == "letters"
    assert [step.result for step in claim.steps] == [1, {"ü": ["\u2028", None]}, None]
    assert [step.status for step in claim.steps] == ["completed", "completed", "running"]
    event = await store.load_event("lapsed", "go")
    assert event is not None
    assert event.payload == {"by": "ts"}
    await store.write(claim.lease, completed(2, "from here", tries=2), ended())
    await store.close()
    old = old_rows(path, "lapsed")
    ((*_, holder, deadline, outcome, count),) = old["durable_runs"]
    assert (holder, deadline, count) == (None, None, 3)
    assert outcome == '{"pass": true, "notes": "well"}'
    assert [row[5:8] for row in old["durable_steps"]] == [
        ("completed", 1, "1"),
        ("completed", 2, '{"ü":["\\u2028",null]}'),
        ("completed", 2, '"from here"'),
    ]


async def test_runs_without_a_lease_are_claimed_without_a_strike(path: Path) -> None:
    fill(path)
    store = await opened(path)
    claim = await store.start_or_resume("released", manifest(), worker_id="ann")
    assert claim.lease is not None
    assert claim.run.strikes == 0
    await store.close()


async def test_a_live_lease_of_a_typescript_worker_is_respected(path: Path) -> None:
    fill(path)
    store = await opened(path)
    before = old_rows(path)
    with pytest.raises(LeaseHeldError, match=FAR):
        await hold(store, "live")
    with pytest.raises(RunInputMismatchError):
        await store.start_or_resume("live", manifest("another"), worker_id="ann")
    assert old_rows(path) == before
    await store.close()


async def test_finished_runs_are_replayed_without_a_write(path: Path) -> None:
    fill(path)
    store = await opened(path)
    before = old_rows(path)
    with connected(path) as other:
        # Whoever wanted to write would have to wait for this lock.
        other.execute("BEGIN IMMEDIATE")
        done = await store.start_or_resume("done", manifest(), worker_id="ann")
        turn = await store.start_or_resume(
            "chat:team:7:0", manifest(), worker_id="ann", session=SessionKey("team:7", 0)
        )
        broken = await store.start_or_resume("broken", manifest(), worker_id="ann")
        other.execute("ROLLBACK")
    assert done.lease is turn.lease is broken.lease is None
    assert done.run.outcome == RunOutcome(passed=True, score=0.5)
    assert turn.steps[0].result == {"finalText": "Good morning"}
    assert broken.run.state == "failed"
    assert broken.steps[0].error == StepError("It broke", code="E_BROKEN", stack="at x")
    assert old_rows(path) == before
    await store.close()


async def test_a_failed_run_goes_on_with_retry(path: Path) -> None:
    fill(path)
    store = await opened(path)
    lease = await hold(store, "broken", retry=True)
    run = await store.read_run("broken")
    assert run is not None
    assert (run.status, run.completed_at, run.strikes) == ("running", None, 0)
    await store.write(lease, completed(0, tries=4), ended())
    await store.close()


async def test_a_turn_of_a_session_with_a_colon_is_resumed(path: Path) -> None:
    fill(path)
    store = await opened(path)
    key = SessionKey("team:7", 1, owner_id="ann")
    lease = await hold(store, "chat:team:7:1", session=key)
    run = await store.read_run("chat:team:7:1")
    assert run is not None
    assert (run.session_id, run.turn_index, run.owner_id) == ("team:7", 1, "ann")
    await store.write(lease, completed(0), ended())
    await store.close()


async def test_a_takeover_by_a_typescript_worker_fences_ours(path: Path) -> None:
    store = await opened(path)
    lease = await hold(store, "run")
    with connected(path) as typescript:
        typescript.execute(
            "UPDATE durable_runs SET lease_holder_id = 'ts:9', lease_expires_at = ?", (FAR,)
        )
    with pytest.raises(LeaseLostError):
        await store.write(lease, completed(0))
    assert await store.renew([lease], 15_000) == {}
    assert await store.read_steps("run") == []
    with connected(path) as typescript:
        typescript.execute(
            "UPDATE durable_runs SET lease_holder_id = NULL, lease_expires_at = NULL, "
            "status = 'completed', completed_at = ?",
            (LONG_AGO,),
        )
    claim = await store.start_or_resume("run", manifest(), worker_id="ann")
    assert (claim.lease, claim.run.state) == (None, "completed")
    await store.close()


async def test_a_refinement_that_a_typescript_worker_left_behind_does_not_count(path: Path) -> None:
    store = await opened(path)
    lease = await hold(store, "run")
    await store.write(lease, ended("stopped"))
    with connected(path) as typescript:
        # It ran the stopped run once more, and crashed.
        typescript.execute(
            "UPDATE durable_runs SET status = 'running', lease_holder_id = 'ts:1', "
            "lease_expires_at = ?",
            (LONG_AGO,),
        )
    run = await store.read_run("run")
    assert run is not None
    assert run.state == "running"
    (listed,) = await store.list_runs(state="running")
    assert listed == run
    (claim,) = await store.claim_due(["letters"], worker_id="bob", lease_ms=15_000, limit=9)
    assert (claim.run.epoch, claim.run.strikes) == (2, 1)
    await store.close()
