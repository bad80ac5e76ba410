"""Usage rows: intended before the call, settled once, by whoever made the call and nobody else."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.core.changes import Change, IntendUsage, Release, SettleUsage, Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease, UsageRecord
from perdure.errors import LeaseLostError
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, refused, same, snapshot, unchanged
from perdure.testing.samples import completed, ended, hold

_WHOLE = SettleUsage(
    0,
    model="m-2",
    request_id="r-1",
    tokens_in=10,
    tokens_out=20,
    tokens_cached=3,
    tokens_reasoning=0,
    cost_nanos=5_000_000_000,
    currency="EUR",
    price_version="2026-01",
    tokens_cache_written=4,
)


async def _usage(store: RunStore, run_id: str = "run") -> Sequence[UsageRecord]:
    return (await store.read_details(run_id)).usage


async def _lost(lab: StoreLab, store: RunStore, *changes: Change) -> tuple[Lease, Lease]:
    """Let a holder write `changes` and lose the run; return its lease and the next holder's."""
    lost = await hold(store)
    await store.write(lost, *changes)
    lab.clock.advance(LEASE_MS)
    return lost, await hold(store, worker_id="bob")


@case
async def a_call_is_recorded_before_it_is_made(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, IntendUsage(3, step_index=1, provider="p", model="m-1"))
    [row] = await _usage(store)
    same((row.epoch, row.call, row.state), (1, 3, "intended"), "the row")
    same((row.step_index, row.provider, row.model), (1, "p", "m-1"), "what will be called")
    same((row.intended_at, row.settled_at), (lab.clock.iso(), None), "its moments")
    same((row.tokens_in, row.cost_nanos), (None, None), "what is unknown yet")


@case
async def a_call_is_settled_with_all_that_is_known(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, IntendUsage(0, step_index=1, provider="p", model="m-1"))
    intended_at = lab.clock.iso()
    lab.clock.advance(9)
    await store.write(lease, completed(0), _WHOLE)
    [row] = await _usage(store)
    expected = UsageRecord(
        epoch=1,
        call=0,
        state="settled",
        step_index=1,
        provider="p",
        model="m-2",
        request_id="r-1",
        tokens_in=10,
        tokens_out=20,
        tokens_cached=3,
        tokens_reasoning=0,
        cost_nanos=5_000_000_000,
        currency="EUR",
        price_version="2026-01",
        intended_at=intended_at,
        settled_at=lab.clock.iso(),
        tokens_cache_written=4,
    )
    same(row, expected, "the settled row")


@case
async def what_is_unknown_stays_unknown_and_is_never_zero(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, IntendUsage(0, model="m-1"), SettleUsage(0, tokens_in=0))
    [row] = await _usage(store)
    same((row.state, row.model, row.tokens_in), ("settled", "m-1", 0), "the settled row")
    unknown = (row.tokens_out, row.tokens_cached, row.tokens_reasoning, row.cost_nanos)
    same(unknown, (None, None, None, None), "what the provider did not say")


@case
async def an_intent_is_recorded_once(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, IntendUsage(0, model="first"))
    await store.write(lease, IntendUsage(0, model="second"))
    same([row.model for row in await _usage(store)], ["first"], "the rows")
    await store.write(lease, _WHOLE)
    settled = await _usage(store)
    await store.write(lease, IntendUsage(0, model="third"))
    same(list(await _usage(store)), list(settled), "the settled row")


@case
async def a_settled_row_is_never_changed(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, IntendUsage(0), _WHOLE)
    before = await _usage(store)
    lab.clock.advance(5)
    again = SettleUsage(0, tokens_in=99, cost_nanos=1)
    await store.write(lease, again, SettleUsage(0, "unknown"))
    await store.settle_usage(lease, again)
    await store.settle_usage(lease, SettleUsage(0, "unknown"))
    same(list(await _usage(store)), list(before), "the settled row")


@case
async def a_row_that_was_given_up_may_still_be_settled(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, IntendUsage(0), SettleUsage(0, "unknown"))
    same([row.state for row in await _usage(store)], ["unknown"], "the row that was given up")
    await store.settle_usage(lease, _WHOLE)
    same([row.tokens_out for row in await _usage(store)], [20], "the row, settled late")


