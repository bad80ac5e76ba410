"""Agents of Pydantic AI: what is recorded, and what a crash costs."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    FunctionToolset,
    ModelMessagesTypeAdapter,
    ModelResponse,
    RunContext,
    TextPart,
    ToolCallPart,
)
from pydantic_ai.capabilities import ModelFallback
from pydantic_ai.exceptions import ModelRetry
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.toolsets import DynamicToolset

from bench.agent_process import FINAL, MANIFEST, PROMPT, TURN, Notes, booker, run
from perdure import (
    ChatTurnEngine,
    DurableContext,
    MemoryStore,
    Retry,
    open_store,
    run_durable,
)
from perdure.durable.scope import current_step
from perdure.engines.pydantic_ai import AgentTurns, PerdureDurability, durably
from perdure.errors import StepFailedError, UsageError
from tests.engines.scripted_agents import answers, asked, durable, intents, told

ROOT = Path(__file__).parents[2]
TOOLS = "booker__function_toolset__<agent>.call_tool"
INTENTS = [
    "booker__model.request #1", f"{TOOLS}:look #1.1", f"{TOOLS}:listen #1.2",
    "booker__model.request #2", f"{TOOLS}:book #2.1", "booker__model.request #3",
]  # fmt: skip
"""Renaming any of these parks every run that is under way."""


async def killed(folder: Path, way: str, point: str) -> Notes:
    words = [sys.executable, "-m", "bench.agent_process", way, str(folder), point]
    process = await asyncio.to_thread(subprocess.run, words, cwd=ROOT, timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL
    return Notes(folder)


# Crashes.


async def test_a_run_that_is_killed_in_a_tool_asks_no_model_again(tmp_path: Path) -> None:
    notes = await killed(tmp_path, "run", "tool")
    store = await open_store(f"sqlite:{tmp_path / 'runs.db'}")
    assert await run(store, booker(notes, PerdureDurability())) == "".join(FINAL[11:])
    assert Counter(notes.lines) == {
        "model 1": 1, "tool look": 1, "tool listen": 1, "model 2": 1, "tool book": 2, "model 3": 1
    }  # fmt: skip
    assert await intents(store, "trip") == INTENTS
    kinds = [step.kind for step in await store.read_steps("trip")]
    assert kinds == ["llm", "tool", "tool", "llm", "tool", "llm"]
    await store.close()


async def test_a_request_whose_reply_was_lost_stands_in_the_bill_as_unknown(
    tmp_path: Path,
) -> None:
    notes = await killed(tmp_path, "run", "model")
    store = await open_store(f"sqlite:{tmp_path / 'runs.db'}")
    await run(store, booker(notes, PerdureDurability()))
    assert Counter(notes.lines)["model 2"] == 2
    usage = (await store.read_details("trip")).usage
    assert [(row.step_index, row.tokens_in is None) for row in usage] == [
        (0, False), (3, True), (3, False), (5, False)
    ]  # fmt: skip
    assert {row.model for row in usage if row.tokens_in is not None} == {"scripted"}
    await store.close()


async def test_a_reader_of_a_turn_that_is_killed_in_its_stream_gets_one_answer(
    tmp_path: Path,
) -> None:
    notes = await killed(tmp_path, "turn", "stream")
    store = await open_store(f"sqlite:{tmp_path / 'runs.db'}")
    turns = AgentTurns(booker(notes, PerdureDurability()))
    engine = ChatTurnEngine(store, produce=turns, name="booker")
    turn = await engine.submit(TURN, PROMPT)
    body = b"".join([lines async for lines in turn.lines()])
    seen, restarts = "", 0
    for line in body.splitlines():
        event = json.loads(line)
        if event["type"] == "session.run.restarted":
            seen, restarts = "", restarts + 1
        seen += event["data"].get("delta", "")
    assert (seen, restarts) == (FINAL, 1)
    assert Counter(notes.lines) == {
        "model 1": 1, "tool look": 1, "tool listen": 1, "model 2": 1, "tool book": 1, "model 3": 2
    }  # fmt: skip
    answer: Any = (await store.list_runs(with_answer=True))[0].answer
    assert answer["finalText"] == FINAL
    expected = ["booker__model.request_stream #1", *INTENTS[1:3], "booker__model.request_stream #2"]
    assert (await intents(store, "chat:s:0"))[1:5] == expected
    await engine.aclose()
    await store.close()


async def test_a_call_that_may_happen_once_fails_the_turn_instead_of_happening_twice(
    tmp_path: Path,
) -> None:
    notes = await killed(tmp_path, "turn-once", "tool")
    store = await open_store(f"sqlite:{tmp_path / 'runs.db'}")
    agent = booker(notes, PerdureDurability(), booking="at_most_once")
    engine = ChatTurnEngine(store, produce=AgentTurns(agent), name="booker")
    async for _ in (await engine.submit(TURN, PROMPT)).lines():
        pass
    run = await store.read_run("chat:s:0")
    assert run is not None
    assert (run.state, run.reason) == ("failed", "unfinished_tool_call")
    assert Counter(notes.lines)["tool book"] == 1
    await engine.aclose()
    await store.close()


async def test_tools_at_once_keep_their_results_apart_whatever_their_order() -> None:
    store, notes = MemoryStore(), Counter[str]()
    slow, in_model = asyncio.Event(), asyncio.Event()

    async def first() -> str:
        notes["first"] += 1
        await slow.wait()
        return "one"

    async def second() -> str:
        notes["second"] += 1
        slow.set()
        return "two"

    def answer(messages: Any, _: Any) -> ModelResponse:
        results = [p for m in messages for p in m.parts if isinstance(p, ToolReturnPart)]
        if not results:
            return ModelResponse([ToolCallPart("first"), ToolCallPart("second")])
        return ModelResponse([TextPart(" ".join(str(each.content) for each in results))])

    async def interrupted(messages: Any, info: Any) -> ModelResponse:
        notes["model"] += 1
        if any(isinstance(m, ModelResponse) for m in messages) and not in_model.is_set():
            in_model.set()
            await asyncio.Event().wait()
        return answer(messages, info)

    agent = durable(FunctionModel(interrupted), first, second)
    attempt = asyncio.create_task(asked(store, agent))
    await in_model.wait()
    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    assert (await asked(store, agent)).result == "one two"
    assert notes == {"first": 1, "second": 1, "model": 3}


# What is recorded, and where.


async def test_outside_of_a_run_and_inside_of_a_step_the_agent_is_as_it_was() -> None:
    store = MemoryStore()

    def look() -> str:
        return "seen"

    agent = durable(answers(("look", {}), "Fine."), look)
    assert (await agent.run("Go")).output == "Fine."

    async def task(context: DurableContext) -> Any:
        async def body() -> str:
            return str((await agent.run("Go")).output)

        with durably(context):
            return await context.step("ask the agent", body)

    done = await run_durable(store, run_id="r", manifest=MANIFEST, task=task)
    assert done.result == "Fine."
    assert await intents(store) == ["ask the agent"]


async def test_work_of_no_durable_agent_is_refused_and_what_it_raises_is_not_hidden() -> None:
    plain = Agent(answers("Fine."), name="a")
    with pytest.raises(UsageError, match=r"no agent within durably\(\) has a PerdureDurability"):
        await asked(MemoryStore(), plain)
    with pytest.raises(IndexError):
        await asked(MemoryStore(), Agent(answers(), name="a"))


async def test_a_plain_agent_in_a_step_beside_a_durable_one_is_no_mistake() -> None:
    plain, agent = Agent(answers("Inside."), name="plain"), durable(answers("Fine."))

    async def task(context: DurableContext) -> Any:
        async def body() -> str:
            return str((await plain.run("Go")).output)

        with durably(context):
            inside = await context.step("ask the plain one", body)
            return [inside, (await agent.run("Go")).output]

    store = MemoryStore()
    for _ in range(2):
        done = await run_durable(store, run_id="r", manifest=MANIFEST, task=task)
        assert done.result == ["Inside.", "Fine."]
    assert await intents(store) == ["ask the plain one", "a__model.request #1"]


async def test_an_agent_that_a_tool_runs_is_part_of_the_tools_step() -> None:
    store = MemoryStore()
    inner = Agent(answers("Inside."), name="inner", capabilities=[PerdureDurability()])

    async def delegate() -> str:
        return str((await inner.run("Go")).output)

    assert (await asked(store, durable(answers(("delegate", {}), "Out."), delegate))).result == (
        "Out."
    )
    assert len(await intents(store)) == 3


async def test_a_tool_says_by_metadata_how_often_its_call_may_happen() -> None:
    store = MemoryStore()
    keys: list[str] = []

    def charge() -> str:
        keys.append(current_step().idempotency_key)
        return "charged"

    def plain() -> str:
        return "plain"

    agent = durable(answers([("charge", {}), ("plain", {}), ("direct", {})], "Done."), plain)
    agent.tool_plain(metadata={"perdure": {"effect": "at_most_once", "timeout_ms": 5_000}})(charge)

    @agent.tool_plain(metadata={"perdure": False})
    def direct() -> str:
        return "in no step"

    engine = ChatTurnEngine(store, produce=AgentTurns(agent), name="a")
    await told(engine, "Go")
    await asked(store, agent)
    steps = {s.intent.partition(":")[2]: s.effect for s in await store.read_steps("r")}
    assert (steps["charge #1.1"], steps["plain #1.2"]) == ("at_most_once", "idempotent")
    assert not any("direct" in intent for intent in steps)
    of_turn = {s.intent.partition(":")[2]: s.effect for s in await store.read_steps("chat:s:0")}
    assert of_turn["plain #1.2"] == "at_most_once"
    assert len(set(keys)) == 2
    await engine.aclose()


@pytest.mark.parametrize("metadata", ["pure", {"effect": "twice"}, {"retries": 2}])
async def test_metadata_that_say_no_such_thing_are_refused_by_the_name_of_the_tool(
    metadata: Any,
) -> None:
    agent = durable(answers(("look", {}), "Fine."))

    @agent.tool_plain(metadata={"perdure": metadata})
    def look() -> str:
        return "seen"

    with pytest.raises(UsageError, match="metadata 'perdure' of the tool 'look'"):
        await asked(MemoryStore(), agent)


async def test_the_answers_of_tools_that_are_no_values_replay_as_they_were() -> None:
    store, tries = MemoryStore(), Counter[str]()

    def moody(mood: str) -> str:
        tries[mood] += 1
        if mood == "bad":
            raise ModelRetry("try a better mood")
        return "well"

    agent = durable(answers(("moody", {"mood": "bad"}), ("moody", {"mood": "good"}), "Ok"), moody)
    first = await asked(store, agent)
    assert (await asked(store, agent)).result == first.result == "Ok"
    assert tries == {"bad": 1, "good": 1}
    recorded = (await store.read_steps("r"))[1].result
    assert recorded == {"message": "try a better mood", "kind": "model_retry"}


async def test_a_recorded_response_is_what_pydantic_ai_itself_reads() -> None:
    store = MemoryStore()

    def look() -> str:
        return "seen"

    await asked(store, durable(answers(("look", {}), "Fine."), look))
    stored = (await store.read_steps("r"))[0].result
    (message,) = ModelMessagesTypeAdapter.validate_python([stored])
    assert isinstance(message, ModelResponse)
    assert message.model_name == "scripted"


async def test_a_failed_request_is_made_again_by_no_one_unless_told() -> None:
    calls = Counter[str]()

    def failing(messages: Any, _: Any) -> ModelResponse:
        calls["model"] += 1
        if calls["model"] < 3:
            raise ConnectionError("no route")
        return ModelResponse([TextPart("There.")])

    store = MemoryStore()
    with pytest.raises(ConnectionError):
        await asked(store, durable(FunctionModel(failing)))
    assert calls["model"] == 1
    again = durable(FunctionModel(failing), model_config={"retry": Retry(3, backoff_ms=1)})
    assert (await asked(store, again)).result == "There."
    usage = (await store.read_details("r")).usage
    assert [row.tokens_out is None for row in usage] == [True, True, False]


async def test_an_agent_falls_back_behind_a_failed_step_in_every_attempt_alike() -> None:
    calls, second = Counter[str](), answers("Second.")

    def failing(messages: Any, _: Any) -> ModelResponse:
        calls["first"] += 1
        raise ConnectionError("no route")

    agent = Agent(
        FunctionModel(failing),
        name="a",
        capabilities=[
            PerdureDurability(models={"second": second}),
            ModelFallback(second, fallback_on=(StepFailedError,)),
        ],
    )
    store = MemoryStore()
    for _ in range(2):
        assert (await asked(store, agent)).result == "Second."
    assert calls == {"first": 1}
    assert await intents(store) == ["a__model.request #1", "a__model.request.second #2"]


async def test_toolsets_that_are_made_for_a_run_are_discovered_once() -> None:
    store, made = MemoryStore(), Counter[str]()

    def toolset(_: RunContext[Any]) -> FunctionToolset[Any]:
        made["toolset"] += 1
        tools = FunctionToolset[Any]()

        @tools.tool_plain
        def look() -> str:
            made["look"] += 1
            return "seen"

        return tools

    agent = Agent(
        answers(("look", {}), "Fine."),
        name="a",
        toolsets=[DynamicToolset(toolset, id="found")],
        capabilities=[PerdureDurability()],
    )
    await asked(store, agent)
    made_then = dict(made)
    assert (await asked(store, agent)).result == "Fine."
    assert made == made_then
    assert await intents(store) == [
        "a__dynamic_toolset__found.get_tools #1", "a__model.request #1",
        "a__dynamic_toolset__found.call_tool:look #1.1",
        "a__dynamic_toolset__found.get_tools #2", "a__model.request #2",
    ]  # fmt: skip


async def test_a_server_of_tools_is_asked_once_for_each_call(tmp_path: Path) -> None:
    pytest.importorskip("fastmcp", reason="fastmcp-slim is not installed")
    from fastmcp.client.transports import StdioTransport
    from pydantic_ai.mcp import MCPToolset

    store, notes = MemoryStore(), tmp_path / "notes.txt"
    words = ["-m", "tests.engines.mcp_server", str(notes)]
    server = MCPToolset(StdioTransport(sys.executable, words, cwd=str(ROOT)), id="places")
    agent = Agent(
        answers(("look", {"where": "here"}), "Fine."),
        name="a",
        toolsets=[server],
        capabilities=[PerdureDurability()],
    )
    for _ in range(2):
        assert (await asked(store, agent)).result == "Fine."
    assert notes.read_text() == "look here\n"
    assert await intents(store) == [
        "a__mcp_server__places.get_tools #1", "a__model.request #1",
        "a__mcp_server__places.call_tool:look #1.1", "a__model.request #2",
    ]  # fmt: skip
