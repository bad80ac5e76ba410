"""Handles: several on the same data, each closed for itself, and a hint when something changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from perdure.core.changes import Release, SettleUsage
from perdure.core.limits import LEASE_MS
from perdure.core.records import DeliveryRecord, Lease
from perdure.errors import LeaseHeldError, PerdureError, StoreClosedError
from perdure.store.closing import before_close
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, check, read, refused, same, snapshot, unchanged
from perdure.testing.samples import HANDLER, completed, delivery, finish, hold, manifest, row

_PATIENCE_S = 20
"""How long a case waits for what should take milliseconds."""


@case
async def what_one_handle_wrote_every_other_reads_at_once(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await hold(first)
    for number in range(10):
        await first.write(lease, completed(number, number), row(number + 1, "x"))
        same(len(await second.read_steps("run")), number + 1, "the steps")
        same(len(await second.read_frames("run")), number + 1, "the frames")
        await second.emit_event("run", f"key-{number}", number)
        same(len((await first.read_details("run")).events), number + 1, "the events")


@case
async def closing_a_handle_leaves_the_data_and_other_handles_alone(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await hold(first)
    await first.write(lease, completed(0, "kept"))
    before = await snapshot(second, "run")
    await first.close()
    await unchanged(second, "run", before)
    await second.write(lease, completed(1))
    await second.close()
    third = await lab.open()
    same(len(await third.read_steps("run")), 2, "the steps that a new handle reads")
    await third.write(lease, completed(2))


@case
async def a_lease_outlives_the_handle_that_was_closed(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await hold(first, lease_ms=10_000)
    await first.close()
    before = await snapshot(second, "run")
    for store in (second, await lab.open()):
        sweep = await store.claim_due([HANDLER], worker_id="bob", lease_ms=LEASE_MS, limit=9)
        same(list(sweep), [], "what a sweep finds while the lease lasts")
        with refused(LeaseHeldError):
            await hold(store, worker_id="bob")
    await unchanged(second, "run", before)
    await second.write(lease, completed(0))
    lab.clock.advance(10_000)
    same((await hold(second, worker_id="bob")).epoch, 2, "the epoch once it has lapsed")


@case
async def closing_twice_is_closing_once(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    for _ in range(3):
        await store.close()
    await asyncio.gather(store.close(), store.close())
    unused = await lab.open()
    await unused.close()


def _every_call(
    store: RunStore, lease: Lease, claimed: DeliveryRecord
) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "start_or_resume": lambda: store.start_or_resume("run", manifest(), worker_id="ann"),
        "enqueue": lambda: store.enqueue("queued", manifest(), handler=HANDLER),
        "write": lambda: store.write(lease, completed(1)),
        "renew": lambda: store.renew([lease], LEASE_MS),
        "claim_due": lambda: store.claim_due(
            [HANDLER], worker_id="sweeper", lease_ms=LEASE_MS, limit=1
        ),
        "emit_event": lambda: store.emit_event("run", "late", 1),
        "request_stop": lambda: store.request_stop("run"),
        "settle_usage": lambda: store.settle_usage(lease, SettleUsage(0)),
        "claim_deliveries": lambda: store.claim_deliveries([HANDLER], limit=1),
        "settle_delivery": lambda: store.settle_delivery(claimed),
        "read_run": lambda: store.read_run("run"),
        "list_runs": lambda: store.list_runs(),
        "read_steps": lambda: store.read_steps("run"),
        "load_event": lambda: store.load_event("run", "late"),
        "read_frames": lambda: store.read_frames("run"),
        "read_details": lambda: store.read_details("run"),
        "delete": lambda: store.delete("run"),
        "wait_for_change": lambda: store.wait_for_change("run", timeout_ms=1),
    }


@case
async def a_closed_handle_answers_no_call(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    await finish(first, "done", delivery(0))
    [found] = await first.claim_deliveries([HANDLER], limit=1)
    lease = await hold(first)
    view = first.for_tenant("acme")
    before = await snapshot(second, "run")
    await first.close()
    for store in (first, view):
        for name, call in _every_call(store, lease, found).items():
            try:
                with refused(StoreClosedError):
                    await call()
            except AssertionError as error:
                error.add_note(f"the call was {name}")
                raise
    await unchanged(second, "run", before)
    same(await second.read_run("queued"), None, "a run queued by a closed handle")
    [stored] = (await second.read_details("done")).deliveries
    same(stored.state, "waiting", "a delivery settled by a closed handle")


@case
async def a_handle_that_closes_waits_for_its_work_and_grants_no_more_claims(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await hold(first)
    await first.enqueue("queued", manifest(), handler=HANDLER)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def rest() -> None:
        asked.set()
        await go_on.wait()
        await first.write(lease, completed(0), Release("drained"))

    before_close(first.handle, rest)
    closes = [asyncio.ensure_future(first.close()) for _ in range(2)]
    async with asyncio.timeout(_PATIENCE_S):
        asking = asyncio.ensure_future(asked.wait())
        await asyncio.wait((asking, *closes), return_when=asyncio.FIRST_COMPLETED)
        check(asking.done(), "it closed without a word to what works with it")
        with refused(StoreClosedError):
            await first.start_or_resume("new", manifest(), worker_id="ann")
        with refused(StoreClosedError):
            await first.claim_due([HANDLER], worker_id="ann", lease_ms=LEASE_MS, limit=1)
        check(not any(close.done() for close in closes), "it closed under what works with it")
        go_on.set()
        await asyncio.gather(*closes)
    same(len(await second.read_steps("run")), 1, "the steps that were written at last")
    same(await second.read_run("new"), None, "the run that was refused")
    same((await hold(second)).epoch, 2, "the epoch of the next claim")
    same((await read(second, "run")).strikes, 0, "the strikes")


@case
async def a_close_finishes_the_writes_that_were_accepted(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    leases = [await hold(first, f"run-{number}") for number in range(10)]
    writes = [asyncio.ensure_future(first.write(lease, completed(0))) for lease in leases]
    await asyncio.sleep(0)
    await first.close()
    answers = await asyncio.gather(*writes, return_exceptions=True)
    for number, answer in enumerate(answers):
        steps = len(await second.read_steps(f"run-{number}"))
        if isinstance(answer, BaseException):
            check(isinstance(answer, PerdureError), f"a refused write raised {answer!r}")
        same(steps, 0 if isinstance(answer, BaseException) else 1, f"the steps of run {number}")


@case
async def a_cancelled_write_has_happened_whole_or_not_at_all(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await hold(first)
    for number in range(20):
        write = asyncio.ensure_future(first.write(lease, completed(number), row(number + 1, "x")))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        write.cancel()
        await asyncio.wait([write])
        await first.write(lease, completed(number), row(number + 1, "x"))
        same(len(await second.read_steps("run")), number + 1, "the steps")
        same(len(await second.read_frames("run")), number + 1, "the frames")


@case
async def a_wait_for_a_change_ends_in_time(lab: StoreLab) -> None:
    store = await lab.open()
    await hold(store)
    async with asyncio.timeout(_PATIENCE_S):
        for run_id in ("run", "nobody", None):
            await store.wait_for_change(run_id, timeout_ms=5)


@case
async def a_wait_for_a_change_stands_the_writes_of_another_handle(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await hold(first)
    async with asyncio.timeout(_PATIENCE_S):
        for position, run_id in enumerate(("run", None)):
            wait = asyncio.ensure_future(second.wait_for_change(run_id, timeout_ms=2_000))
            while not wait.done():
                await first.write(lease, completed(position))
                await asyncio.sleep(0.005)
            await wait


@case
async def an_open_handle_reads_while_another_writes(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    lease = await hold(first)

    async def write_all() -> None:
        for position in range(30):
            await first.write(lease, completed(position), row(position + 1, "x"))

    async def read_all() -> None:
        while (await read(second, "run")).step_count < 30:
            frames = [frame.seq for frame in await second.read_frames("run")]
            same(frames, list(range(1, len(frames) + 1)), "the frames are a prefix")

    async with asyncio.timeout(_PATIENCE_S):
        await asyncio.gather(write_all(), read_all())
