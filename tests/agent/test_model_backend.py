"""A model streams a task: over real HTTP, with usage that is told once and never invented."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from perdure.agent.backend import AgentBackendInput
from perdure.agent.model_backend import (
    BackendRetryPolicy,
    ModelBackend,
    ModelOptions,
    create_openai_compatible_backend,
)
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import (
    BackendErrorEvent,
    LlmCallEvent,
    ToolCallEvent,
)
from perdure.backends.protocol import Prompt
from perdure.backends.scripted import ScriptedBackend
from perdure.core import frames
from perdure.core.records import AgentTaskSpec
from perdure.errors import BackendTransportError
from tests.agent.streaming import final_of, read, types
from tests.backends.conftest import server
from tests.backends.model_server import ModelServer, chunk, refusal, reply, sse
from tests.turn.provider import ProvidedBackend, Provider

__all__ = ["server"]

TASK = AgentTaskSpec("t-9", "Answer a policy question")
COUNTED = {"prompt_tokens": 9, "completion_tokens": 2}
USAGE = {"id": "chatcmpl-1", "model": "model-1-0613", "choices": [], "usage": COUNTED}
ANSWER = sse(chunk(content="Hello"), chunk(content=" there"), chunk("stop"), USAGE, "[DONE]")


def llm_calls(events: list[Any]) -> list[LlmCallEvent]:
    return [event for event in events if isinstance(event, LlmCallEvent)]


async def test_9_4_an_answer_over_http_with_one_llm_call(server: ModelServer) -> None:
    server.will(reply(ANSWER))
    backend = create_openai_compatible_backend(
        api_key="sk-secret", base_url=server.base_url, model="model-1"
    )
    events = await read(run_agent_task_stream(TASK, backend))
    await backend.aclose()
    assert final_of(events).text == "Hello there"
    [call] = llm_calls(events)
    assert (call.model, call.tokens_in, call.tokens_out) == ("model-1-0613", 9, 2)
    assert (call.cost_usd, call.finish_reason) == (None, "stop")
    assert types(events[-4:]) == "llm_call backend_end task_end final"
    assert backend.kind == "tcloud"


async def test_9_4_r4_a_refusal_tells_status_and_body(server: ModelServer) -> None:
    server.will(refusal(401, b"who are you?"))
    backend = create_openai_compatible_backend(
        api_key="sk-secret",
        base_url=server.base_url,
        model="model-1",
        retry=BackendRetryPolicy(tries_max=1),
    )
    events = await read(run_agent_task_stream(TASK, backend))
    await backend.aclose()
    error, final = events[-3], final_of(events)
    assert isinstance(error, BackendErrorEvent)
    assert final.error is not None
    assert (error.recoverable, final.error.kind, final.error.status) == (False, "transport", 401)


async def test_9_4_r2_the_model_gets_instructions_and_conversation() -> None:
    prompts: list[Prompt] = []

    def script(prompt: Prompt) -> list[frames.Frame]:
        prompts.append(prompt)
        return [frames.text("ok"), frames.upstream_end("stop")]

    options = ModelOptions(instructions="Be brief.", temperature=0.1)
    backend = ModelBackend(ScriptedBackend(script), options=options)
    asked = AgentBackendInput(task=TASK, message="Hi")
    await read(run_agent_task_stream(TASK, backend, input=asked))
    [prompt] = prompts
    assert prompt.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert prompt.temperature == 0.1


async def test_9_6_r2_without_counts_there_is_no_llm_call() -> None:
    script = [frames.text("ok"), frames.usage(model="m"), frames.upstream_end("stop")]
    events = await read(run_agent_task_stream(TASK, ModelBackend(ScriptedBackend(script))))
    assert llm_calls(events) == []


async def test_all_that_was_counted_is_told() -> None:
    used = frames.usage(
        provider="p",
        model="m",
        tokens_in=9,
        tokens_out=5,
        tokens_cached=4,
        tokens_reasoning=2,
        request_id="r-1",
    )
    backend = ModelBackend(ScriptedBackend([used, frames.upstream_end("stop")]))
    [call] = llm_calls(await read(run_agent_task_stream(TASK, backend)))
    assert (call.tokens_cached, call.tokens_reasoning) == (4, 2)
    assert (call.provider, call.request_id) == ("p", "r-1")


async def test_9_6_r2_a_price_makes_the_cost() -> None:
    script = [frames.usage(model="m", tokens_in=1_000), frames.upstream_end("stop")]
    backend = ModelBackend(
        ScriptedBackend(script), cost_usd=lambda call: (call.tokens_in or 0) / 1_000_000
    )
    [call] = llm_calls(await read(run_agent_task_stream(TASK, backend)))
    assert (call.tokens_out, call.cost_usd) == (None, 0.001)


async def test_what_a_failed_answer_used_is_told() -> None:
    lost = BackendTransportError("lost", backend="scripted")
    script: list[Any] = [frames.text("o"), frames.usage(model="m", tokens_in=7), lost]
    events = await read(run_agent_task_stream(TASK, ModelBackend(ScriptedBackend(script))))
    assert [call.tokens_in for call in llm_calls(events)] == [7]
    assert (final_of(events).status, final_of(events).text) == ("failed", "o")


async def test_9_6_r1_calls_of_tools_are_told_not_run() -> None:
    script = [
        frames.tool_call("c-1", "look", {"at": 2}),
        frames.tool_result("c-1", error={"code": "gone", "message": "no"}),
        frames.upstream_end("tool_calls"),
    ]
    events = await read(run_agent_task_stream(TASK, ModelBackend(ScriptedBackend(script))))
    [call] = [event for event in events if isinstance(event, ToolCallEvent)]
    assert (call.tool_name, call.tool_call_id, call.args) == ("look", "c-1", {"at": 2})
    [result] = [event for event in events if event.type == "tool_result"]
    assert (result.tool_name, result.result) == (
        "look",
        {"error": {"code": "gone", "message": "no"}},
    )


@pytest.mark.parametrize(("tries", "wait_ms"), list(enumerate([1, 2, 4, 8, 16, 30, 30], 1)))
def test_9_4_r5_back_off_without_jitter(tries: int, wait_ms: int) -> None:
    assert BackendRetryPolicy(jitter=0).wait_ms(tries, chance=0.9) == wait_ms * 1_000


# Answers that go on upstream.


class Kept:
    """Keeps a handle, as a turn does."""

    def __init__(self, handle: Any = None) -> None:
        self.handle = handle
        self.saved: list[Any] = []

    async def save(self, handle: Any) -> None:
        self.saved.append(handle)


WHOLE = [frames.text("He"), frames.text("llo"), frames.upstream_end("stop")]


def asked_with(kept: Kept | None) -> AgentBackendInput:
    return AgentBackendInput(task=TASK, upstream=kept, idempotency_key="k-1")


async def test_a_handle_is_saved_before_anything_is_told() -> None:
    provider, kept = Provider(WHOLE), Kept()
    await provider.give()
    backend = ModelBackend(ProvidedBackend(provider))
    events = await read(run_agent_task_stream(TASK, backend, input=asked_with(kept)))
    assert final_of(events).text == "Hello"
    assert kept.saved == [{"answer": "answer-1"}]
    assert [prompt.idempotency_key for prompt in provider.prompts] == ["k-1"]
    assert provider.cancelled == []


async def test_an_answer_whose_handle_is_kept_is_joined() -> None:
    provider = Provider(WHOLE)
    await provider.give()
    handle = {"answer": provider.begin(Prompt([]))}
    backend = ModelBackend(ProvidedBackend(provider))
    events = await read(run_agent_task_stream(TASK, backend, input=asked_with(Kept(handle))))
    assert final_of(events).text == "Hello"
    assert (len(provider.prompts), provider.attached) == (1, [handle])


async def test_an_answer_that_is_not_kept_any_more_is_not_asked_for_anew() -> None:
    provider = Provider(WHOLE)
    backend = ModelBackend(ProvidedBackend(provider))
    asked = asked_with(Kept({"answer": "gone"}))
    events = await read(run_agent_task_stream(TASK, backend, input=asked))
    assert final_of(events).status == "failed"
    assert provider.prompts == []


@pytest.mark.parametrize("kept", [None, Kept()], ids=["nobody keeps it", "kept"])
async def test_an_answer_that_nobody_will_join_is_ended(kept: Kept | None) -> None:
    provider = Provider(WHOLE)
    await provider.give(1)
    backend = ModelBackend(ProvidedBackend(provider))
    async with aclosing(run_agent_task_stream(TASK, backend, input=asked_with(kept))) as events:
        async for event in events:
            if event.type == "text_delta":
                break
    assert provider.listeners == 0
    assert provider.cancelled == ([{"answer": "answer-1"}] if kept is None else [])


async def test_a_whole_answer_is_not_ended() -> None:
    provider = Provider(WHOLE)
    await provider.give()
    await read(run_agent_task_stream(TASK, ModelBackend(ProvidedBackend(provider))))
    assert provider.cancelled == []


async def test_a_model_that_cannot_be_joined_says_so() -> None:
    backend = ModelBackend(ScriptedBackend(WHOLE))
    assert backend.cancel is None
    events = await read(run_agent_task_stream(TASK, backend, input=asked_with(Kept({"a": 1}))))
    assert "joined" in final_of(events).reason
