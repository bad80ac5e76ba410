"""An agent of Pydantic AI that becomes durable by one capability; a crash repeats no call."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from perdure import AgentTaskSpec, DurableContext, RunManifest, open_store, run_durable
from perdure.durable.scope import current_step
from perdure.engines.pydantic_ai import PerdureDurability, durably

MANIFEST = RunManifest("examples", AgentTaskSpec(id="trip", intent="plan a trip"))
asked: list[int] = []
made: list[str] = []
booking = asyncio.Event()


def model(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    answers = sum(isinstance(message, ModelResponse) for message in messages)
    asked.append(answers)
    if not answers:
        return ModelResponse([ToolCallPart("weather", {"city": at}) for at in ("Faro", "Porto")])
    if answers == 1:
        return ModelResponse([ToolCallPart("book", {"city": "Faro", "seats": 2})])
    return ModelResponse([TextPart("Two seats to Faro.")])


guide = Agent(FunctionModel(model), name="guide", capabilities=[PerdureDurability()])


@guide.tool_plain(metadata={"perdure": {"effect": "pure"}})
async def weather(city: str) -> str:
    made.append(f"weather in {city}")
    return "24 degrees"


@guide.tool_plain(metadata={"perdure": {"effect": "idempotent"}})
async def book(city: str, seats: int) -> str:
    if not booking.is_set():
        booking.set()
        await asyncio.Event().wait()
    made.append(f"booking {current_step().idempotency_key[:8]}")
    return f"{seats} seats to {city}"


async def trip(context: DurableContext) -> str:
    with durably(context):
        return (await guide.run("Where shall we go?")).output


async def main(folder: Path) -> None:
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    first = asyncio.create_task(run_durable(store, run_id="trip", manifest=MANIFEST, task=trip))
    await booking.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    print("interrupted in the booking, after", made)
    done = await run_durable(store, run_id="trip", manifest=MANIFEST, task=trip)
    await store.close()
    print(*(step.intent for step in done.steps), done.result, sep="\n")
    print(f"{len(asked)} model calls and {len(made)} tool calls in two attempts")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
