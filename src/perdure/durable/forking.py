"""Forks: a new run that begins with the first steps of another one, as they were recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from perdure.core import identity
from perdure.core.changes import Change, CompleteStep, FailStep, Release
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import LEASE_MS
from perdure.core.records import (
    Claim,
    JsonValue,
    RunManifest,
    RunRecord,
    SessionKey,
    StepError,
    StepRecord,
)
from perdure.durable.claiming import Claiming
from perdure.durable.failures import error_text
from perdure.durable.frameprefix import FramePrefix, frames_up_to
from perdure.errors import LeaseHeldError, RunNotFoundError, UsageError
from perdure.store.protocol import RunStore

FORKED: Final = "forked"
"""How the attempt ends that has copied everything."""
_FROM: Final = "forked_from"
_FROM_STEP: Final = "forked_from_step"
_PAGE: Final = 500


class ForkOrigin(NamedTuple):
    """What a run was forked from, in its tenant, and the first step that was not kept."""

    run_id: str
    from_step: int


class ForkPreview(NamedTuple):
    """What a fork would keep, and what it would do again.

    `kept` replay. `again` is what the original has recorded behind them, and of a turn step 0, its
    answer: the fork executes it again, effects on the outside world and model calls included.
    `events` are the keys of the events that the kept steps have waited for; `frames` counts what
    readers of a turn get of it at once. `handler` None: nobody goes on with the fork by himself.
    """

    run: RunRecord
    new_run_id: str | None
    from_step: int
    kept: Sequence[StepRecord]
    again: Sequence[StepRecord]
    events: Sequence[str]
    frames: int
    handler: str | None


async def fork(
    store: RunStore,
    run_id: str,
    *,
    from_step: int,
    new_run_id: str | None = None,
    input: Mapping[str, JsonValue] | None = None,
) -> RunRecord:
    """Begin a new run with the steps of `run_id` before `from_step`, and return it.

    They replay, results and failures alike, with the events that they have waited for and, of a
    turn, the frames that belong to them. From `from_step` on everything is executed, under other
    idempotency keys. The original may be in any state and is not changed. A worker that has its
    handler goes on with the fork; a run without a handler is continued by the same `run_durable`
    call with the new id. `fork_origin` tells what a run was forked from.

    A fork of a run needs `new_run_id`, and repeating it with the same id completes or returns
    what the first call has begun. It has the manifest of the original, or, with `input`, another
    input: what is kept was made from the old one. A fork of a turn is its next revision, after
    the same turns (or the revision that `new_run_id` names), with the same message.

    Raises UsageError for a step behind the end or an unfinished one before `from_step`, and for an
    id that is another run's; RunNotFoundError, SessionBusyError (another turn of the session is in
    flight), FramesExpiredError, LeaseHeldError (the same fork is being made elsewhere).
    """
    plan = await _plan(store, run_id, from_step, new_run_id, input)
    if plan.new_run_id is None:
        raise UsageError(f"the fork of the run {run_id!r} needs a new_run_id")
    known = await store.read_run(plan.new_run_id)
    if known is None or not await _is_whole(store, known, plan):
        await _copy(store, plan)
    if plan.run.handler is not None:
        await _hand_over(store, plan)
    forked = await store.read_run(plan.new_run_id)
    if forked is None:
        raise RunNotFoundError(f"the run {plan.new_run_id!r} was deleted as soon as it was forked")
    return forked


async def preview_fork(
    store: RunStore, run_id: str, *, from_step: int, new_run_id: str | None = None
) -> ForkPreview:
    """Return what `fork` with the same arguments would do, and change nothing.

    Raises what `fork` raises for what cannot be forked.
    """
    plan = await _plan(store, run_id, from_step, new_run_id, None)
    return ForkPreview(
        run=plan.run,
        new_run_id=plan.new_run_id,
        from_step=from_step,
        kept=plan.kept,
        again=plan.again,
        events=sorted(_events_of(plan.kept)),
        frames=len(plan.prefix.frames),
        handler=plan.run.handler,
    )


def fork_origin(run: RunRecord) -> ForkOrigin | None:
    """Return what a run was forked from; None if it is no fork."""
    tags = {} if run.manifest is None else run.manifest.tags or {}
    step = tags.get(_FROM_STEP, "")
    return ForkOrigin(tags[_FROM], int(step)) if _FROM in tags and step.isdecimal() else None


class _Plan(NamedTuple):
    """A fork that is possible."""

    run: RunRecord
    origin: ForkOrigin
    new_run_id: str | None
    manifest: RunManifest
    session: SessionKey | None
    kept: Sequence[StepRecord]
    again: Sequence[StepRecord]
    prefix: FramePrefix


async def _plan(
    store: RunStore,
    run_id: str,
    from_step: int,
    new_run_id: str | None,
    new_input: Mapping[str, JsonValue] | None,
) -> _Plan:
    identity.check_index(from_step, name="from_step")
    run = await store.read_run(run_id)
    if run is None:
        raise RunNotFoundError(f"there is no run {run_id!r}")
    if run.manifest is None:
        raise UsageError(f"the run {run_id!r} has no manifest: another runtime began it")
    is_turn = run.session_id is not None and run.turn_index is not None
    if is_turn and (from_step == 0 or new_input is not None):
        raise UsageError(
            "step 0 of a turn is its answer: fork it from a later step, or submit a new revision"
        )
    first = 1 if is_turn else 0
    kept, again = _cut(run, await store.read_steps(run_id), first, from_step)
    origin = ForkOrigin(run_id, from_step)
    tags = {**(run.manifest.tags or {}), _FROM: run_id, _FROM_STEP: str(from_step)}
    manifest = run.manifest._replace(tags=tags)
    if new_input is not None:
        manifest = manifest._replace(input=new_input)
    session = await _revision(store, run, origin, new_run_id) if is_turn else None
    if session is not None:
        new_run_id = identity.turn_run_id(*session[:3])
    elif new_run_id is not None:
        identity.check_run_id(new_run_id)
        if new_run_id == run_id:
            raise UsageError(f"new_run_id is that of the original, {run_id!r}")
    prefix = await frames_up_to(store, run, kept) if is_turn else FramePrefix.empty()
    return _Plan(run, origin, new_run_id, manifest, session, kept, again, prefix)


def _cut(
    run: RunRecord, steps: Sequence[StepRecord], first: int, from_step: int
) -> tuple[list[StepRecord], list[StepRecord]]:
    """Return the steps before `from_step`, all of which must have ended, and what is done again.

    That is those behind, and of a turn the answer as a whole: its producer runs once more.
    """
    by_position = {step.step_index: step for step in steps if step.step_index >= first}
    end = max(by_position, default=first - 1) + 1
    if from_step > end:
        raise UsageError(
            f"step {from_step} is behind the end of the run {run.run_id!r}: fork it from step "
            f"{first} to {end}"
        )
    kept = [by_position.get(position) for position in range(first, from_step)]
    for position, step in enumerate(kept, first):
        if step is None or step.status not in ("completed", "failed"):
            what = "is not recorded" if step is None else f"({step.intent!r}) is {step.status}"
            raise UsageError(
                f"step {position} of the run {run.run_id!r} {what}: fork it from step {position} "
                "or earlier"
            )
    answer = [step for step in steps if step.step_index < first]
    behind = [step for position, step in sorted(by_position.items()) if position >= from_step]
    again = [*answer, *behind]
    return [step for step in kept if step is not None], again


async def _revision(
    store: RunStore, run: RunRecord, origin: ForkOrigin, new_run_id: str | None
) -> SessionKey:
    """Return the place of the revision that `new_run_id` names; None: of the next one.

    Which is the same fork, if one was begun that nobody has gone on with.
    """
    assert run.session_id is not None
    assert run.turn_index is not None
    revisions = await _revisions(store, run)
    following = 1 + max(each.revision for each in revisions)
    if new_run_id is None:
        begun = [each for each in revisions if fork_origin(each) == origin and _is_begun(each)]
        revision = begun[0].revision if begun else following
    else:
        revision = _revision_of(run, new_run_id, last=following)
    return SessionKey(
        run.session_id,
        run.turn_index,
        revision,
        owner_id=run.owner_id,
        parent_run_id=run.parent_run_id or "",
    )


def _is_begun(run: RunRecord) -> bool:
    return run.state == "running" and run.handler is None


def _revision_of(run: RunRecord, new_run_id: str, *, last: int) -> int:
    assert run.session_id is not None
    assert run.turn_index is not None
    number = new_run_id.rpartition("~")[2]
    revision = int(number) if number.isascii() and number.isdecimal() else 0
    own_id = identity.turn_run_id(run.session_id, run.turn_index, revision)
    if not 0 < revision <= last or new_run_id != own_id or new_run_id == run.run_id:
        raise UsageError(
            f"a fork of the turn {run.run_id!r} is one of its revisions, up to {last}, "
            f"not {new_run_id!r:.80}"
        )
    return revision


async def _revisions(store: RunStore, run: RunRecord) -> list[RunRecord]:
    found: list[RunRecord] = []
    after: str | None = None
    while True:
        page = await store.list_runs(
            session_id=run.session_id, turn_index=run.turn_index, after=after, limit=_PAGE
        )
        found += page
        if len(page) < _PAGE:
            return found
        after = page[-1].run_id


# Copying.


async def _is_whole(store: RunStore, known: RunRecord, plan: _Plan) -> bool:
    """Return whether the fork was made already. Raises UsageError if the run is no such fork."""
    same = known.manifest_hash == identity.manifest_hash(plan.manifest)
    if not same or fork_origin(known) != plan.origin:
        raise UsageError(f"there is a run {known.run_id!r} already: give the fork another id")
    details = await store.read_details(known.run_id)
    return any(one.ended == FORKED for one in details.attempts)


async def _copy(store: RunStore, plan: _Plan) -> None:
    """Create the run without a handler, so that nobody goes on with half of it, and fill it.

    What is kept is written at once, with the mark that it is whole; a crash before leaves a run
    that the next call fills.
    """
    claim = await _claim(store, plan, handler=None)
    if claim.run.epoch > 1 and await _is_whole(store, claim.run, plan):
        if claim.lease is not None:
            await store.write(claim.lease, Release())
        return
    if claim.lease is None:
        raise UsageError(
            f"the run {claim.run.run_id!r} was {claim.run.state} before its fork was whole: delete "
            "it, or give the fork another id"
        )
    for key, payload in _events_of(plan.kept).items():
        await store.emit_event(claim.run.run_id, key, payload)
    changes: list[Change] = [change for step in plan.kept for change in _again(step, plan)]
    await store.write(claim.lease, *changes, *plan.prefix.rows(), Release(FORKED))


async def _hand_over(store: RunStore, plan: _Plan) -> None:
    """Give the fork the original's handler, whose workers go on with it."""
    assert plan.new_run_id is not None
    known = await store.read_run(plan.new_run_id)
    if known is None or known.handler is not None:
        return
    try:
        claim = await _claim(store, plan, handler=plan.run.handler)
    except LeaseHeldError:
        return  # Somebody goes on with it already.
    if claim.lease is not None:
        await store.write(claim.lease, Release())


