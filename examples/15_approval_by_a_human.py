"""A tool waits for a human, and no worker waits with it: the first one may be long gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from perdure import AgentTaskSpec, DurableContext, MemoryStore, RunManifest, RunStore, Worker
from perdure import frames as said
from perdure.agent import Approval, Tool, ToolLoop, answer_approval, pending_approvals
from perdure.backends import Prompt, ScriptedBackend

MANIFEST = RunManifest("examples", AgentTaskSpec(id="refund", intent="handle a complaint"))
asked: list[Prompt] = []


def model(prompt: Prompt) -> Sequence[said.Frame]:
    """Stand in for a model: it wants to refund 500, then it says what came of it."""
    asked.append(prompt)
    if len(asked) == 1:
        call = said.tool_call("c1", "refund", {"order": "A-7", "amount": 500})
        return [call, said.upstream_end("tool_calls")]
    return [said.text("Your refund is on its way."), said.upstream_end("stop")]


def refund(order: str, amount: int) -> str:
    """Give money back."""
    return f"{amount} refunded for {order}"


TOOL = Tool(refund, effect="idempotent", needs_approval=lambda given: given["amount"] > 100)


async def complaint(ctx: DurableContext) -> str:
    return (await ToolLoop(ScriptedBackend(model), [TOOL]).run(ctx, "My order is broken!")).text


async def work_until(store: RunStore, state: str) -> None:
    """Let a worker of its own work until the run is in a state."""
    worker = Worker(store, tasks={"complaint": complaint})
    working = asyncio.create_task(worker.run())
    while (run := await store.read_run("refund")) is None or run.state != state:
        await store.wait_for_change("refund", timeout_ms=50)
    await worker.drain()
    await working


async def main() -> None:
    store = MemoryStore()
    await store.enqueue("refund", MANIFEST, handler="complaint")
    await work_until(store, "waiting")
    [request] = await pending_approvals(store, "refund")
    print(f"nobody works; a human is asked for {request.tool} {dict(request.arguments)}")
    less = Approval(True, "half is fair", {"order": "A-7", "amount": 250}, by="Grace")
    await answer_approval(store, "refund", request, less)
    await work_until(store, "completed")
    print(f"the model was told {asked[1].messages[-1]['content']}")
    print(f"{len(asked)} model calls, by two workers")


if __name__ == "__main__":
    asyncio.run(main())
