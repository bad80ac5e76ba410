"""Deliveries: made after a run has ended, in order, again until they succeed or are dead."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from perdure.core.changes import Release, Suspend
from perdure.core.limits import (
    DELIVERY_BACKOFF_MAX_MS,
    DELIVERY_BACKOFF_MS,
    DELIVERY_CLAIM_MS,
    DELIVERY_TRIES_MAX,
)
from perdure.core.records import DeliveryRecord
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, check, same
from perdure.testing.samples import HANDLER, completed, delivery, ended, finish, hold


async def _due(store: RunStore, *, limit: int = 10) -> Sequence[DeliveryRecord]:
    return await store.claim_deliveries([HANDLER], limit=limit)


async def _one(store: RunStore) -> DeliveryRecord:
    claimed = await _due(store)
    same(len(claimed), 1, "the number of deliveries that are due")
    return claimed[0]


async def _stored(store: RunStore, position: int = 0) -> DeliveryRecord:
    deliveries = (await store.read_details("run")).deliveries
    return next(found for found in deliveries if found.position == position)


@case
async def a_delivery_waits_until_its_run_has_ended(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, delivery(0))
    for change in (Release(), Suspend("waiting", wake_key="go"), Suspend("parked")):
        same(list(await _due(store)), [], "the deliveries of a run that goes on")
        await store.write(lease, change)
        same(list(await _due(store)), [], f"the deliveries after {change}")
        lease = await hold(store, retry=True)
    same((await _stored(store)).state, "waiting", "the state of the delivery")
    await store.write(lease, ended("completed"))
    same((await _one(store)).position, 0, "the delivery that is due")


@case
async def a_delivery_that_comes_with_the_end_is_due_at_once(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await finish(first, "run", completed(0), delivery(0, payload={"text": "Añ", "n": [1]}))
    found = await _one(second)
    same((found.topic, found.handler, found.key), ("persist", HANDLER, "key-0"), "the delivery")
    same((found.payload, found.position), ({"text": "Añ", "n": [1]}, 0), "what it carries")
    same((found.state, found.tries, found.tenant), ("waiting", 1, ""), "its standing")
    same((found.run_id, found.created_at), (lease.run_id, lab.clock.iso()), "its run and moment")
    check(found.token, "a claimed delivery should have the token of its claim")


@case
async def deliveries_of_every_end_are_made(lab: StoreLab) -> None:
    store = await lab.open()
    for state in ("completed", "stopped", "failed"):
        await finish(store, state, delivery(0), state=state)
    found = sorted(delivered.run_id for delivered in await _due(store))
    same(found, ["completed", "failed", "stopped"], "the runs with due deliveries")


@case
async def the_deliveries_of_a_retried_run_wait_for_its_next_end(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(0), state="failed")
    lease = await hold(store, retry=True)
    same(list(await _due(store)), [], "the deliveries while it runs again")
    await store.write(lease, delivery(0, payload="second"), delivery(1), ended("completed"))
    found = await _one(store)
    same((found.position, found.payload), (0, None), "the delivery, which stays as it was first")


@case
async def a_delivery_is_claimed_for_a_minute(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await finish(first, "run", delivery(0))
    claimed = await _one(first)
    for store in (first, second):
        same(list(await _due(store)), [], "the deliveries that somebody else makes")
    lab.clock.advance(DELIVERY_CLAIM_MS - 1)
    same(list(await _due(second)), [], "the deliveries just before the claim lapses")
    lab.clock.advance(1)
    again = await _one(second)
    same((again.tries, again.key), (2, claimed.key), "tries and key of the second claim")
    check(again.token != claimed.token, "every claim should have a token of its own")


@case
async def a_delivery_that_was_made_is_over(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(0))
    await store.settle_delivery(await _one(store))
    stored = await _stored(store)
    same((stored.state, stored.delivered_at), ("delivered", lab.clock.iso()), "the delivery")
    same((stored.tries, stored.last_error), (1, None), "its tries and error")
    lab.clock.advance(DELIVERY_BACKOFF_MAX_MS * 2)
    same(list(await _due(store)), [], "the deliveries that are left")


@case
async def deliveries_of_a_run_are_made_in_order(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(2), delivery(0), delivery(1))
    for position in range(3):
        found = await _one(store)
        same(found.position, position, "the delivery whose turn it is")
        same(list(await _due(store)), [], "the deliveries behind it")
        await store.settle_delivery(found, error="once more")
        lab.clock.advance(DELIVERY_BACKOFF_MS - 1)
        same(list(await _due(store)), [], "the deliveries behind one that failed")
        lab.clock.advance(1)
        await store.settle_delivery(await _one(store))
    same(list(await _due(store)), [], "the deliveries that are left")


@case
async def the_order_holds_between_handlers_too(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(0, handler="other"), delivery(1))
    same(list(await _due(store)), [], "the deliveries behind one of another handler")
    [found] = await store.claim_deliveries(["other"], limit=5)
    await store.settle_delivery(found)
    same((await _one(store)).position, 1, "the delivery whose turn it is")


@case
async def one_run_that_is_stuck_holds_up_no_other(lab: StoreLab) -> None:
    store = await lab.open()
    for number in range(3):
        await finish(store, f"run-{number}", delivery(0), delivery(1))
    stuck, *rest = await _due(store)
    for found in rest:
        await store.settle_delivery(found)
    following = await _due(store)
    same([found.position for found in following], [1, 1], "the deliveries that follow")
    check(all(found.run_id != stuck.run_id for found in following), "one run is stuck")


@case
async def deliveries_are_claimed_by_handler_run_and_limit(lab: StoreLab) -> None:
    store = await lab.open()
    leases = [await finish(store, f"run-{number}", delivery(0)) for number in range(5)]
    await finish(store, "other", delivery(0, handler="other"))
    same(list(await store.claim_deliveries([], limit=9)), [], "the deliveries of no handler")
    [found] = await store.claim_deliveries([HANDLER], limit=9, run_id=leases[3].run_id)
    same(found.run_id, leases[3].run_id, "the delivery of the named run")
    same(list(await store.claim_deliveries([HANDLER], limit=9, run_id="nobody")), [], "nobody's")
    same(len(await _due(store, limit=3)), 3, "the deliveries within the limit")
    same(len(await store.claim_deliveries([HANDLER, "other"], limit=9)), 2, "the rest")


@case
async def two_that_claim_at_once_never_get_the_same_delivery(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    for number in range(12):
        await finish(first, f"run-{number:02}", delivery(0))
    claims = await asyncio.gather(*(_due(store, limit=5) for store in [first, second] * 3))
    found = sorted(claimed.run_id for claim in claims for claimed in claim)
    same(found, [f"run-{number:02}" for number in range(12)], "the deliveries of all claims")


@case
async def a_failed_delivery_comes_back_ever_later(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(0))
    wait_ms = DELIVERY_BACKOFF_MS
    for tries in range(1, DELIVERY_TRIES_MAX):
        found = await _one(store)
        same(found.tries, tries, "the number of tries")
        await store.settle_delivery(found, error=f"failure {tries}")
        stored = await _stored(store)
        same((stored.state, stored.last_error), ("waiting", f"failure {tries}"), "the delivery")
        same(stored.due_at, lab.clock.iso(wait_ms), f"the next moment after {tries} tries")
        lab.clock.advance(wait_ms - 1)
        same(list(await _due(store)), [], "the deliveries before that moment")
        lab.clock.advance(1)
        wait_ms = min(wait_ms * 2, DELIVERY_BACKOFF_MAX_MS)
    same(wait_ms, DELIVERY_BACKOFF_MAX_MS, "the longest wait")
    await store.settle_delivery(await _one(store), error="the last")


@case
async def after_the_last_try_a_delivery_is_dead_and_the_next_goes_on(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(0), delivery(1))
    for _ in range(DELIVERY_TRIES_MAX):
        found = await _one(store)
        same(found.position, 0, "the delivery that is tried")
        await store.settle_delivery(found, error="no")
        lab.clock.advance(DELIVERY_BACKOFF_MAX_MS)
    stored = await _stored(store)
    same((stored.state, stored.tries), ("dead", DELIVERY_TRIES_MAX), "the dead delivery")
    same((stored.last_error, stored.delivered_at), ("no", None), "why it died")
    same((await _one(store)).position, 1, "the delivery that goes on")


@case
async def a_delivery_whose_last_try_was_never_settled_is_dead_and_the_next_goes_on(
    lab: StoreLab,
) -> None:
    store = await lab.open()
    lease = await finish(store, "run", delivery(0), delivery(1), delivery(2))
    found = await _one(store)
    for tries in range(2, DELIVERY_TRIES_MAX + 1):
        lab.clock.advance(DELIVERY_CLAIM_MS)
        found = await _one(store)
        same((found.position, found.tries), (0, tries), "the delivery that is tried")
    lab.clock.advance(DELIVERY_CLAIM_MS)
    following = await _one(store)
    same((following.position, following.tries), (1, 1), "the delivery that goes on")
    lost = await _stored(store)
    same((lost.state, lost.tries), ("dead", DELIVERY_TRIES_MAX), "the dead delivery")
    check(lost.last_error, "a dead delivery should say why it died")
    same((lost.token, lost.delivered_at), (None, None), "what is left of its claim")
    await store.settle_delivery(found)
    same(await _stored(store), lost, "the dead delivery")
    lab.clock.advance(DELIVERY_CLAIM_MS)
    for _ in range(1, DELIVERY_TRIES_MAX):
        await store.claim_deliveries([HANDLER], limit=1, run_id=lease.run_id)
        lab.clock.advance(DELIVERY_CLAIM_MS)
    (last,) = await store.claim_deliveries([HANDLER], limit=1, run_id=lease.run_id)
    same((last.position, last.tries), (2, 1), "the last delivery")
    same((await _stored(store, 1)).state, "dead", "the one before it")


@case
async def a_stale_token_settles_nothing(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await finish(first, "run", delivery(0))
    stale = await _one(first)
    lab.clock.advance(DELIVERY_CLAIM_MS)
    claimed = await _one(second)
    before = await _stored(first)
    await first.settle_delivery(stale)
    await first.settle_delivery(stale, error="late")
    same(await _stored(first), before, "the delivery that somebody else makes")
    same(list(await _due(first)), [], "the deliveries that are due")
    await second.settle_delivery(claimed)
    done = await _stored(first)
    same(done.state, "delivered", "the state")
    await second.settle_delivery(claimed, error="too late")
    await first.settle_delivery(stale, error="too late")
    same(await _stored(first), done, "the delivery that was made")


@case
async def a_delivery_that_nobody_has_claimed_cannot_be_settled(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(0))
    unclaimed = await _stored(store)
    await store.settle_delivery(unclaimed)
    await store.settle_delivery(unclaimed, error="no")
    same(await _stored(store), unclaimed, "the delivery that waits")
    claimed = await _one(store)
    await store.settle_delivery(claimed._replace(token=None))
    await store.settle_delivery(claimed._replace(token="0" * 32))
    same((await _stored(store)).state, "waiting", "the delivery that was claimed")


@case
async def a_claimed_delivery_is_settled_once(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(0))
    claimed = await _one(store)
    await store.settle_delivery(claimed, error="no")
    before = await _stored(store)
    lab.clock.advance(5)
    await store.settle_delivery(claimed, error="again")
    await store.settle_delivery(claimed)
    same(await _stored(store), before, "the delivery that is due again")


@case
async def a_late_settlement_counts_while_nobody_else_has_claimed(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(0))
    claimed = await _one(store)
    lab.clock.advance(DELIVERY_CLAIM_MS * 3)
    await store.settle_delivery(claimed)
    same((await _stored(store)).state, "delivered", "the state")


@case
async def a_position_of_the_outbox_is_taken_once(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, delivery(0, payload="first"), delivery(0, payload="second"))
    await store.write(lease, delivery(0, payload="third"), ended("completed"))
    same((await _one(store)).payload, "first", "the payload that came first")
    same(len((await store.read_details("run")).deliveries), 1, "the number of deliveries")
