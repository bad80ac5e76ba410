"""A task as a stream: a model answers in events, one final is last, and the session goes on."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from perdure import AgentTaskSpec, open_store
from perdure.agent import (
    AgentBackendInput,
    DurableSessionStore,
    ModelBackend,
    SessionChoice,
    run_agent_task_stream,
    start_runtime_run,
)
from perdure.agent.stream_events import FinalEvent
from perdure.backends import ScriptedBackend
from perdure.observe import runtime_stream_server_sent_event

TASK = AgentTaskSpec("support", "Answer a customer")


async def answer(database: str, message: str) -> list[str]:
    """Answer in the customer's session, as a process of its own would; return the events."""
    store = await open_store(database)
    run = start_runtime_run(workspace_id="shop", task_spec=TASK)
    stream = run_agent_task_stream(
        TASK,
        ModelBackend(ScriptedBackend()),
        input=AgentBackendInput(task=TASK, message=message),
        session=SessionChoice(DurableSessionStore(store), "customer-7", resume=True),
    )
    types: list[str] = []
    async for event in stream:
        run.observe(event)
        types.append(event.type)
        if isinstance(event, FinalEvent):
            run.complete_from(event)
            print(runtime_stream_server_sent_event(event).strip()[:96], "…")
    cost, shown = run.cost(), " ".join(dict.fromkeys(types))
    print(f"{run.status}: {cost.tokens_in} tokens in, {cost.tokens_out} out: {shown}")
    await store.close()
    return types


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:{Path(folder) / 'sessions.db'}"
        first = await answer(database, "Hello, what can you do?")
        second = await answer(database, "What is 6 * 7?")
    assert first[-1] == second[-1] == "final"
    begun = [types[types.index("backend_start") - 1] for types in (first, second)]
    print(f"{begun[0]}, then {begun[1]}; {(first + second).count('final')} finals, each the last")


if __name__ == "__main__":
    asyncio.run(main())