@case
async def a_lost_lease_settles_its_own_rows_and_no_others(lab: StoreLab) -> None:
    store = await lab.open()
    lost, lease = await _lost(lab, store, IntendUsage(0), IntendUsage(1))
    await store.write(lease, IntendUsage(0))
    await store.settle_usage(lost, SettleUsage(0, tokens_in=7))
    rows = [(row.epoch, row.call, row.state, row.tokens_in) for row in await _usage(store)]
    same(
        rows,
        [(1, 0, "settled", 7), (1, 1, "unknown", None), (2, 0, "intended", None)],
        "the rows of both attempts",
    )


@case
async def a_forged_lease_settles_nothing(lab: StoreLab) -> None:
    store = await lab.open()
    lost, lease = await _lost(lab, store, IntendUsage(0))
    await store.write(lease, IntendUsage(0))
    await hold(store, "other")
    before = await snapshot(store, "run")
    for forged in (
        lost._replace(epoch=lease.epoch),
        lease._replace(epoch=lost.epoch),
        lost._replace(token=""),
        lost._replace(epoch=9),
        lost._replace(run_id="other"),
        lost._replace(run_id="nobody"),
    ):
        await store.settle_usage(forged, _WHOLE)
    await store.settle_usage(lost, SettleUsage(5, tokens_in=1))
    await unchanged(store, "run", before)


@case
async def an_intent_of_an_attempt_that_is_over_reads_as_unknown(lab: StoreLab) -> None:
    store = await lab.open()
    endings: tuple[Change, ...] = (
        Release(),
        Suspend("sleeping", wake_in_ms=1),
        Suspend("parked"),
        ended("failed"),
        ended("completed"),
    )
    for number, change in enumerate(endings):
        run_id = f"run-{number}"
        lease = await hold(store, run_id)
        await store.write(lease, IntendUsage(0))
        same([row.state for row in await _usage(store, run_id)], ["intended"], "the row before")
        await store.write(lease, change)
        same([row.state for row in await _usage(store, run_id)], ["unknown"], f"after {change}")
        await store.settle_usage(lease, _WHOLE)
        same([row.state for row in await _usage(store, run_id)], ["settled"], "the late bill")


@case
async def a_holder_settles_the_row_of_an_earlier_attempt(lab: StoreLab) -> None:
    store = await lab.open()
    lost, lease = await _lost(lab, store, IntendUsage(0), IntendUsage(1))
    await store.write(lease, IntendUsage(0), _WHOLE._replace(epoch=1))
    first, other, own = await _usage(store)
    same((first.epoch, first.state, first.tokens_cache_written), (1, "settled", 4), "the row")
    same((first.settled_at, first.price_version), (lab.clock.iso(), "2026-01"), "its moment, price")
    same((other.state, own.state), ("unknown", "intended"), "the other rows")
    await store.settle_usage(lost, SettleUsage(0, tokens_in=1))
    same((await _usage(store))[0], first, "the row after a late bill")
    await store.write(lease, *(SettleUsage(0, tokens_in=1, epoch=epoch) for epoch in (2, 3)))
    same((await _usage(store))[2], own, "a row of no earlier attempt")
    with refused(LeaseLostError):
        await store.write(lost, SettleUsage(1, tokens_in=1, epoch=1))
    same((await _usage(store))[1], other, "a row that a lost holder would settle")


@case
async def a_late_holder_still_intends_until_somebody_else_has_claimed(lab: StoreLab) -> None:
    store = await lab.open()
    await store.write(await hold(store), IntendUsage(0))
    lab.clock.advance(LEASE_MS * 2)
    same([row.state for row in await _usage(store)], ["intended"], "the row of a late holder")
    await hold(store, worker_id="bob")
    same([row.state for row in await _usage(store)], ["unknown"], "the row of a lost one")


@case
async def usage_is_read_by_attempt_and_call(lab: StoreLab) -> None:
    store = await lab.open()
    _, lease = await _lost(lab, store, IntendUsage(2), IntendUsage(0), IntendUsage(10))
    await store.write(lease, IntendUsage(1), IntendUsage(0))
    order = [(row.epoch, row.call) for row in await _usage(store)]
    same(order, [(1, 0), (1, 2), (1, 10), (2, 0), (2, 1)], "the order of the rows")
