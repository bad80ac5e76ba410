"""What the tests of tool loops share: a tool, a run of a loop, and what its model was told."""

from __future__ import annotations

from typing import Any

from perdure.agent.tool_loop import ToolLoop, ToolLoopResult
from perdure.agent.tools import Tool
from perdure.core.records import AgentTaskSpec, RunManifest
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.store.protocol import RunStore
from tests.agent.strict_provider import StrictProvider

MANIFEST = RunManifest("tests", AgentTaskSpec("loop", "answer with tools"))


def degrees(city: str) -> dict[str, object]:
    """Say how warm it is."""
    return {"city": city, "degrees": 21}


PURE = Tool(degrees, effect="pure")


async def run(
    store: RunStore, loop: ToolLoop, asked: Any = "How warm is Lisbon?", **options: Any
) -> ToolLoopResult:
    async def task(context: DurableContext) -> dict[str, Any]:
        results.append(await loop.run(context, asked, **options))
        return {}

    results: list[ToolLoopResult] = []
    await run_durable(store, run_id="run", manifest=MANIFEST, task=task)
    return results[0]


def told(provider: StrictProvider, place: int = -1) -> list[str]:
    """Return what the model was told by tools, in its prompt at `place`."""
    messages = provider.prompts[place]["messages"]
    return [message["content"] for message in messages if message["role"] == "tool"]
