"""A model calls tools until it answers; a crash in between repeats none of the calls."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from perdure import AgentTaskSpec, DurableContext, RunManifest, frames, open_store
from perdure import run_durable as run
from perdure.agent import Tool, ToolCall, ToolLoop
from perdure.backends import Prompt, ScriptedBackend

MANIFEST = RunManifest("examples", AgentTaskSpec(id="trip", intent="plan a trip"))
made: list[str] = []
begun = asyncio.Event()


def model(prompt: Prompt) -> Sequence[frames.Frame]:
    """Stand in for a model: it asks for two tools, then for one, then it answers."""
    answers = sum(message["role"] == "assistant" for message in prompt.messages)
    made.append(f"model {answers + 1}")
    if answers == 0:
        both = [frames.tool_call(city, "weather", {"city": city}) for city in ("Faro", "Porto")]
        return [*both, frames.upstream_end("tool_calls")]
    if answers == 1:
        booking = frames.tool_call("train", "book", {"city": "Faro", "seats": 2})
        return [booking, frames.upstream_end("tool_calls")]
    return [frames.text("Two seats to Faro, where it is warmer."), frames.upstream_end("stop")]


def weather(city: str) -> dict[str, int]:
    """Say how warm it will be."""
    made.append(f"weather in {city}")
    return {"degrees": 24 if city == "Faro" else 17}


async def book(city: str, seats: int, call: ToolCall) -> str:
    """Book a train."""
    if not begun.is_set():
        begun.set()
        await asyncio.Event().wait()
    made.append(f"booking {call.idempotency_key[:8]}")
    return f"{seats} seats to {city}"


async def main(folder: Path) -> None:
    tools = [Tool(weather, effect="pure"), Tool(book, effect="idempotent")]

    async def trip(ctx: DurableContext) -> str:
        return (await ToolLoop(ScriptedBackend(model), tools).run(ctx, "Where shall we go?")).text

    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    first = asyncio.create_task(run(store, run_id="trip", manifest=MANIFEST, task=trip))
    await begun.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    print(f"interrupted before the booking, after {len(made)} calls")
    done = await run(store, run_id="trip", manifest=MANIFEST, task=trip)
    await store.close()
    print(*(step.intent for step in done.steps), done.result, sep="\n")
    print(f"{len(made)} calls of models and tools, {len(set(made))} of them for the first time")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
