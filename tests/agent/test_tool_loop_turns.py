"""A tool loop as the producer of durable turns: what readers see, also across crashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.agent.model_backend import ModelBackend
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream_frames import AgentTaskProducer
from perdure.agent.tool_approval import Approval, answer_approval, pending_approvals
from perdure.agent.tool_limits import ToolLimits
from perdure.agent.tool_loop import ToolLoop
from perdure.agent.tools import Tool, ToolCall
from perdure.backends.protocol import Prompt
from perdure.backends.scripted import ScriptedBackend
from perdure.core import frames
from perdure.core.records import AgentTaskSpec, Effect
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.turn.attachments import Attachment
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of
from tests.agent.looping import PURE, told
from tests.agent.strict_provider import StrictProvider, calls, says
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    NEXT,
    RESTARTED,
    TURN,
    Reader,
    Script,
    Stage,
    errors_in,
    finish,
    until,
    words,
)

FARO = calls(("c1", "degrees", {"city": "Faro"}), text="Let me look. ")
WARM = says("It is warm.")


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    data = MemoryData()

    async def open_handle(clock: ManualClock) -> RunStore:
        return MemoryStore(data, clock=clock)

    async with Stage(open_handle) as opened:
        yield opened


async def kinds(stage: Stage) -> list[str]:
    """Return the kinds of the stored frames, neighbours of one kind as one."""
    found: list[str] = []
    for frame in await stage.frames():
        if found[-1:] != [frame.kind]:
            found.append(frame.kind)
    return found


async def test_a_turn_is_answered_by_a_loop(stage: Stage) -> None:
    provider = StrictProvider(FARO, WARM)
    reader = await finish(await stage.engine(ToolLoop(provider.backend(), [PURE])))
    assert reader.text == "Let me look. It is warm."
    assert reader.kinds[-1] == COMPLETED
    assert reader.events[-1]["data"]["finishReason"] == "stop"
    assert await kinds(stage) == [
        "text",
        "upstream_end",
        "tool_call",
        "tool_result",
        "text",
        "upstream_end",
        "completed",
    ]
    assert told(provider) == ['{"city":"Faro","degrees":21}']
    usage = [row for row in (await stage.details()).usage if row.step_index]
    assert [(row.state, row.tokens_in) for row in usage] == [("settled", 10), ("settled", 10)]
    assert provider.refused == []


async def test_the_next_turn_has_the_conversation_so_far(stage: Stage) -> None:
    provider = StrictProvider(FARO, WARM)
    engine = await stage.engine(ToolLoop(provider.backend(), [PURE]))
    await finish(engine)
    await finish(engine, NEXT, "And Beja?")
    roles = [message["role"] for message in provider.prompts[2]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert provider.refused == []


async def test_a_product_may_make_the_messages_of_a_turn_itself(stage: Stage) -> None:
    async def messages_of(turn: Turn) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"Translate: {turn.user_message}"}]

    provider = StrictProvider(WARM)
    loop = ToolLoop(provider.backend(), [PURE], messages_of=messages_of)
    assert loop.shows_attachments
    await finish(await stage.engine(loop))
    assert provider.prompts[0]["messages"] == [{"role": "user", "content": "Translate: Hi"}]


async def test_files_of_earlier_messages_that_the_model_cannot_be_shown_fail_the_turn_by_name(
    stage: Stage,
) -> None:
    await finish(
        await stage.engine(Script(words("One"))), attachments=[Attachment("a", "text/csv")]
    )
    provider = StrictProvider(says("Unseen."))
    sessions = DurableSessionStore(await stage.store())
    model = ModelBackend(provider.backend())
    tasks = AgentTaskProducer(
        model, task_of=lambda _: AgentTaskSpec("t-9", "Answer"), sessions=sessions
    )
    producers: list[Any] = [ToolLoop(provider.backend(), [PURE]), tasks]
    for index, produce in enumerate(producers, 1):
        turn = TURN._replace(turn_index=index)
        reader = await finish(await stage.engine(produce), turn)
        assert reader.kinds[-1] == FAILED
        assert errors_in(reader) == ["attachments_not_shown"]
    assert provider.prompts == []


async def test_a_limit_ends_a_turn_with_its_reason(stage: Stage) -> None:
    provider = StrictProvider(FARO)
    loop = ToolLoop(provider.backend(), [PURE], limits=ToolLimits(model_calls_max=1))
    reader = await finish(await stage.engine(loop))
    assert reader.events[-1]["data"]["finishReason"] == "limit_model_calls"
    limits = [event["data"] for event in reader.events if event["type"] == "tool_loop_limit"]
    assert limits == [{"end": "model_calls", "detail": "the model was called 1 times"}]


async def test_a_recorded_tool_and_model_call_are_not_made_again_after_a_crash(
    stage: Stage,
) -> None:
    made: list[str] = []
    prompts: list[Prompt] = []

    def look(city: str) -> str:
        made.append(city)
        return f"21 in {city}"

    def script(prompt: Prompt) -> list[Any]:
        prompts.append(prompt)
        if len(prompts) == 1:
            call = frames.tool_call("c1", "look", {"city": "Faro"})
            return [frames.text("Let me look. "), call, frames.upstream_end("tool_calls")]
        words = [frames.text("It is "), frames.text("warm."), frames.upstream_end("stop")]
        return [words[0], asyncio.Event()] if len(prompts) == 2 else words

    loop = ToolLoop(ScriptedBackend(script), [Tool(look)])
    worker = await stage.worker(loop)
    await worker.engine.submit(TURN, "Hi")

    async def half_said() -> bool:
        return any(f.data.get("delta") == "It is " for f in await stage.frames())

    await until(half_said)
    await worker.kill()
    stage.lapse()
    engine = await stage.engine(loop)
    await engine.submit(TURN, "Hi")
    reader = await Reader().read(engine)
    assert reader.text == "Let me look. It is warm."
    assert RESTARTED in await kinds_with_restart(stage)
    assert (made, len(prompts)) == (["Faro"], 3)
    assert prompts[1].idempotency_key == prompts[2].idempotency_key
    assert [len(prompt.messages) for prompt in prompts] == [1, 3, 3]
    parts = (await stage.answer())["parts"]
    assert [part["k"] for part in parts] == ["text", "tool_call", "tool_result", "text"]


async def kinds_with_restart(stage: Stage) -> list[str]:
    named = {"restarted": RESTARTED}
    return [named.get(frame.kind, frame.kind) for frame in await stage.frames()]


async def interrupted_tool(
    stage: Stage, tool: Tool, entered: asyncio.Event, provider: StrictProvider
) -> Reader:
    """Kill the process of a turn inside its tool; read what another one makes of it."""
    loop = ToolLoop(provider.backend(), [tool])
    worker = await stage.worker(loop)
    await worker.engine.submit(TURN, "Hi")
    await entered.wait()
    await worker.kill()
    stage.lapse()
    engine = await stage.engine(loop)
    await engine.submit(TURN, "Hi")
    return await Reader().read(engine)


def hanging_first(effect: Effect, seen: list[ToolCall], **options: Any) -> tuple[Tool, Any]:
    entered = asyncio.Event()

    async def pay(call: ToolCall) -> str:
        seen.append(call)
        if len(seen) == 1:
            entered.set()
            await asyncio.Event().wait()
        return "paid"

    return Tool(pay, effect=effect, **options), entered


@pytest.mark.parametrize("effect", ["pure", "idempotent"])
async def test_an_interrupted_tool_that_may_repeat_is_called_again_with_its_key(
    stage: Stage, effect: Effect
) -> None:
    seen: list[ToolCall] = []
    tool, entered = hanging_first(effect, seen)
    provider = StrictProvider(calls(("c1", "pay", {}), text="Paying. "), says("Done."))
    reader = await interrupted_tool(stage, tool, entered, provider)
    assert reader.text == "Paying. Done."
    assert seen[0].idempotency_key == seen[1].idempotency_key
    assert [call.tries for call in seen] == [1, 2]
    assert len(provider.prompts) == 2


async def test_an_interrupted_tool_that_may_not_repeat_fails_the_turn(stage: Stage) -> None:
    seen: list[ToolCall] = []
    tool, entered = hanging_first("at_most_once", seen)
    provider = StrictProvider(calls(("c1", "pay", {}), text="Paying. "), says("Done."))
    reader = await interrupted_tool(stage, tool, entered, provider)
    assert reader.kinds[-1] == FAILED
    assert errors_in(reader) == ["unfinished_tool_call"]
    assert (len(seen), len(provider.prompts)) == (1, 1)


async def test_an_interrupted_tool_may_tell_the_model_that_nobody_knows(stage: Stage) -> None:
    seen: list[ToolCall] = []
    tool, entered = hanging_first("at_most_once", seen, on_unfinished="tell")
    provider = StrictProvider(calls(("c1", "pay", {}), text="Paying. "), says("I am not sure."))
    reader = await interrupted_tool(stage, tool, entered, provider)
    assert reader.text == "Paying. I am not sure."
    assert '"code":"interrupted"' in told(provider)[0]
    assert len(seen) == 1


async def test_a_recorded_tool_beside_an_interrupted_one_does_not_fail_the_turn(
    stage: Stage,
) -> None:
    seen: list[ToolCall] = []
    tool, entered = hanging_first("idempotent", seen)
    sent: list[str] = []

    async def send() -> str:
        sent.append("mail")
        return "sent"

    async def both() -> bool:
        steps = await (await stage.store()).read_steps(run_id_of(TURN))
        return any(s.intent == "loop: send 1.2" and s.status == "completed" for s in steps)

    provider = StrictProvider(calls(("c1", "pay", {}), ("c2", "send", {})), says("Done."))
    loop = ToolLoop(provider.backend(), [tool, Tool(send)])
    worker = await stage.worker(loop)
    await worker.engine.submit(TURN, "Hi")
    await entered.wait()
    await until(both)
    await worker.kill()
    stage.lapse()
    engine = await stage.engine(loop)
    await engine.submit(TURN, "Hi")
    assert (await Reader().read(engine)).text == "Done."
    assert (len(seen), sent) == (2, ["mail"])
    assert told(provider) == ["paid", "sent"]


# Approval inside a turn.


async def test_a_turn_waits_for_a_human_and_goes_on_with_what_was_decided(stage: Stage) -> None:
    provider = StrictProvider(calls(("c1", "degrees", {"city": "Faro"})), WARM)
    asking = Tool(PURE.function, effect="pure", needs_approval=True)
    worker = await stage.worker(ToolLoop(provider.backend(), [asking]))
    await worker.engine.submit(TURN, "Hi")
    store, run_id = await stage.store(), run_id_of(TURN)

    async def asked() -> bool:
        return bool(await pending_approvals(store, run_id))

    await until(asked)
    await worker.kill()
    stage.lapse()
    engine = await stage.engine(ToolLoop(provider.backend(), [asking]))
    await engine.submit(TURN, "Hi")
    [request] = await pending_approvals(store, run_id)
    assert (request.tool, request.arguments) == ("degrees", {"city": "Faro"})
    assert await answer_approval(store, run_id, request, Approval(True, by="Ada"))
    reader = await Reader().read(engine)
    assert reader.text == "It is warm."
    named = [event["type"] for event in reader.events]
    assert "tool_approval_request" in named
    assert "tool_approval" in named
    assert len(provider.prompts) == 2
