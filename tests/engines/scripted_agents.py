"""Agents of Pydantic AI with a scripted model, run durably or answering turns."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai import (
    Agent,
    ModelResponse,
    TextPart,
    ToolCallPart,
)
from pydantic_ai.models.function import DeltaToolCall, FunctionModel

from bench.agent_process import MANIFEST
from perdure import (
    ChatTurnEngine,
    ChatTurnIdentity,
    DurableContext,
    run_durable,
)
from perdure.engines.pydantic_ai import PerdureDurability, durably
from perdure.store.protocol import RunStore


def answers(*replies: Any) -> FunctionModel:
    """Return a model that gives one reply after the other: texts, or calls as (name, arguments).

    A call's id is its number.
    """
    calls = 0

    def answer(messages: Any, _: Any) -> ModelResponse:
        nonlocal calls
        given = replies[sum(isinstance(message, ModelResponse) for message in messages)]
        parts: list[Any] = []
        for part in given if isinstance(given, list) else [given]:
            calls += 1
            text = isinstance(part, str)
            parts.append(
                TextPart(part) if text else ToolCallPart(part[0], part[1], tool_call_id=f"c{calls}")
            )
        return ModelResponse(parts)

    async def stream(messages: Any, info: Any) -> AsyncIterator[Any]:
        for index, part in enumerate(answer(messages, info).parts):
            if isinstance(part, TextPart):
                for word in part.content.split(" "):
                    yield f"{word} "
            else:
                assert isinstance(part, ToolCallPart)
                yield {
                    index: DeltaToolCall(
                        part.tool_name,
                        part.args_as_json_str(),
                        tool_call_id=part.tool_call_id,
                    )
                }

    return FunctionModel(answer, stream_function=stream, model_name="scripted")


def durable(model: Any, *tools: Any, **options: Any) -> Agent[Any, Any]:
    """Return an agent named a with a PerdureDurability of these options."""
    output_type = options.pop("output_type", str)
    return Agent(
        model,
        name="a",
        tools=tools,
        output_type=output_type,
        capabilities=[PerdureDurability(**options)],
    )


def asked(store: RunStore, agent: Agent[Any, Any], run_id: str = "r") -> Any:
    """Run an agent as the task of a durable run; return the coroutine of its result."""

    async def task(context: DurableContext) -> Any:
        with durably(context):
            return (await agent.run("Go")).output

    return run_durable(store, run_id=run_id, manifest=MANIFEST, task=task)


async def intents(store: RunStore, run_id: str = "r") -> list[str]:
    return [step.intent for step in await store.read_steps(run_id)]


async def told(engine: ChatTurnEngine, message: str, number: int = 0) -> list[Any]:
    """Run a turn; return its events, without those of the run."""
    turn = await engine.submit(ChatTurnIdentity("", "s", "ann", number), message)
    body = b"".join([lines async for lines in turn.lines()])
    events = [json.loads(line) for line in body.splitlines()]
    return [event for event in events if not event["type"].startswith("session.run.")]
