"""Spans of what only a backend or a loop can tell: whom a model call asks, which tool is called."""

from __future__ import annotations

import pytest

from perdure.agent.tool_loop import ToolLoop
from perdure.backends.protocol import Prompt
from perdure.backends.scripted import ScriptedBackend
from perdure.core.frames import text
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.durable.steps import report_usage
from perdure.store.memory import MemoryStore
from tests.agent.looping import PURE, run
from tests.agent.strict_provider import StrictProvider, calls, says
from tests.observe.spanning import MANIFEST, Watched, attributes, watching

PROMPT = Prompt([{"role": "user", "content": "Hello"}])
TOKENS_IN = "gen_ai.client.inference.usage.input_tokens"


async def test_a_call_of_a_backend_has_its_provider_also_if_it_fails(watched: Watched) -> None:
    error = ConnectionError("a word that nobody should read")
    failing = ScriptedBackend([text("Hi"), error], model="shaky-1")

    async def fails() -> int:
        return len([frame async for frame in failing.stream(PROMPT)])

    async def task(ctx: DurableContext) -> int:
        return await ctx.step("ask", fails, kind="llm")

    with pytest.raises(ConnectionError):
        await run_durable(MemoryStore(), run_id="r", manifest=MANIFEST, task=task)
    call = watched.span("chat shaky-1")
    known = attributes(call)
    assert (known["gen_ai.provider.name"], known["error.type"]) == ("scripted", "ConnectionError")
    assert 0 <= known["gen_ai.response.time_to_first_chunk"] < 30
    assert "gen_ai.response.finish_reasons" not in known
    assert "nobody should read" not in call.to_json()
    [point] = watched.points(TOKENS_IN)
    assert (point.value, point.attributes["gen_ai.request.model"]) == (0, "shaky-1")
    [first] = watched.points("gen_ai.client.inference.time_to_first_chunk")
    assert (first.count, first.attributes["gen_ai.provider.name"]) == (1, "scripted")


def boil(city: str) -> str:
    """Fail."""
    raise ValueError("a word that nobody should read")


async def test_a_tool_of_a_loop_has_its_own_name_whatever_its_step_is_called(
    watched: Watched,
) -> None:
    asked = [(f"c{number}", "degrees", {"city": f"Faro {number}"}) for number in (1, 2)]
    provider = StrictProvider(calls(*asked, ("c3", "boil", {"city": "Faro"})), says("Warm."))
    await run(MemoryStore(), ToolLoop(provider.backend(), [PURE, boil]))
    tools = [span for span in watched.spans if span.name.startswith("execute_tool")]
    assert [span.name for span in tools] == ["execute_tool degrees"] * 2 + ["execute_tool boil"]
    found = [attributes(span) for span in tools]
    assert {each["gen_ai.tool.call.id"] for each in found} == {"c1", "c2", "c3"}
    assert {each["gen_ai.tool.type"] for each in found} == {"function"}
    assert [each.get("error.type") for each in found] == [None, None, "tool_failed"]
    points = watched.points("gen_ai.execute_tool.duration")
    assert {point.attributes["gen_ai.tool.name"]: point.count for point in points} == {
        "degrees": 2,
        "boil": 1,
    }
    first, second = [span for span in watched.spans if span.name == "chat strict-1"]
    assert attributes(first)["gen_ai.response.finish_reasons"] == ("tool_calls",)
    assert attributes(second)["gen_ai.response.finish_reasons"] == ("stop",)
    assert "nobody should read" not in "".join(span.to_json() for span in watched.spans)


async def asks(ctx: DurableContext) -> None:
    """Ask a model that uses tokens."""

    def ask() -> None:
        report_usage(model="m", tokens_in=7, tokens_out=3)

    await ctx.step("ask", ask, kind="llm")


async def test_what_takes_seconds_or_thousands_of_tokens_has_buckets_of_its_own() -> None:
    """The buckets that an exporter has by itself put every duration below five seconds into one."""
    with watching("both") as watched:
        await run_durable(MemoryStore(), run_id="r", manifest=MANIFEST, task=asks)
        bounds = {
            name: watched.points(name)[0].explicit_bounds
            for name in (
                "gen_ai.client.inference.duration",
                "gen_ai.client.operation.duration",
                "gen_ai.client.inference.operation.input_tokens",
                "gen_ai.client.token.usage",
            )
        }
    assert {each[0] for name, each in bounds.items() if "duration" in name} == {0.01}
    assert {each[-1] for name, each in bounds.items() if "duration" in name} == {81.92}
    assert {each[:3] for name, each in bounds.items() if "duration" not in name} == {(1, 4, 16)}
    assert {each[-1] for name, each in bounds.items() if "duration" not in name} == {67_108_864}
