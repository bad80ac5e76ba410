"""Deliveries: made at least once, in order, until they succeed."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.records import DeliveryRecord
from perdure.durable import outbox as outboxes
from perdure.durable.outbox import Outbox
from perdure.store.protocol import RunStore
from perdure.testing.samples import delivery, finish, hold
from tests.durable.handles import Handles, Trouble, TroubledStore, until, within


class Hook:
    """Takes deliveries; fails as often as it is told."""

    def __init__(self, *, fails: int = 0) -> None:
        self.made: list[DeliveryRecord] = []
        self.tried = 0
        self._fails = fails

    async def __call__(self, one: DeliveryRecord) -> None:
        self.tried += 1
        if self.tried <= self._fails:
            raise ConnectionError("the product's database is away")
        self.made.append(one)

    @property
    def places(self) -> list[tuple[str, int]]:
        return [(one.run_id, one.position) for one in self.made]


async def deliveries_of(store: RunStore, run_id: str = "run") -> list[str]:
    return [one.state for one in (await store.read_details(run_id)).deliveries]


async def test_a_delivery_is_made_once_its_run_has_ended(store: RunStore) -> None:
    hook = Hook()
    outbox = Outbox(store, {"letters": hook})
    lease = await hold(store)
    await store.write(lease, delivery(payload={"text": "hello"}))
    assert await outbox.deliver_due() == 0
    await finish(store, "other", delivery())
    assert await outbox.deliver_due() == 1
    assert hook.places == [("other", 0)]
    assert await deliveries_of(store, "other") == ["delivered"]
    assert await outbox.deliver_due() == 0


async def test_the_hook_gets_payload_key_and_topic(store: RunStore) -> None:
    hook = Hook()
    await finish(store, "run", delivery(payload={"text": "hello"}))
    await Outbox(store, {"letters": hook}).deliver_due()
    (made,) = hook.made
    assert (made.payload, made.key, made.topic, made.tries) == (
        {"text": "hello"},
        "key-0",
        "persist",
        1,
    )


async def test_deliveries_of_a_run_are_made_in_order(store: RunStore) -> None:
    hook = Hook()
    outbox = Outbox(store, {"letters": hook})
    await finish(store, "run", delivery(0), delivery(1), delivery(2))
    for expected in range(3):
        assert await outbox.deliver_due() == 1
        assert hook.places[-1] == ("run", expected)


async def test_only_the_named_handlers_are_served(store: RunStore) -> None:
    hook = Hook()
    await finish(store, "run", delivery(handler="others"))
    assert await Outbox(store, {"letters": hook}).deliver_due() == 0
    assert await Outbox(store, {"others": hook}).deliver_due() == 1


async def test_a_failure_is_kept_and_tried_again_after_a_pause(handles: Handles) -> None:
    store = await handles.open(clock=handles.clock)
    hook = Hook(fails=2)
    outbox = Outbox(store, {"letters": hook})
    await finish(store, "run", delivery(0), delivery(1))
    assert await outbox.deliver_due() == 1
    (first, second) = (await store.read_details("run")).deliveries
    assert (first.state, first.tries) == ("waiting", 1)
    assert first.last_error == "ConnectionError: the product's database is away"
    assert second.tries == 0, "a later delivery waits for the earlier one"
    assert await outbox.deliver_due() == 0
    handles.clock.advance(1_000)
    assert await outbox.deliver_due() == 1
    handles.clock.advance(1_999)
    assert await outbox.deliver_due() == 0
    handles.clock.advance(1)
    assert await outbox.deliver_due() == 1
    assert hook.places == [("run", 0)]
    assert await outbox.deliver_due() == 1
    assert await deliveries_of(store) == ["delivered", "delivered"]


async def test_after_twenty_tries_a_delivery_is_dead_and_the_next_is_made(
    handles: Handles,
) -> None:
    store = await handles.open(clock=handles.clock)
    hook = Hook(fails=20)
    outbox = Outbox(store, {"letters": hook})
    await finish(store, "run", delivery(0), delivery(1))
    for _ in range(20):
        assert await outbox.deliver_due() == 1
        handles.clock.advance(3_600_000)
    assert await deliveries_of(store) == ["dead", "waiting"]
    assert await outbox.deliver_due() == 1
    assert hook.places == [("run", 1)]


async def test_a_delivery_that_takes_too_long_is_given_up_before_its_claim_lapses(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < outboxes.DELIVERY_TIMEOUT_MS < 60_000
    monkeypatch.setattr(outboxes, "DELIVERY_TIMEOUT_MS", 20)
    cancelled: list[str] = []

    async def hang(one: DeliveryRecord) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(one.key)

    await finish(store, "run", delivery())
    assert await within(Outbox(store, {"letters": hang}).deliver_due()) == 1
    assert cancelled == ["key-0"]
    (one,) = (await store.read_details("run")).deliveries
    assert (one.state, (one.last_error or "")[:12]) == ("waiting", "TimeoutError")


async def test_one_slow_delivery_does_not_hold_up_the_others(store: RunStore) -> None:
    go_on = asyncio.Event()
    made: list[str] = []

    async def deliver(one: DeliveryRecord) -> None:
        if one.run_id == "slow":
            await go_on.wait()
        made.append(one.run_id)

    await finish(store, "slow", delivery())
    await finish(store, "quick", delivery())
    delivering = asyncio.ensure_future(Outbox(store, {"letters": deliver}).deliver_due())
    await until(lambda: made == ["quick"])
    go_on.set()
    assert await within(delivering) == 2


async def test_a_long_error_is_cut(store: RunStore) -> None:
    async def fail(_one: DeliveryRecord) -> None:
        raise ValueError("x" * 100_000)

    await finish(store, "run", delivery())
    await Outbox(store, {"letters": fail}).deliver_due()
    (one,) = (await store.read_details("run")).deliveries
    assert len(one.last_error or "") <= 2_000


async def test_two_outboxes_never_make_the_same_delivery_at_once(handles: Handles) -> None:
    first, second = await handles.open(), await handles.open()
    hooks = Hook(), Hook()
    for number in range(10):
        await finish(first, f"run {number}", delivery())
    await asyncio.gather(
        Outbox(first, {"letters": hooks[0]}).deliver_due(),
        Outbox(second, {"letters": hooks[1]}).deliver_due(),
    )
    made = hooks[0].places + hooks[1].places
    assert sorted(made) == sorted({(f"run {number}", 0) for number in range(10)})


async def test_what_follows_a_run_is_delivered_at_once_and_in_order(store: RunStore) -> None:
    hook = Hook()
    outbox = Outbox(store, {"letters": hook})
    await finish(store, "run", delivery(0), delivery(1))
    await finish(store, "other", delivery(0))
    await within(outbox.follow_up("run", wait_ms=5_000))
    await within(outbox.settle(timeout_ms=5_000))
    assert hook.places == [("run", 0), ("run", 1)]


async def test_a_follow_up_waits_for_the_first_try_and_no_longer_than_asked(
    store: RunStore,
) -> None:
    go_on = asyncio.Event()
    made: list[str] = []

    async def deliver(one: DeliveryRecord) -> None:
        await go_on.wait()
        made.append(one.run_id)

    outbox = Outbox(store, {"letters": deliver})
    await finish(store, "run", delivery())
    await within(outbox.follow_up("run", wait_ms=10))
    assert made == []
    go_on.set()
    await within(outbox.settle(timeout_ms=5_000))
    assert made == ["run"]


async def test_a_follow_up_of_a_store_that_is_away_is_left_to_a_worker(store: RunStore) -> None:
    trouble = Trouble()
    outbox = Outbox(TroubledStore(store, trouble), {"letters": Hook()})
    await finish(store, "run", delivery())
    trouble.is_down = True
    await within(outbox.follow_up("run", wait_ms=5_000))
    assert await deliveries_of(store) == ["waiting"]


async def test_a_hook_that_is_cancelled_from_within_has_failed(store: RunStore) -> None:
    async def give_up(_: DeliveryRecord) -> None:
        inner = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    waits: list[int] = []
    await finish(store, "run", delivery())
    assert await Outbox(store, {"letters": give_up}, on_failure=waits.append).deliver_due() == 1
    (failed,) = (await store.read_details("run")).deliveries
    assert (failed.state, failed.token) == ("waiting", None)
    assert failed.last_error is not None
    assert failed.last_error.startswith("CancelledError")
    assert waits == [1_000]


async def test_a_delivery_whose_worker_is_cancelled_keeps_its_claim(store: RunStore) -> None:
    begun = asyncio.Event()

    async def hang(_: DeliveryRecord) -> None:
        begun.set()
        await asyncio.Event().wait()

    await finish(store, "run", delivery())
    outbox = Outbox(store, {"letters": hang})
    (claimed,) = await outbox.claim_due()
    making = asyncio.ensure_future(outbox.deliver(claimed))
    await begun.wait()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    (left,) = (await store.read_details("run")).deliveries
    assert (left.state, left.tries, left.last_error) == ("waiting", 1, None)