async def _claim(store: RunStore, plan: _Plan, *, handler: str | None) -> Claim:
    assert plan.new_run_id is not None
    claiming = Claiming(
        store,
        plan.new_run_id,
        plan.manifest,
        worker_id=identity.derive_worker_id(),
        lease_ms=LEASE_MS,
        handler=handler,
        session=plan.session,
    )
    return await claiming.claim()


def _events_of(steps: Sequence[StepRecord]) -> dict[str, JsonValue]:
    """Return the events that the steps have waited for: the task may wait for them once more."""
    return {
        step.intent.removeprefix("event:"): step.result
        for step in steps
        if step.kind == "event" and step.status == "completed"
    }


def _again(step: StepRecord, plan: _Plan) -> Iterator[CompleteStep | FailStep]:
    """Yield what records the step in the fork."""
    if step.status == "failed":
        yield _failed_again(step, last=plan.kept[-1].step_index)
        return
    yield CompleteStep(
        step.step_index,
        step.intent,
        encode_value(step.result, name=f"the result of step {step.intent!r}"),
        kind=step.kind,
        input_hash=step.input_hash,
        tries=step.attempts,
        effect=step.effect,
        started_at=step.started_at,
        frames_to=plan.prefix.frames_to(step),
    )
    if step.error is not None:
        error = error_text(step.error)
        yield FailStep(step.step_index, step.intent, error, kind=step.kind, beside_result=True)


def _failed_again(step: StepRecord, *, last: int) -> FailStep:
    """A failure that is kept is final, though what made it so may not be there any more."""
    error = step.error or StepError("unknown error")
    taken = step.step_index + 1 if error.taken is None else error.taken
    return FailStep(
        step.step_index,
        step.intent,
        error_text(error._replace(taken=min(last, taken))),
        kind=step.kind,
        input_hash=step.input_hash,
        tries=step.attempts,
        effect=step.effect,
        started_at=step.started_at,
    )
