"""One case for each cell of the table of life: what a command does to a run in a phase.

A refusal must change nothing; what is granted must change just what it should.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from perdure.core.changes import Change, Release, Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import Claim, Lease, RunManifest, RunRecord
from perdure.core.transitions import LIFE, Command
from perdure.errors import (
    LeaseHeldError,
    LeaseLostError,
    RunInputMismatchError,
    RunNotFoundError,
    UsageError,
)
from perdure.store.protocol import RunStore
from perdure.testing.lab import (
    Snapshot,
    StoreLab,
    case,
    check,
    read,
    refused,
    same,
    snapshot,
    unchanged,
)
from perdure.testing.phases import SCENES, Scene, phase_of_scene, stage
from perdure.testing.samples import HANDLER, completed, ended, hold, manifest

_ENDS: Final = ("completed", "stopped", "failed")


class _Cell(NamedTuple):
    """What a command meets: another handle on the run, its newest lease, and how it stands."""

    lab: StoreLab
    store: RunStore
    run_id: str
    lease: Lease
    scene: Scene
    before: Snapshot

    @property
    def run(self) -> RunRecord:
        """The run as it stood before, which must have been there."""
        if self.before.run is None:
            raise AssertionError("there was no run before")
        return self.before.run

    async def unchanged(self) -> None:
        await unchanged(self.store, self.run_id, self.before)


async def _claim(cell: _Cell, verdict: str, *, retry: bool) -> None:
    open_run = partial(
        cell.store.start_or_resume,
        cell.run_id,
        manifest(),
        worker_id="bob",
        handler=HANDLER,
        retry=retry,
    )
    if verdict == "held":
        with refused(LeaseHeldError):
            await open_run()
        await cell.unchanged()
        return
    claim = await open_run()
    if verdict == "read":
        same(claim.lease, None, "the lease of a pure read")
        same(claim.run, cell.before.run, "the run of a pure read")
        same(list(claim.steps), list(cell.before.steps), "the steps of a pure read")
        await cell.unchanged()
    else:
        await _is_granted(cell, claim)


async def _is_granted(cell: _Cell, claim: Claim) -> None:
    before, run = cell.before.run, claim.run
    epoch = 1 if before is None else before.epoch + 1
    clean = before is None or before.state in ("failed", "parked")
    strikes = 0 if clean or before is None else before.strikes + (cell.scene == "lapsed")
    check(claim.lease is not None, "the claim should be granted")
    same((run.epoch, run.strikes), (epoch, strikes), "epoch and strikes")
    same((run.status, run.state, run.reason), ("running", "running", None), "the claimed run")
    same((run.wake_at, run.wake_key, run.completed_at), (None, None, None), "marks of the past")
    same(run.lease_holder_id, "bob", "the holder")
    same(run.lease_expires_at, cell.lab.clock.iso(LEASE_MS), "the deadline")
    same(run.updated_at, cell.lab.clock.iso(), "updated_at")
    same(run, await read(cell.store, cell.run_id), "the claimed run, as it is read")
    same(list(claim.steps), list(cell.before.steps), "the steps")
    after = await snapshot(cell.store, cell.run_id)
    same(after.frames, cell.before.frames, "the frames")
    same(claim.next_seq, len(after.frames) + 1, "the next seq")
    with refused(LeaseLostError):
        await cell.store.write(cell.lease, completed(1))


async def _write(cell: _Cell, verdict: str, *, change: Change) -> None:
    if verdict == "lost":
        with refused(LeaseLostError):
            await cell.store.write(cell.lease, change)
        await cell.unchanged()
        return
    await cell.store.write(cell.lease, change)
    run = await read(cell.store, cell.run_id)
    same(run.updated_at, cell.lab.clock.iso(), "updated_at")
    if isinstance(change, (Suspend, Release)):
        state = change.state if isinstance(change, Suspend) else "running"
        status = "suspended" if isinstance(change, Suspend) else "running"
        same((run.status, run.state), (status, state), "the run that was given back")
        same((run.lease_holder_id, run.lease_expires_at), (None, None), "its lease")
    else:
        step = (await cell.store.read_steps(cell.run_id))[1]
        same((step.status, step.result), ("completed", "done"), "the step that was written")
        same(run.state, "running", "the state")


async def _end(cell: _Cell, verdict: str) -> None:
    if cell.scene in _ENDS:
        again = await cell.store.write(cell.lease, ended(cell.scene))
        same(again.run, cell.run, "the run that the repeated end tells")
        await cell.unchanged()
        return
    if verdict == "lost":
        await _write(cell, verdict, change=ended("completed"))
        return
    told = await cell.store.write(cell.lease, ended("completed"))
    run = await read(cell.store, cell.run_id)
    same(told.run, run, "the run that its end tells")
    same((run.status, run.state), ("completed", "completed"), "the run that was ended")
    same((run.lease_holder_id, run.lease_expires_at), (None, None), "its lease")
    same(run.completed_at, cell.lab.clock.iso(), "completed_at")


async def _renew(cell: _Cell, verdict: str) -> None:
    answer = dict(await cell.store.renew([cell.lease], 50_000))
    if verdict == "lost":
        same(answer, {}, "the renewal of a lost lease")
        await cell.unchanged()
        return
    same(answer, {cell.lease: False}, "the renewal")
    run = await read(cell.store, cell.run_id)
    same(run.lease_expires_at, cell.lab.clock.iso(50_000), "the deadline")
    moved = run._replace(lease_expires_at=cell.run.lease_expires_at, updated_at=cell.run.updated_at)
    same(moved, cell.run, "the rest of the renewed run")


async def _stop(cell: _Cell, verdict: str) -> None:
    if verdict == "unknown":
        with refused(RunNotFoundError):
            await cell.store.request_stop(cell.run_id)
        await cell.unchanged()
        return
    run = await cell.store.request_stop(cell.run_id)
    same(run, await read(cell.store, cell.run_id), "the answer to a stop, as it is read")
    if verdict == "keep":
        await cell.unchanged()
        return
    same(run.stop_requested_at, cell.lab.clock.iso(), "the mark of the stop")
    same((run.state, run.epoch), (cell.run.state, cell.run.epoch), "state and epoch")
    same(run.lease_expires_at, cell.run.lease_expires_at, "the deadline")
    asleep = run.state in ("sleeping", "waiting")
    same(run.wake_at, cell.lab.clock.iso() if asleep else None, "the moment it wakes at")
    same((await snapshot(cell.store, cell.run_id))[1:], cell.before[1:], "all but the run")


async def _enqueue(cell: _Cell, verdict: str, *, retry: bool) -> None:
    run = await cell.store.enqueue(cell.run_id, manifest(), handler=HANDLER, retry=retry)
    same(run, await read(cell.store, cell.run_id), "the answer, as it is read")
    if verdict == "keep":
        await cell.unchanged()
        return
    same((run.status, run.state), ("pending", "queued"), "the queued run")
    same((run.lease_holder_id, run.lease_expires_at), (None, None), "its lease")
    same((run.strikes, run.reason), (0, None), "strikes and reason")
    same((run.wake_at, run.wake_key), (None, None), "what it waited for")
    same((run.completed_at, run.stop_requested_at), (None, None), "marks of the past")
    same(run.epoch, 0 if verdict == "create" else cell.run.epoch, "the epoch")
    same(run.updated_at, cell.lab.clock.iso(), "updated_at")
    same((run.handler, run.manifest), (HANDLER, manifest()), "what a worker needs to start it")
    after = await snapshot(cell.store, cell.run_id)
    same((after.steps, after.frames), (cell.before.steps, cell.before.frames), "its history")


async def _delete(cell: _Cell, verdict: str, *, frames_only: bool) -> None:
    if verdict == "refuse":
        with refused(UsageError):
            await cell.store.delete(cell.run_id, frames_only=frames_only)
        await cell.unchanged()
        return
    removed = await cell.store.delete(cell.run_id, frames_only=frames_only)
    same(removed, verdict == "remove", "the answer to a deletion")
    after = await snapshot(cell.store, cell.run_id)
    if not frames_only or verdict == "unknown":
        same(after, Snapshot(None, [], None, []), "what is left")
        return
    same(after.frames, [], "the frames that are left")
    run = await read(cell.store, cell.run_id)
    same(run.frames_expired_at, cell.lab.clock.iso(), "the mark of the expired frames")
    kept = run._replace(frames_expired_at=None, updated_at=cell.run.updated_at)
    same(kept, cell.run, "the rest of the run")
    same((after.steps, after.details), (cell.before.steps, cell.before.details), "all else")


class _Row(NamedTuple):
    """One command: the words it is named with, its column in the table, and its check."""

    words: str
    column: Command
    check: Callable[[_Cell, str], Awaitable[None]]


_COMMANDS: Final = (
    _Row("a_claim_of", "claim", partial(_claim, retry=False)),
    _Row("a_claim_with_retry_of", "claim_retry", partial(_claim, retry=True)),
    _Row("a_write_by_the_last_holder_of", "write", partial(_write, change=completed(1))),
    _Row(
        "a_suspension_by_the_last_holder_of",
        "write",
        partial(_write, change=Suspend("sleeping", wake_in_ms=60_000)),
    ),
    _Row("a_release_by_the_last_holder_of", "write", partial(_write, change=Release())),
    _Row("an_end_by_the_last_holder_of", "write", _end),
    _Row("a_renewal_by_the_last_holder_of", "renew", _renew),
    _Row("a_stop_of", "stop", _stop),
    _Row("an_enqueue_of", "enqueue", partial(_enqueue, retry=False)),
    _Row("an_enqueue_with_retry_of", "enqueue_retry", partial(_enqueue, retry=True)),
    _Row("a_deletion_of", "delete", partial(_delete, frames_only=False)),
    _Row("a_deletion_of_the_frames_of", "delete_frames", partial(_delete, frames_only=True)),
)

_RUNS: Final[Mapping[Scene, str]] = {
    scene: "an_unknown_run" if scene == "none" else f"a_{scene}_run" for scene in SCENES
}

_VERDICTS: Final[Mapping[str, str]] = {
    "create": "creates_it",
    "grant": "is_granted",
    "read": "is_a_pure_read",
    "held": "finds_it_held",
    "apply": "is_applied",
    "lost": "finds_the_lease_lost",
    "mark": "marks_it",
    "keep": "changes_nothing",
    "queue": "queues_it_again",
    "remove": "is_done",
    "refuse": "is_refused",
    "unknown": "finds_nothing",
}


def _add_cell(scene: Scene, command: _Row) -> None:
    verdict = LIFE[phase_of_scene(scene)][command.column]

    async def cell_case(lab: StoreLab) -> None:
        staged = await stage(lab, scene)
        before = await snapshot(staged.store, staged.run_id)
        other = await lab.open()
        cell = _Cell(lab, other, staged.run_id, staged.lease, scene, before)
        await command.check(cell, verdict)

    repeated = command.check is _end and scene in _ENDS
    answer = "is_answered_as_done" if repeated else _VERDICTS[verdict]
    cell_case.__name__ = f"{command.words}_{_RUNS[scene]}_{answer}"
    case(cell_case)


def _add_mismatch(scene: Scene) -> None:
    async def mismatch_case(lab: StoreLab) -> None:
        staged = await stage(lab, scene)
        before = await snapshot(staged.store, staged.run_id)
        other = await lab.open()
        await _is_mismatch(other, staged.run_id, manifest("Something else?"))
        await unchanged(other, staged.run_id, before)

    mismatch_case.__name__ = f"another_manifest_is_refused_first_of_all_for_{_RUNS[scene]}"
    case(mismatch_case)


async def _is_mismatch(store: RunStore, run_id: str, other: RunManifest) -> None:
    """Check that no way to open or queue the run takes another manifest."""
    for retry in (False, True):
        with refused(RunInputMismatchError):
            await store.start_or_resume(run_id, other, worker_id="bob", retry=retry)
        with refused(RunInputMismatchError):
            await store.enqueue(run_id, other, handler=HANDLER, retry=retry)


for _scene in SCENES:
    for _command in _COMMANDS:
        _add_cell(_scene, _command)
    if _scene != "none":
        _add_mismatch(_scene)


@case
async def every_part_of_a_manifest_that_is_hashed_tells_runs_apart(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    before = await snapshot(store, "run")
    known = manifest()
    others = (
        known._replace(project_id="other"),
        known._replace(scenario_id="other"),
        known._replace(input={"question": "other"}),
        known._replace(task=known.task._replace(id="other")),
        known._replace(task=known.task._replace(intent="other")),
        known._replace(task=known.task._replace(domain="other")),
    )
    for other in others:
        await _is_mismatch(store, "run", other)
    await unchanged(store, "run", before)
