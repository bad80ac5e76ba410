"""A tool loop in a durable run: every call is a step, every history is valid, every limit ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from perdure.agent.model_backend import ModelOptions
from perdure.agent.tool_loop import ToolLoop
from perdure.agent.tools import Tool, ToolCall
from perdure.backends.protocol import Prompt
from perdure.backends.scripted import ScriptedBackend
from perdure.core import frames
from perdure.core.frames import Frame
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.errors import BackendTransportError, StepFailedError, ToolError, UsageError
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from tests.agent.looping import MANIFEST, PURE, run, told
from tests.agent.strict_provider import StrictProvider, calls, says


@pytest.fixture
def store() -> RunStore:
    return MemoryStore(MemoryData())


async def test_a_model_calls_a_tool_and_answers(store: RunStore) -> None:
    provider = StrictProvider(
        calls(("c1", "degrees", {"city": "Lisbon"}), text="Let me look."), says("It is warm.")
    )
    loop = ToolLoop(provider.backend(), [PURE], options=ModelOptions(instructions="Be brief."))
    result = await run(store, loop)
    assert (result.text, result.end, result.finish) == ("It is warm.", "answered", "stop")
    assert (result.model_calls, result.tool_calls) == (2, 1)
    assert told(provider) == ['{"city":"Lisbon","degrees":21}']
    assert [message["role"] for message in result.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    steps = [(step.intent, step.kind, step.effect) for step in await store.read_steps("run")]
    assert steps == [
        ("loop: model 1", "llm", "idempotent"),
        ("loop: degrees 1.1", "tool", "pure"),
        ("loop: model 2", "llm", "idempotent"),
    ]
    assert provider.refused == []
    [tool] = provider.prompts[0]["tools"]
    assert tool["function"]["description"] == "Say how warm it is."
    assert tool["function"]["parameters"]["required"] == ["city"]


async def test_usage_of_each_model_call_is_recorded_and_each_has_a_key(store: RunStore) -> None:
    provider = StrictProvider(calls(("c1", "degrees", {"city": "Faro"})), says("Warm."))
    await run(store, ToolLoop(provider.backend(), [PURE]))
    usage = (await store.read_details("run")).usage
    assert [(one.state, one.tokens_in, one.tokens_out) for one in usage] == [
        ("settled", 10, 5),
        ("settled", 10, 5),
    ]
    assert None not in provider.keys
    assert len(set(provider.keys)) == 2


async def test_a_replay_asks_and_calls_nobody_and_comes_to_the_same(store: RunStore) -> None:
    provider = StrictProvider(calls(("c1", "degrees", {"city": "Faro"})), says("Warm."))
    first = await run(store, ToolLoop(provider.backend(), [PURE]))

    def refuse(city: str) -> str:
        raise AssertionError(city)

    silent = StrictProvider()
    seen: list[Frame] = []
    loop = ToolLoop(silent.backend(), [Tool(refuse, name="degrees", effect="pure")])
    again = await run(store, loop, on_frame=seen.append)
    assert again == first
    assert silent.prompts == []
    assert [frame.kind for frame in seen] == ["tool_call", "tool_result", "text"]


async def test_frames_are_told_as_they_come(store: RunStore) -> None:
    provider = StrictProvider(
        calls(("c1", "degrees", {"city": "Faro"}), text="Let me look."), says("It is warm.")
    )
    seen: list[Frame] = []
    await run(store, ToolLoop(provider.backend(), [PURE]), on_frame=seen.append)
    assert [frame.kind for frame in seen] == [
        *["text"] * 3,
        "tool_call",
        "tool_result",
        *["text"] * 3,
    ]
    [call, result] = [frame.data for frame in seen if frame.kind.startswith("tool")]
    assert (call["call"], call["name"], call["args"]) == ("c1", "degrees", {"city": "Faro"})
    assert result == {"call": "c1", "result": {"city": "Faro", "degrees": 21}}


@pytest.mark.parametrize("failure", [OSError("the pipe is closed"), asyncio.CancelledError()])
async def test_who_is_told_of_frames_cannot_disturb_the_loop(
    store: RunStore, failure: BaseException
) -> None:
    def fail(frame: Frame) -> None:
        raise failure

    provider = StrictProvider(calls(("c1", "degrees", {"city": "Faro"})), says("Warm."))
    assert (await run(store, ToolLoop(provider.backend(), [PURE]), on_frame=fail)).text == "Warm."


async def test_tools_of_one_answer_are_called_at_once_and_answered_in_order(
    store: RunStore,
) -> None:
    begun: list[str] = []
    all_begun = asyncio.Event()

    async def look(place: str) -> str:
        begun.append(place)
        if len(begun) == 3:
            all_begun.set()
        await all_begun.wait()
        return f"seen {place}"

    asked = [(f"c{place}", "look", {"place": place}) for place in "abc"]
    provider = StrictProvider(calls(*asked), says("Done."))
    loop = ToolLoop(provider.backend(), [Tool(look, effect="idempotent")])
    async with asyncio.timeout(5):
        await run(store, loop)
    assert told(provider) == ["seen a", "seen b", "seen c"]


async def test_the_key_of_a_call_is_handed_to_its_tool(store: RunStore) -> None:
    seen: list[ToolCall] = []

    async def charge(amount: int, call: ToolCall) -> str:
        seen.append(call)
        return "charged"

    provider = StrictProvider(
        calls(("a", "charge", {"amount": 1}), ("b", "charge", {"amount": 2})), says("Done.")
    )
    await run(store, ToolLoop(provider.backend(), [Tool(charge, effect="idempotent")]))
    assert [(call.id, call.name, call.tries) for call in seen] == [
        ("a", "charge", 1),
        ("b", "charge", 1),
    ]
    assert len({call.idempotency_key for call in seen}) == 2
    properties = provider.prompts[0]["tools"][0]["function"]["parameters"]["properties"]
    assert list(properties) == ["amount"]


# What a model does wrong, and what a tool raises.


@pytest.mark.parametrize(
    ("name", "arguments", "code", "part"),
    [
        ("degrees", '{"city": "Lis', "bad_arguments", "malformed JSON"),
        ("degrees", "[1]", "bad_arguments", "no JSON object"),
        ("degrees", {"city": 7}, "bad_arguments", "must be of type string"),
        ("degrees", {"town": "Faro"}, "bad_arguments", "city is missing"),
        ("functions.degrees", {"city": "Faro"}, "unknown_tool", "there are: degrees"),
    ],
)
async def test_what_a_model_does_wrong_is_told_to_it(
    store: RunStore, name: str, arguments: Any, code: str, part: str
) -> None:
    provider = StrictProvider(calls(("c1", name, arguments)), says("I give up."))
    result = await run(store, ToolLoop(provider.backend(), [PURE]))
    error = json.loads(told(provider)[0])["error"]
    assert error["code"] == code
    assert part in error["message"]
    assert (result.end, provider.refused) == ("answered", [])
    assert [step.kind for step in await store.read_steps("run")] == ["llm", "llm"]


async def test_a_tool_tells_the_model_only_what_it_wants_to(store: RunStore) -> None:
    def secret() -> str:
        raise ConnectionError("postgres://admin:hunter2@db")

    def honest() -> str:
        raise ToolError("there is no such city")

    open_one = Tool(secret, name="open", effect="pure", shows_errors=True)
    tools = [Tool(secret, effect="pure"), Tool(honest, effect="pure"), open_one]
    provider = StrictProvider(
        calls(("a", "secret", {}), ("b", "honest", {}), ("c", "open", {})), says("Sorry.")
    )
    seen: list[Frame] = []
    await run(store, ToolLoop(provider.backend(), tools), on_frame=seen.append)
    messages = [json.loads(each)["error"]["message"] for each in told(provider)]
    assert messages == [
        "the tool 'secret' failed",
        "there is no such city",
        "postgres://admin:hunter2@db",
    ]
    first = next(frame for frame in seen if frame.kind == "tool_result")
    assert first.data["error"] == {"code": "tool_failed", "message": "the tool 'secret' failed"}
    recorded = next(step for step in await store.read_steps("run") if step.kind == "tool")
    assert "hunter2" not in repr(recorded)


async def test_a_tool_that_cancels_itself_has_failed_like_any_other(store: RunStore) -> None:
    async def leave() -> None:
        raise asyncio.CancelledError

    asked = calls(("a", "leave", {}), ("b", "degrees", {"city": "Faro"}))
    provider = StrictProvider(asked, says("Sorry."))
    first = await run(store, ToolLoop(provider.backend(), [Tool(leave), PURE]))
    again = await run(store, ToolLoop(provider.backend(), [Tool(leave), PURE]))
    assert json.loads(told(provider)[0])["error"]["message"] == "the tool 'leave' failed"
    assert again == first


async def test_arguments_that_no_store_keeps_count_as_malformed(store: RunStore) -> None:
    deep = "[" * 100 + "]" * 100
    provider = StrictProvider(calls(("a", "degrees", f'{{"city": {deep}}}')), says("Sorry."))
    await run(store, ToolLoop(provider.backend(), [PURE]))
    assert json.loads(told(provider)[0])["error"]["code"] == "bad_arguments"
    assert provider.refused == []


async def test_calls_that_share_an_id_get_ids_of_their_own(store: RunStore) -> None:
    same = calls(("call_0", "degrees", {"city": "Faro"}), ("call_0", "degrees", {"city": "Beja"}))
    provider = StrictProvider(same, calls(("call_0", "degrees", {"city": "Evora"})), says("Done."))
    await run(store, ToolLoop(provider.backend(), [PURE]))
    assert provider.refused == []
    ids = [m["tool_call_id"] for m in provider.prompts[-1]["messages"] if m["role"] == "tool"]
    assert ids == ["call_0", "call_0_2", "call_0_3"]


async def test_a_history_with_orphans_is_repaired_before_it_is_sent(store: RunStore) -> None:
    function = {"name": "degrees", "arguments": '{"city": "Faro"}'}
    broken = [
        {"role": "user", "content": "How warm is Faro?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "lost", "type": "function", "function": function}],
        },
        {"role": "user", "content": "Are you there?"},
        {"role": "tool", "tool_call_id": "stray", "content": "?"},
    ]
    provider = StrictProvider(says("Yes."))
    await run(store, ToolLoop(provider.backend(), [PURE]), broken)
    assert provider.refused == []
    assert json.loads(told(provider)[0])["error"]["code"] == "interrupted"


async def test_a_refused_prompt_ends_the_run_with_its_error(store: RunStore) -> None:
    provider = StrictProvider(says("never"))
    loop = ToolLoop(provider.backend(), [PURE])
    with pytest.raises(BackendTransportError):
        await run(store, loop, [{"role": "narrator", "content": "Once upon a time"}])


async def test_an_answer_that_is_lost_on_the_way_is_asked_for_again(store: RunStore) -> None:
    lost = BackendTransportError("lost", backend="scripted", retryable=True)
    tries: list[Prompt] = []

    def script(prompt: Prompt) -> Sequence[Any]:
        tries.append(prompt)
        whole = [frames.text("Hello"), frames.upstream_end("stop")]
        return [frames.text("Hel"), lost] if len(tries) == 1 else whole

    result = await run(store, ToolLoop(ScriptedBackend(script), [PURE]))
    assert result.text == "Hello"
    assert tries[0].idempotency_key == tries[1].idempotency_key


async def test_tools_that_the_backend_has_called_itself_are_only_told(store: RunStore) -> None:
    script = [
        frames.tool_call("up", "search", {"q": "x"}),
        frames.tool_result("up", "found"),
        frames.text("Found it."),
        frames.upstream_end("stop"),
    ]
    seen: list[Frame] = []
    loop = ToolLoop(ScriptedBackend(script), [PURE])
    result = await run(store, loop, on_frame=seen.append)
    assert (result.text, result.tool_calls) == ("Found it.", 0)
    assert [frame.kind for frame in seen] == ["tool_call", "tool_result", "text"]


async def test_a_forced_choice_of_a_tool_holds_for_the_first_call(store: RunStore) -> None:
    provider = StrictProvider(calls(("c1", "degrees", {"city": "Faro"})), says("Warm."))
    options = ModelOptions(tool_choice="required", temperature=0.5)
    await run(store, ToolLoop(provider.backend(), [PURE], options=options))
    first, second = provider.prompts
    assert first["tool_choice"] == "required"
    assert "tool_choice" not in second
    assert second["temperature"] == 0.5


async def test_two_loops_of_one_run_are_told_apart_by_name(store: RunStore) -> None:
    provider = StrictProvider(calls(("c", "degrees", {"city": "Faro"})), says("Warm."))

    async def task(context: DurableContext) -> list[str]:
        one = ToolLoop(provider.backend(), [PURE], name="first")
        two = ToolLoop(provider.backend(), [PURE], name="second")
        return [(await one.run(context, "One?")).text, (await two.run(context, "Two?")).text]

    done = await run_durable(store, run_id="run", manifest=MANIFEST, task=task)
    assert done.result == ["Warm.", "Warm."]
    assert [step.intent for step in done.steps][2:4] == ["first: model 2", "second: model 1"]


async def test_a_model_that_does_not_answer_fails_the_run(store: RunStore) -> None:
    refused = BackendTransportError("no key", backend="scripted", retryable=False)

    async def task(context: DurableContext) -> str:
        loop = ToolLoop(ScriptedBackend([refused]), [PURE])
        with pytest.raises(StepFailedError):
            await loop.run(context, "Hello?")
        return "failed"

    done = await run_durable(store, run_id="run", manifest=MANIFEST, task=task)
    assert done.result == "failed"


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        (None, "messages must be a list of messages, not None"),
        ({"role": "user"}, "messages must be a list of messages"),
        ([], "messages must not be empty"),
        ([{"role": "user", "content": "Hi"}, None], r"messages\[1\] must be a mapping, not None"),
        ([{"role": 3}], r"messages\[0\].role must be a text, not 3"),
        ([{"content": "Hi"}], r"messages\[0\].role must be a text, not None"),
    ],
)
async def test_messages_that_are_none_are_refused_before_a_model_is_asked(
    store: RunStore, messages: Any, part: str
) -> None:
    provider = StrictProvider(says("Hi."))
    loop = ToolLoop(provider.backend(), [])

    async def body(context: DurableContext) -> str:
        with pytest.raises(UsageError, match=part):
            await loop.run(context, messages)
        return "refused"

    done = await run_durable(store, run_id="run", manifest=MANIFEST, task=body)
    assert (done.result, provider.prompts) == ("refused", [])


async def test_calls_of_a_history_that_are_none_are_left_out(store: RunStore) -> None:
    provider = StrictProvider(says("It is warm."))
    broken: Any = [5, None, {"function": "degrees"}, {"function": {}}]
    messages: Any = [
        {"role": "user", "content": "Warm?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": broken},
        {"role": "user", "content": "And?"},
    ]
    result = await run(store, ToolLoop(provider.backend(), [PURE]), messages)
    assert (result.text, provider.refused) == ("It is warm.", [])


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"backend": None}, "backend must be a Backend"),
        ({"tools": None}, "tools must be a list of functions and Tools, not None"),
        ({"options": 5}, "options must be ModelOptions or None, not 5"),
        ({"limits": {}}, "limits must be ToolLimits or None"),
        ({"notify": 5}, "notify must be a function or None, not 5"),
        ({"cost_usd": 5}, "cost_usd must be a function"),
        ({"messages_of": "history"}, "messages_of must be a function"),
    ],
)
def test_a_loop_names_what_it_cannot_be_made_of(options: dict[str, Any], part: str) -> None:
    given: dict[str, Any] = {"backend": ScriptedBackend([]), "tools": [], **options}
    with pytest.raises(UsageError, match=part):
        ToolLoop(given.pop("backend"), given.pop("tools"), **given)
