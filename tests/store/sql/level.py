"""The runs that a database of each level is filled with, and the tasks that go on with them.

A database is filled by the code of its level and gone on with by the code of today: only what both
have is used here, and a task that stands in a dump is never changed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import perdure
from perdure.core.changes import CompleteStep, Suspend
from perdure.core.frames import text, upstream_end
from perdure.testing import ManualClock

DAY_MS = 24 * 60 * 60 * 1_000
VALUES: dict[str, Any] = {
    "text": "Grüße \u2028 \U0001f33b \\ ' \"",
    "numbers": [0, -1, 2**53 - 1, 0.1, 1e21],
    "nothing": None,
    "nested": {"": [], "true": [True, False, {}]},
}
FINISHED = perdure.ChatTurnIdentity("", "kitchen", "ann", 0)
INTERRUPTED = perdure.ChatTurnIdentity("", "kitchen", "ann", 1)
WORDS = ("A ", "table ", "and ", "chairs")
DIED = 9

Task = Callable[[perdure.DurableContext], Awaitable[Any]]


def manifest(run_id: str) -> perdure.RunManifest:
    spec = perdure.AgentTaskSpec(id=run_id, intent=f"Do what {run_id} is about")
    return perdure.RunManifest("level", spec)


def tasks(executed: list[str], *, on_last_step: Callable[[], Awaitable[None]]) -> dict[str, Task]:
    """Return the tasks by name; `executed` is told every step that is executed."""

    async def step(context: perdure.DurableContext, name: str, value: Any = "done") -> Any:
        def act() -> Any:
            executed.append(name)
            return value

        return await context.step(name, act)

    async def whole(context: perdure.DurableContext) -> Any:
        return await step(context, "whole: values", VALUES)

    async def broken(context: perdure.DurableContext) -> Any:
        await step(context, "broken: before")
        if "broken: repaired" not in executed:
            raise ValueError("It broke")
        return await step(context, "broken: after")

    async def asleep(context: perdure.DurableContext) -> Any:
        await step(context, "asleep: before")
        await context.sleep(DAY_MS)
        return await step(context, "asleep: after")

    async def waiting(context: perdure.DurableContext) -> Any:
        await step(context, "waiting: before")
        answer = await context.await_event("approval")
        return await step(context, "waiting: after", answer)

    async def crashed(context: perdure.DurableContext) -> Any:
        first = await step(context, "crashed: first", VALUES)
        await step(context, "crashed: second")

        async def last() -> Any:
            await on_last_step()
            executed.append("crashed: last")
            return first

        return await context.step("crashed: last", last, kind="tool", effect="idempotent")

    async def queued(context: perdure.DurableContext) -> Any:
        return await step(context, "queued: only")

    async def parked(context: perdure.DurableContext) -> Any:
        await step(context, "parked: before")
        return await step(context, "parked: after")

    every = (whole, broken, asleep, waiting, crashed, queued, parked)
    return {task.__name__: task for task in every}


def producer(*, pause: asyncio.Event | None) -> Callable[[Any], AsyncIterator[Any]]:
    """Return a producer that says WORDS; with `pause`, it waits before the last one."""

    async def produce(turn: Any) -> AsyncIterator[Any]:
        for word in WORDS[:-1]:
            yield text(word)
        if pause is not None and turn.identity == INTERRUPTED:
            await pause.wait()
        yield text(WORDS[-1])
        yield upstream_end("stop")

    return produce


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `holds`, and no longer than a minute."""
    async with asyncio.timeout(60):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.01)


def in_state(store: perdure.RunStore, run_id: str, *states: str) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        run = await store.read_run(run_id)
        return run is not None and run.state in states

    return holds


async def fill(url: str) -> None:
    """Make a run of every kind, then die in the middle of a step and of a turn."""
    store = await perdure.open_store(url, clock=ManualClock(), code_version="level")
    await fill_with_runs(store)
    await fill_with_turns(store)


async def fill_with_runs(store: perdure.RunStore) -> None:
    async def nothing() -> None:
        raise AssertionError("no run of this worker has a last step")

    known = tasks([], on_last_step=nothing)
    worker = perdure.Worker(
        store, tasks={name: known[name] for name in ("whole", "broken", "asleep", "waiting")}
    )
    working = asyncio.ensure_future(worker.run())
    if hasattr(worker, "schedule"):  # Since level 104.
        await worker.schedule("whole", task="whole", every_ms=30 * DAY_MS)
    ends = [
        ("whole", "whole", "completed"),
        ("broken", "broken", "failed"),
        ("asleep", "asleep", "sleeping"),
        ("stopped", "asleep", "sleeping"),
        ("waiting", "waiting", "waiting"),
        ("told", "waiting", "waiting"),
    ]
    for run_id, task, _ in ends:
        await worker.submit(task, run_id=run_id, manifest=manifest(run_id))
    for run_id, _, state in ends:
        await until(in_state(store, run_id, state))
    await store.request_stop("stopped")
    worker.wake()
    await until(in_state(store, "stopped", "stopped"))
    await worker.drain()
    await working
    await perdure.emit_event(store, "told", "approval", {"by": "ann"})
    for each in (store, store.for_tenant("acme")):
        await each.enqueue("queued", manifest("queued"), handler="queued")
    claim = await store.start_or_resume("parked", manifest("parked"), worker_id="level")
    assert claim.lease is not None
    before = CompleteStep(0, "parked: before", '"done"')
    await store.write(claim.lease, before, Suspend("parked", reason="replay_divergence"))


async def fill_with_turns(store: perdure.RunStore) -> None:
    def refuse(turn: perdure.FinishedTurn) -> None:
        raise OSError("the product's database is away")

    engine = perdure.ChatTurnEngine(
        store,
        produce=producer(pause=asyncio.Event()),
        hooks=perdure.ChatTurnHooks(persist_assistant_message=refuse),
    )
    await engine.submit(FINISHED, "What do I need?")

    async def refused() -> bool:
        details = await store.read_details("chat:kitchen:0")
        return any(delivery.tries for delivery in details.deliveries)

    await until(refused)
    await engine.submit(INTERRUPTED, "And what else?")

    async def die() -> None:
        async def half_said() -> bool:
            return len(await store.read_frames("chat:kitchen:1", after=0, limit=9)) >= 3

        await until(half_said)
        os._exit(DIED)

    known = tasks([], on_last_step=die)
    worker = perdure.Worker(store, tasks={"crashed": known["crashed"]})
    await worker.submit("crashed", run_id="crashed", manifest=manifest("crashed"))
    await worker.run()


if __name__ == "__main__":
    asyncio.run(fill(sys.argv[1]))
