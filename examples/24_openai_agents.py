"""Agents of the OpenAI SDK, one of which hands over; an interruption repeats no call."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from agents import Agent, function_tool, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message, function_call

from perdure import AgentTaskSpec, DurableContext, RunManifest, open_store
from perdure import run_durable as run
from perdure.durable.scope import current_step
from perdure.engines.openai_agents import run_agent

MANIFEST = RunManifest("examples", AgentTaskSpec(id="trip", intent="plan a trip"))
made: list[str] = []
booking = asyncio.Event()


@function_tool
async def weather(city: str) -> str:
    made.append(f"weather in {city}")
    return "24 degrees"


@function_tool
async def book(city: str, seats: int) -> str:
    if not booking.is_set():
        booking.set()
        await asyncio.Event().wait()
    made.append(f"booking {current_step().idempotency_key[:8]}")
    return f"{seats} seats to {city}"


guide_model = ScriptedModel([
    [function_call("weather", {"city": each}, call_id=each) for each in ("Faro", "Porto")],
    [function_call("transfer_to_clerk", {}, call_id="over")],
])  # fmt: skip
clerk_model = ScriptedModel([
    [function_call("book", {"city": "Faro", "seats": 2}, call_id="train")],
    [assistant_message("Two seats to Faro.")],
])  # fmt: skip
clerk = Agent("clerk", model=clerk_model, tools=[book])
guide = Agent("guide", model=guide_model, tools=[weather], handoffs=[clerk])


async def trip(context: DurableContext) -> str:
    return str((await run_agent(context, guide, "Where shall we go?")).final_output)


async def main(folder: Path) -> None:
    set_tracing_disabled(True)
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    first = asyncio.create_task(run(store, run_id="trip", manifest=MANIFEST, task=trip))
    await booking.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    print("interrupted in the booking, after", made)
    done = await run(store, run_id="trip", manifest=MANIFEST, task=trip)
    await store.close()
    print(*(step.intent for step in done.steps), done.result, sep="\n")
    asked = len(guide_model.calls) + len(clerk_model.calls)
    print(f"{asked} model calls and {len(made)} tool calls in two attempts")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
