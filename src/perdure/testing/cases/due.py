"""The sweep: which runs a worker is given to go on with, and which it never is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from perdure.core.changes import Release, Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import Claim, SessionKey
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, check, read, same, snapshot
from perdure.testing.phases import SCENES, stage
from perdure.testing.samples import HANDLER, completed, ended, hold, manifest, row


async def _sweep(
    store: RunStore, handlers: Sequence[str] = (HANDLER,), *, limit: int = 100
) -> Sequence[Claim]:
    return await store.claim_due(
        list(handlers), worker_id="sweeper", lease_ms=LEASE_MS, limit=limit
    )


def _ids(claims: Sequence[Claim]) -> list[str]:
    return sorted(claim.run.run_id for claim in claims)


@case
async def a_sweep_claims_what_is_due_and_nothing_else(lab: StoreLab) -> None:
    store = await lab.open()
    await stage(lab, "lapsed", "lapsed")
    for scene in SCENES:
        if scene not in ("none", "lapsed"):
            await stage(lab, scene, scene)
    resting = ("held", "sleeping", "waiting", "parked", "completed", "stopped", "failed")
    before = {run_id: await snapshot(store, run_id) for run_id in resting}
    claims = await _sweep(store)
    same(_ids(claims), ["lapsed", "queued", "released", "requeued"], "the claimed runs")
    for run_id in resting:
        same(await snapshot(store, run_id), before[run_id], f"the {run_id} run")
    same(_ids(await _sweep(store)), [], "a second sweep")


@case
async def a_run_that_was_swept_is_claimed_as_by_an_opening(lab: StoreLab) -> None:
    store, sweeper = await lab.open(), await lab.open(code_version="v2")
    await store.write(await hold(store), completed(0, {"x": 1}), row(1, "a", "b"))
    lab.clock.advance(LEASE_MS)
    [claim] = await sweeper.claim_due([HANDLER], worker_id="sweeper", lease_ms=7_000, limit=5)
    if claim.lease is None:
        raise AssertionError("a sweep should come with leases")
    same((claim.lease.epoch, claim.lease.worker_id), (2, "sweeper"), "the lease")
    same((claim.run.epoch, claim.run.strikes, claim.run.state), (2, 1, "running"), "the run")
    same(claim.run.lease_expires_at, lab.clock.iso(7_000), "the deadline")
    same((claim.run.handler, claim.run.manifest), (HANDLER, manifest()), "what it goes on from")
    same([step.result for step in claim.steps], [{"x": 1}], "the steps")
    same(claim.next_seq, 3, "the next seq")
    same(claim.run, await read(store, "run"), "the claimed run, as it is read")
    attempts = (await store.read_details("run")).attempts
    same([attempt.ended for attempt in attempts], ["lost", None], "the attempts")
    same(attempts[1].code_version, "v2", "the code version of the sweeper")
    await sweeper.write(claim.lease, completed(1), ended("completed"))


@case
async def only_a_lease_that_was_not_given_back_costs_a_strike_in_a_sweep(lab: StoreLab) -> None:
    store = await lab.open()
    await store.write(await hold(store, "released"), Release())
    await store.write(await hold(store, "asleep"), Suspend("sleeping", wake_in_ms=5))
    await store.enqueue("queued", manifest(), handler=HANDLER)
    await hold(store, "crashed")
    lab.clock.advance(LEASE_MS)
    strikes = {claim.run.run_id: claim.run.strikes for claim in await _sweep(store)}
    same(strikes, {"released": 0, "asleep": 0, "queued": 0, "crashed": 1}, "the strikes")


@case
async def a_sweep_claims_only_for_its_own_handlers(lab: StoreLab) -> None:
    store = await lab.open()
    for run_id, handler in (("a", "one"), ("b", "two"), ("c", "three"), ("none", None)):
        await store.write(await hold(store, run_id, handler=handler), Release())
    await store.enqueue("queued", manifest(), handler="three")
    same(_ids(await _sweep(store, [])), [], "a sweep for no handler")
    same(_ids(await _sweep(store, ["four", "One", "on%"])), [], "a sweep for other handlers")
    same(_ids(await _sweep(store, ["one", "two"])), ["a", "b"], "a sweep for two handlers")
    same(_ids(await _sweep(store, ["three"])), ["c", "queued"], "a sweep for the third")


@case
async def a_sweep_keeps_its_limit(lab: StoreLab) -> None:
    store = await lab.open()
    for number in range(4):
        await store.write(await hold(store, f"released-{number}"), Release())
        await store.enqueue(f"queued-{number}", manifest(), handler=HANDLER)
        await store.write(await hold(store, f"asleep-{number}"), Suspend("sleeping", wake_in_ms=1))
    lab.clock.advance(1)
    found: list[str] = []
    while claims := await _sweep(store, limit=5):
        check(len(claims) <= 5, f"a sweep of 5 found {len(claims)}")
        found += _ids(claims)
    same(len(found), 12, "the runs found by all sweeps")
    same(len(set(found)), 12, "the different runs found by all sweeps")


@case
async def a_parked_run_is_not_due_even_if_it_has_a_moment_to_wake_at(lab: StoreLab) -> None:
    store = await lab.open()
    await store.write(await hold(store), Suspend("parked", wake_in_ms=5, wake_key="go"))
    await store.emit_event("run", "go", 1)
    lab.clock.advance(60_000)
    same(_ids(await _sweep(store)), [], "the due runs")


@case
async def turns_that_wait_for_their_session_do_not_hide_what_is_due(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store, "turn-0", session=SessionKey("s", 0))
    for index in range(1, 30):
        key = SessionKey("s", index)
        await store.enqueue(f"turn-{index}", manifest(), handler=HANDLER, session=key)
    lab.clock.advance(1)
    await store.enqueue("free", manifest(), handler=HANDLER)
    same(_ids(await _sweep(store, limit=1)), ["free"], "the due runs")


@case
async def two_sweeps_at_once_never_get_the_same_run(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    for number in range(20):
        await first.enqueue(f"run-{number:02}", manifest(), handler=HANDLER)
    found: list[str] = []
    while True:
        sweeps = await asyncio.gather(
            *(_sweep(store, limit=4) for store in (first, second, first, second))
        )
        claims = [claim for sweep in sweeps for claim in sweep]
        if not claims:
            break
        found += _ids(claims)
    same(sorted(found), [f"run-{number:02}" for number in range(20)], "the runs that were found")
    for run_id in found:
        same((await read(first, run_id)).epoch, 1, f"the epoch of {run_id}")


@case
async def a_sweep_and_an_opening_at_once_never_get_the_same_run(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    for number in range(8):
        run_id = f"run-{number}"
        await first.enqueue(run_id, manifest(), handler=HANDLER)
        opened, swept = await asyncio.gather(
            first.start_or_resume(run_id, manifest(), worker_id="ann"),
            _sweep(second),
            return_exceptions=True,
        )
        got = [isinstance(opened, Claim), not isinstance(swept, BaseException) and bool(swept)]
        same(sum(got), 1, f"the number of those who got {run_id}")
        same((await read(first, run_id)).epoch, 1, f"the epoch of {run_id}")


@case
async def enqueueing_at_once_queues_one_run(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    runs = await asyncio.gather(
        *(store.enqueue("run", manifest(), handler=HANDLER) for store in [first, second] * 4)
    )
    check(all(run == runs[0] for run in runs), "everybody should be answered with the same run")
    same(_ids(await _sweep(first)), ["run"], "the queued runs")
