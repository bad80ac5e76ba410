"""A loop of tools over each provider's API, against an independent server of all of them."""

from __future__ import annotations

import pytest

from perdure.agent.tool_loop import ToolLoop
from perdure.agent.tools import Tool
from perdure.core.records import AgentTaskSpec, RunManifest
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.store.memory import MemoryStore
from tests.backends.aimock import Aimock
from tests.backends.conftest import aimock, aimock_process
from tests.backends.official import APIS, Api, backend_of

__all__ = ["aimock", "aimock_process"]
pytestmark = pytest.mark.node


def get_weather(city: str) -> int:
    """Say how warm it is."""
    return 20


@pytest.mark.parametrize("api", APIS)
async def test_what_a_tool_said_comes_back_to_the_model(aimock: Aimock, api: Api) -> None:
    backend = backend_of(api, aimock.base_url)
    loop = ToolLoop(backend, [Tool(get_weather, effect="pure")])

    async def task(ctx: DurableContext) -> str:
        return (await loop.run(ctx, "what is the weather")).text

    manifest = RunManifest("tests", AgentTaskSpec(id="t", intent="look"))
    done = await run_durable(MemoryStore(), run_id="r", manifest=manifest, task=task)
    await backend.aclose()
    assert done.result == "It is 20 °C in Paris."
    assert [step.intent for step in done.steps] == [
        "loop: model 1",
        "loop: get_weather 1.1",
        "loop: model 2",
    ]
    assert len(aimock.journal()) == 2
