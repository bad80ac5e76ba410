"""Agents of the OpenAI SDK: what is recorded, what a crash costs, humans, sessions."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    InputGuardrailTripwireTriggered,
    LocalShellTool,
    ModelResponse,
    RunConfig,
    Runner,
    Usage,
    function_tool,
    set_tracing_disabled,
)
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.tool import ToolOutputText

from perdure import (
    ChatTurnEngine,
    ChatTurnIdentity,
    DurableContext,
    MemoryStore,
    erase_user,
    open_store,
    run_durable,
)
from perdure.agent.tool_approval import Approval, answer_approval, pending_approvals
from perdure.durable.worker import Worker
from perdure.engines.openai_agents import AgentTurns, PerdureSession, run_agent
from perdure.engines.openai_agents.recording import (
    output_of,
    recorded_output,
    recorded_response,
    response_of,
)
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.protocol import RunStore
from perdure.testing import crash_everywhere
from tests.contract.test_stores import LABS
from tests.engines.agents_process import FINAL, MANIFEST, noting, payer, run

ROOT = Path(__file__).parents[2]
INTENTS = [
    "agents: payer model 1", "agents: look 1.1", "agents: listen 1.2", "agents: payer model 2",
    "agents: pay 2.1", "agents: payer model 3",
]  # fmt: skip
"""Renaming any of these parks every run that is under way."""


@pytest.fixture(autouse=True, scope="module")
def untraced() -> Iterator[None]:
    """Have the SDK send no traces to its maker."""
    set_tracing_disabled(True)
    yield
    set_tracing_disabled(False)


async def killed(url: str, notes: Path, way: str) -> None:
    words = [sys.executable, "-m", "tests.engines.agents_process", url, str(notes), way, "--die"]
    process = await asyncio.to_thread(subprocess.run, words, cwd=ROOT, timeout=30, check=False)
    assert process.returncode == -signal.SIGKILL


def answered(store: RunStore, agent: Agent[Any], **options: Any) -> Any:
    """Run an agent as a durable run named r; return the coroutine of its final output."""

    async def task(context: DurableContext) -> Any:
        return (await run_agent(context, agent, "Go", **options)).final_output

    return run_durable(store, run_id="r", manifest=MANIFEST, task=task)


@pytest.mark.campaign
async def test_a_run_that_is_killed_in_a_tool_asks_no_model_again(tmp_path: Path) -> None:
    url, notes = f"sqlite:{tmp_path / 'runs.db'}", tmp_path / "notes.txt"
    await killed(url, notes, "run")
    store = await open_store(url)
    assert await run(store, payer(noting(notes))) == FINAL
    assert Counter(notes.read_text().splitlines()) == {
        "model 0": 1, "model 1": 1, "model 2": 1, "tool look": 1, "tool listen": 1, "tool pay": 2
    }  # fmt: skip
    assert [step.intent for step in await store.read_steps("pay")] == INTENTS
    await store.close()


async def test_a_run_comes_to_the_same_end_wherever_its_process_dies() -> None:
    async def scenario(store: RunStore) -> Any:
        return await run(store, payer(lambda _: None)), [
            step.intent for step in await store.read_steps("pay")
        ]

    report = await crash_everywhere(scenario, lambda: LABS["memory"](Path()))
    assert report.outcome == (FINAL, INTENTS)
    assert len(report.points) > 20


@pytest.mark.campaign
async def test_a_turn_and_its_session_come_to_the_same_end_wherever_the_process_dies() -> None:
    async def scenario(store: RunStore) -> Any:
        effects: Any = dict.fromkeys(("look", "listen", "pay"), "idempotent")
        turns = AgentTurns(payer(lambda _: None), store=store, effects=effects)
        engine = ChatTurnEngine(store, produce=turns, name="agents", recover=False)
        await told(engine, 0, "Pay the bill")
        await engine.aclose()
        found = (await store.list_runs(session_id="s", with_answer=True))[0]
        answer: Any = found.answer
        return found.state, answer["finalText"], len(await PerdureSession(store, "s").get_items())

    report = await crash_everywhere(scenario, lambda: LABS["memory"](Path()))
    assert report.outcome == ("completed", f"I pay it. {FINAL}", 9)
    assert len(report.points) > 50
    gc.collect()  # What the crashes left is told of here, not at the end of all tests.


async def test_a_human_is_waited_for_by_no_worker_and_the_next_one_asks_no_model_again() -> None:
    store, agent = MemoryStore(), deleter()
    model: Any = agent.model

    async def task(context: DurableContext) -> Any:
        return (await run_agent(context, agent, "Go")).final_output

    worker = Worker(store, tasks={"delete": task})
    await worker.submit("delete", run_id="r", manifest=MANIFEST)
    working = asyncio.create_task(worker.run())
    while (found := await store.read_run("r")) is None or found.state != "waiting":
        await store.wait_for_change("r", timeout_ms=50)
    assert len(model.calls) == 1
    await decide(store, "r")
    while (found := await store.read_run("r")) is None or found.state != "completed":
        await store.wait_for_change("r", timeout_ms=50)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert len(model.calls) == 2


async def test_a_turn_that_is_killed_in_a_tool_goes_on_with_what_readers_have(
    tmp_path: Path,
) -> None:
    url, notes = f"sqlite:{tmp_path / 'runs.db'}", tmp_path / "notes.txt"
    await killed(url, notes, "turn")
    store = await open_store(url)
    turns = AgentTurns(payer(noting(notes)), store=store, effects={"pay": "idempotent"})
    engine = ChatTurnEngine(store, produce=turns, name="agents")
    events = await told(engine, 0, "Pay the bill")
    assert Counter(notes.read_text().splitlines()) == {
        "model 0": 1, "model 1": 1, "model 2": 1, "tool look": 1, "tool listen": 1, "tool pay": 2
    }  # fmt: skip
    assert [step.intent for step in await store.read_steps("chat:s:0")][1:-1] == INTENTS
    kinds = [event["type"] for event in events]
    # That the tool runs may not have been told before the process died: then nothing is taken back.
    begins_anew = kinds.index("session.run.restarted") if "session.run.restarted" in kinds else 0
    events = events[begins_anew:]
    shown = [event["data"]["part"] for event in events if "part" in event["data"]]
    states = [(part["id"], part["state"]) for part in shown if part["type"] == "tool"]
    assert sorted(states) == sorted((f"c{at}", s) for at in (1, 2, 3) for s in (
        "running", "completed"
    ))  # fmt: skip
    run_of_it = (await store.list_runs(session_id="s", with_answer=True))[0]
    answer: Any = run_of_it.answer
    assert answer["finalText"] == f"I pay it. {FINAL}"
    assert len(await PerdureSession(store, "s").get_items()) == 9
    await engine.aclose()
    await store.close()


async def told(engine: ChatTurnEngine, number: int, message: str, *, revision: int = 0) -> Any:
    """Run a turn; return the events that hold what was said and done."""
    turn = await engine.submit(ChatTurnIdentity("", "s", "ann", number, revision), message)
    body = b"".join([lines async for lines in turn.lines()])
    return [json.loads(line) for line in body.splitlines()]


@function_tool(needs_approval=True)
def delete(path: str) -> str:
    """Delete a file."""
    return f"deleted {path}"


def deleter() -> Agent[Any]:
    calls = [function_call("delete", {"path": each}, call_id=each) for each in ("a", "b")]
    return Agent("deleter", model=ScriptedModel([calls, [assistant_message("Done.")]]),
                 tools=[delete])  # fmt: skip


async def decide(store: RunStore, run_id: str) -> list[str]:
    """Approve the first call that a human is asked about, with another path; deny the second."""
    while len(asked := await pending_approvals(store, run_id)) < 2:
        await store.wait_for_change(run_id, timeout_ms=50)
    await answer_approval(store, run_id, asked[1], Approval(False, "not this one"))
    await answer_approval(store, run_id, asked[0], Approval(True, arguments={"path": "c"}))
    return [f"{request.tool} {request.arguments}" for request in asked]


async def test_a_human_approves_with_other_arguments_or_denies() -> None:
    store, agent = MemoryStore(), deleter()
    model: Any = agent.model
    done, asked = await asyncio.gather(answered(store, agent), decide(store, "r"))
    assert done.result == "Done."
    assert asked == ["delete {'path': 'a'}", "delete {'path': 'b'}"]
    outputs = [each["output"] for each in model.last_call.input if "output" in each]
    assert outputs == ["deleted c", "a human has denied this call: not this one"]
    assert [step.intent for step in await store.read_steps("r")] == [
        "agents: deleter model 1", "agents: delete 1.1", "agents: delete 1.2",
        "agents: approval request 1", "agents: approval request 2",
        "event:approval:agents:1", "event:approval:agents:2",
        "agents: delete 1.1'", "agents: deleter model 2",
    ]  # fmt: skip


async def test_a_turn_waits_for_a_human_and_shows_what_is_asked() -> None:
    store = MemoryStore()
    engine = ChatTurnEngine(store, produce=AgentTurns(deleter()), name="agents")
    events, _ = await asyncio.gather(told(engine, 0, "Go"), decide(store, "chat:s:0"))
    kinds = Counter(event["type"] for event in events)
    assert (kinds["tool_approval_request"], kinds["tool_approval"]) == (2, 2)
    shown = [event["data"].get("part", {}) for event in events]
    assert [part["result"] for part in shown if "result" in part] == ["deleted c"]
    await engine.aclose()


async def test_who_takes_over_is_recorded_and_shown_also_in_circles() -> None:
    store = MemoryStore()
    one = Agent[Any]("one", model=ScriptedModel([
        [function_call("transfer_to_two", {}, call_id="h1")], [assistant_message("Back.")]
    ]))  # fmt: skip
    two = Agent[Any]("two", model=ScriptedModel([
        [function_call("transfer_to_one", {}, call_id="h2")]
    ]), handoffs=[one])  # fmt: skip
    one.handoffs = [two]
    engine = ChatTurnEngine(store, produce=AgentTurns(one), name="agents")
    events = await told(engine, 0, "Go")
    handed = [event["data"] for event in events if event["type"] == "handoff"]
    assert handed == [{"from": "one", "to": "two"}, {"from": "two", "to": "one"}]
    assert [step.intent for step in await store.read_steps("chat:s:0")][1:] == [
        "agents: one model 1", "agents: two model 2", "agents: one model 3"
    ]  # fmt: skip
    await engine.aclose()


async def test_what_a_guardrail_has_said_is_recorded_before_the_model_is_asked() -> None:
    store, model = MemoryStore(), ScriptedModel([])

    def refuse(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput({"why": "rude"}, tripwire_triggered=True)

    agent = Agent[Any]("polite", model=model, input_guardrails=[InputGuardrail(refuse)])
    with pytest.raises(InputGuardrailTripwireTriggered):
        await answered(store, agent)
    assert [step.intent for step in await store.read_steps("r")] == ["agents: guardrail refuse"]
    assert model.calls == ()


async def test_the_model_of_the_config_is_recorded_too_and_its_tokens_are_counted() -> None:
    store = MemoryStore()
    usage = Usage(requests=1, input_tokens=7, output_tokens=3, total_tokens=10)
    model = ScriptedModel([[assistant_message("Hi")]], default_usage=usage)
    done = await answered(store, Agent[Any]("a", model="x"), run_config=RunConfig(model=model))
    assert done.result == "Hi"
    rows = (await store.read_details("r")).usage
    assert [(row.tokens_in, row.tokens_out) for row in rows] == [(7, 3)]
    assert [(row.tokens_cached, row.tokens_reasoning) for row in rows] == [(None, None)]


async def test_what_could_not_be_recorded_is_refused_by_its_name() -> None:
    shell: Any = LocalShellTool(executor=lambda request: "")
    agent = Agent[Any]("a", model=ScriptedModel([]), tools=[shell])
    with pytest.raises(UsageError, match="the agent 'a' has LocalShellTool"):
        await answered(MemoryStore(), agent)
    with pytest.raises(UsageError, match="a session is read and written anew"):
        await answered(MemoryStore(), payer(print), session=PerdureSession(MemoryStore(), "s"))


async def test_what_is_no_context_or_no_agent_is_refused_by_what_it_is() -> None:
    nothing: Any = None
    with pytest.raises(UsageError, match=r"a task of run_durable gets, not None: .*Runner\.run"):
        await run_agent(nothing, payer(print), "Go")
    name: Any = "x"
    with pytest.raises(UsageError, match=r"an Agent of the SDK, Agent\(name=…\), not 'x'"):
        await answered(MemoryStore(), name)


def test_responses_and_outputs_of_tools_survive_as_they_are() -> None:
    response = ModelResponse(
        output=[assistant_message("hi"), function_call("f", {"a": 1}, call_id="c")],
        usage=Usage(requests=1, input_tokens=3, output_tokens=2, total_tokens=5),
        response_id="r",
    )
    again = response_of(json.loads(json.dumps(recorded_response(response))))
    assert (again.output, again.response_id) == (response.output, "r")
    assert again.usage.total_tokens == 5
    for output in ("text", {"a": [1]}, ToolOutputText(text="t")):
        assert output_of(json.loads(json.dumps(recorded_output(output)))) == output
    assert output_of(recorded_output({1, 2})) == "{1, 2}"


# Sessions.


async def test_a_session_keeps_what_the_sdk_gives_it_and_what_two_add_at_once(
    tmp_path: Path,
) -> None:
    url = f"sqlite:{tmp_path / 'runs.db'}"
    one, other = await open_store(url), await open_store(url)
    session, same = PerdureSession(one, "s"), PerdureSession(other, "s")
    model = ScriptedModel([[assistant_message("Hi Ann")], [assistant_message("Still here")]])
    agent = Agent[Any]("a", model=model)
    await Runner.run(agent, "I am Ann", session=session)
    await Runner.run(agent, "And now?", session=same)
    told_it: Any = model.last_call
    assert [each["role"] for each in told_it.input] == ["user", "assistant", "user"]
    items: list[Any] = [{"role": "user", "content": str(number)} for number in range(20)]
    await asyncio.gather(
        *(each.add_items([item]) for item, each in zip(items, [session, same] * 10, strict=True))
    )
    kept: list[Any] = await session.get_items()
    assert sorted(item["content"] for item in kept[4:]) == sorted(map(str, range(20)))
    assert await same.get_items(limit=3) == kept[-3:]
    popped: list[Any] = await asyncio.gather(*(each.pop_item() for each in [session, same] * 10))
    assert sorted(item["content"] for item in popped) == sorted(map(str, range(20)))
    await session.clear_session()
    assert (await same.pop_item(), await same.get_items()) == (None, [])
    await one.close()
    await other.close()


async def test_a_session_of_somebody_else_is_not_there() -> None:
    store = MemoryStore()
    mine = PerdureSession(store, "s", owner_id="ann")
    await mine.add_items([{"role": "user", "content": "secret"}])
    theirs = PerdureSession(store, "s", owner_id="bob")
    for attempt in (
        theirs.get_items,
        theirs.pop_item,
        lambda: theirs.add_items([{"role": "user", "content": "x"}]),
    ):
        with pytest.raises(RunNotFoundError):
            await attempt()
    await theirs.clear_session()
    assert len(await mine.get_items()) == 1


async def test_a_conversation_of_turns_has_the_items_and_another_answer_replaces_one() -> None:
    store = MemoryStore()
    model = ScriptedModel([[assistant_message(f"answer {at}")] for at in range(4)])
    turns = AgentTurns(Agent[Any]("a", model=model), store=store)
    engine = ChatTurnEngine(store, produce=turns, name="agents")
    for number, revision in ((0, 0), (1, 0), (1, 1), (2, 0)):
        await told(engine, number, f"message {number}", revision=revision)
    asked: Any = model.last_call
    assert [each["content"] for each in asked.input if each["role"] == "user"] == [
        "message 0", "message 1", "message 2"
    ]  # fmt: skip
    assert [each["content"][0]["text"] for each in asked.input if each["role"] != "user"] == [
        "answer 0", "answer 2"
    ]  # fmt: skip
    assert (await erase_user(store, "ann")).sessions == 2
    assert await PerdureSession(store, "s").get_items() == []
    await engine.aclose()
