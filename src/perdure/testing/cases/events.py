"""Events and stops from outside: the first emit wins, a waiting run wakes, a stop is heard."""

from __future__ import annotations

import asyncio
import json

from perdure.core.changes import Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import JsonValue
from perdure.errors import RunNotFoundError
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, check, read, refused, same, snapshot, unchanged
from perdure.testing.samples import HANDLER, begun, completed, finish, hold, manifest


async def _claimed_ids(store: RunStore) -> list[str]:
    claims = await store.claim_due([HANDLER], worker_id="sweeper", lease_ms=LEASE_MS, limit=10)
    return sorted(claim.run.run_id for claim in claims)


@case
async def the_first_emit_wins_and_the_loser_gets_the_winner(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await hold(first)
    won, event = await first.emit_event("run", "go", {"n": 1})
    same((won, event.payload, event.key, event.run_id), (True, {"n": 1}, "go", "run"), "the event")
    same(event.emitted_at, lab.clock.iso(), "the moment of the emit")
    lab.clock.advance(10)
    same(await second.emit_event("run", "go", {"n": 2}), (False, event), "the second emit")
    same(await second.load_event("run", "go"), event, "the stored event")
    same(list((await first.read_details("run")).events), [event], "the events of the run")


@case
async def of_many_emits_at_once_one_wins(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await hold(first)
    answers = await asyncio.gather(
        *(store.emit_event("run", "go", number) for number, store in enumerate([first, second] * 5))
    )
    same(sum(won for won, _ in answers), 1, "the number of winners")
    winner = await first.load_event("run", "go")
    check(all(event == winner for _, event in answers), "everybody should see the winner's event")


@case
async def events_of_a_run_are_told_apart_by_their_keys(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    for key in ("go", "Go", "go ", "gö", "%", "_"):
        won, _ = await store.emit_event("run", key, key)
        check(won, f"the key {key!r} should be new")
    for key in ("go", "Go", "go ", "gö", "%", "_"):
        event = await store.load_event("run", key)
        same(event and event.payload, key, f"the payload under {key!r}")
    same(await store.load_event("run", "g"), None, "an event that nobody emitted")


@case
async def a_payload_may_be_null(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    won, event = await store.emit_event("run", "go", None)
    same((won, event.payload), (True, None), "the event")
    same(await store.load_event("run", "go"), event, "the stored event")


@case
async def an_event_for_an_unknown_run_is_refused(lab: StoreLab) -> None:
    store = await lab.open()
    with refused(RunNotFoundError):
        await store.emit_event("nobody", "go", 1)
    same(await store.load_event("nobody", "go"), None, "the event of an unknown run")
    await hold(store, "nobody")
    same(await store.load_event("nobody", "go"), None, "an event from before the run was there")


@case
async def an_event_changes_nothing_of_a_run_that_does_not_wait_for_it(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, begun(0))
    suspended: tuple[tuple[str, Suspend], ...] = (
        ("other", Suspend("waiting", wake_key="stay")),
        ("asleep", Suspend("sleeping", wake_in_ms=60_000)),
        ("parked", Suspend("parked")),
    )
    for run_id, change in suspended:
        await store.write(await hold(store, run_id), change)
    await finish(store, "done", completed(0))
    lab.clock.advance(5)
    for run_id in ("run", "other", "asleep", "parked", "done"):
        before = await snapshot(store, run_id)
        same((await store.emit_event(run_id, "go", 1))[0], True, f"the emit to {run_id}")
        after = await snapshot(store, run_id)
        same((after.run, after.steps), (before.run, before.steps), f"the run {run_id!r}")
    same(await _claimed_ids(store), [], "the runs that are due")


@case
async def an_event_wakes_the_run_that_waits_for_it(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    written = await first.write(await hold(first), Suspend("waiting", wake_key="go"))
    same(written.wake_at, None, "the moment at which an endless wait is due")
    same(await _claimed_ids(second), [], "the due runs before the event")
    lab.clock.advance(5)
    await second.emit_event("run", "go", "now")
    run = await read(first, "run")
    same((run.state, run.wake_at), ("waiting", lab.clock.iso()), "the run that was woken")
    same(await _claimed_ids(second), ["run"], "the due runs after the event")
    run = await read(first, "run")
    same((run.wake_at, run.wake_key, run.strikes), (None, None, 0), "the marks of the wait")


@case
async def a_wait_for_an_event_that_is_there_is_due_at_once(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.emit_event("run", "go", 1)
    lab.clock.advance(5)
    change = Suspend("waiting", wake_key="go", wake_in_ms=60_000)
    written = await store.write(lease, begun(0), change)
    same(written.wake_at, lab.clock.iso(), "the moment at which the wait is due")
    same(await _claimed_ids(store), ["run"], "the due runs")


@case
async def a_wait_has_its_deadline_beside_its_event(lab: StoreLab) -> None:
    store = await lab.open()
    change = Suspend("waiting", wake_key="go", wake_in_ms=1_000)
    written = await store.write(await hold(store), change)
    same(written.wake_at, lab.clock.iso(1_000), "the deadline of the wait")
    run = await read(store, "run")
    same((run.wake_at, run.wake_key), (lab.clock.iso(1_000), "go"), "the waiting run")
    lab.clock.advance(999)
    same(await _claimed_ids(store), [], "the due runs before the deadline")
    lab.clock.advance(1)
    same(await _claimed_ids(store), ["run"], "the due runs at the deadline")


@case
async def a_sleep_ends_at_its_moment(lab: StoreLab) -> None:
    store = await lab.open()
    moment = lab.clock.iso(2_000)
    for run_id, change in (
        ("until", Suspend("sleeping", wake_at=moment)),
        ("for", Suspend("sleeping", wake_in_ms=2_000)),
    ):
        written = await store.write(await hold(store, run_id), change)
        same(written.wake_at, moment, f"the wake-up of {run_id!r}")
        same((await read(store, run_id)).wake_at, moment, f"the stored wake-up of {run_id!r}")
    lab.clock.advance(1_999)
    same(await _claimed_ids(store), [], "the due runs before the moment")
    lab.clock.advance(1)
    same(await _claimed_ids(store), ["for", "until"], "the due runs at the moment")


@case
async def of_a_wait_and_its_event_at_once_the_event_is_never_missed(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    for number in range(10):
        run_id = f"run-{number}"
        lease = await hold(first, run_id)
        await asyncio.gather(
            first.write(lease, Suspend("waiting", wake_key="go")),
            second.emit_event(run_id, "go", number),
        )
        same(await _claimed_ids(second), [run_id], "the due runs")


@case
async def a_stop_keeps_its_first_moment_and_survives_a_takeover(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await hold(first)
    stopped = await second.request_stop("run")
    lab.clock.advance(LEASE_MS)
    again = await second.request_stop("run")
    same(again.stop_requested_at, stopped.stop_requested_at, "the mark of the first stop")
    claim = await second.start_or_resume("run", manifest(), worker_id="bob")
    same(claim.run.stop_requested_at, stopped.stop_requested_at, "the mark the claimer sees")
    if claim.lease is None:
        raise AssertionError("the lapsed run should be granted")
    check((await second.write(claim.lease, begun(0))).stop_requested, "the claimer should hear it")


@case
async def a_stop_makes_a_suspended_run_due(lab: StoreLab) -> None:
    store = await lab.open()
    await store.write(await hold(store, "asleep"), Suspend("sleeping", wake_in_ms=60_000))
    await store.write(await hold(store, "waits"), Suspend("waiting", wake_key="go"))
    await store.write(await hold(store, "parked"), Suspend("parked"))
    for run_id in ("asleep", "waits", "parked"):
        await store.request_stop(run_id)
    claims = await store.claim_due([HANDLER], worker_id="sweeper", lease_ms=LEASE_MS, limit=10)
    same(sorted(claim.run.run_id for claim in claims), ["asleep", "waits"], "the due runs")
    for claim in claims:
        same(claim.run.stop_requested_at, lab.clock.iso(), "the mark the claimer sees")


@case
async def a_run_that_suspends_after_a_stop_is_due_at_once(lab: StoreLab) -> None:
    store = await lab.open()
    changes = (
        Suspend("sleeping", wake_in_ms=60_000),
        Suspend("waiting", wake_key="go"),
        Suspend("parked"),
    )
    for change in changes:
        lease = await hold(store, change.state)
        await store.request_stop(change.state)
        lab.clock.advance(5)
        wake_at = None if change.state == "parked" else lab.clock.iso()
        same((await store.write(lease, change)).wake_at, wake_at, f"when it wakes, {change.state}")
    same(await _claimed_ids(store), ["sleeping", "waiting"], "the due runs")


@case
async def a_stop_of_a_run_that_has_ended_changes_nothing(lab: StoreLab) -> None:
    store = await lab.open()
    for state in ("completed", "stopped", "failed"):
        await finish(store, state, completed(0), state=state)
        lab.clock.advance(5)
        before = await snapshot(store, state)
        same(await store.request_stop(state), before.run, f"the answer for a {state} run")
        await unchanged(store, state, before)


@case
async def a_payload_comes_back_as_it_was_given(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    payloads: list[JsonValue] = [True, 0, -1.5, "", "text", [], {}, [{"a": [None]}]]
    for number, payload in enumerate(payloads):
        await store.emit_event("run", f"key-{number}", payload)
    for number, payload in enumerate(payloads):
        event = await store.load_event("run", f"key-{number}")
        if event is None:
            raise AssertionError(f"the event with payload {payload!r} should be there")
        same(event.payload, payload, "the payload")
        same(json.dumps(event.payload), json.dumps(payload), "the payload, told by its kind")
