"""A run that sleeps and then waits for a person, and holds no worker meanwhile."""

from __future__ import annotations

import asyncio

from perdure import (
    AgentTaskSpec,
    AwaitEventTimeoutError,
    DurableContext,
    RunManifest,
    emit_event,
    open_store,
    run_durable,
)


async def expense(ctx: DurableContext) -> str:
    """Wait a little, ask a person, and take the time-out for a no."""
    asked_at = await ctx.now()
    await ctx.sleep(100)
    try:
        answer = await ctx.await_event("approval", timeout_ms=10_000)
    except AwaitEventTimeoutError:
        return f"nobody answered what was asked at {asked_at}"
    return f"{answer['by']} said {answer['verdict']}"


async def main() -> None:
    store = await open_store("memory:")
    manifest = RunManifest("examples", AgentTaskSpec(id="expense", intent="approve an expense"))
    run = asyncio.create_task(
        run_durable(store, run_id="expense:7", manifest=manifest, task=expense)
    )
    seen = ""
    while seen != "waiting":
        await store.wait_for_change("expense:7", timeout_ms=20)
        record = await store.read_run("expense:7")
        if record is not None and record.state != seen:
            seen = record.state
            print(f"the run is {seen}, its lease is {record.lease_holder_id and 'held'}")

    yes = {"by": "Grace", "verdict": "yes"}
    no = {"by": "Ada", "verdict": "no"}
    first = await emit_event(store, "expense:7", "approval", yes)
    second = await emit_event(store, "expense:7", "approval", no)
    print(f"the first emit counts: {first}, a second one does not: {second}")
    done = await run
    await store.close()
    print(done.result)


if __name__ == "__main__":
    asyncio.run(main())
