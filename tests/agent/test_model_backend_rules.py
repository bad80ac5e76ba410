"""How a model is asked over HTTP, and what is read of its answer, rule by rule (9.4, 9.6)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from perdure.agent.backend import AgentBackendInput
from perdure.agent.model_backend import (
    ModelOptions,
    create_openai_compatible_backend,
)
from perdure.agent.sandbox_backend import event_of_raw
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import InMemoryRuntimeSessionStore
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import (
    BACKEND_EVENTS,
    BackendErrorEvent,
    LlmCallEvent,
    event_to_wire,
)
from perdure.backends.completion import AGENT_EVENTS
from perdure.core.records import AgentTaskSpec
from tests.agent.streaming import final_of, read
from tests.backends.conftest import server
from tests.backends.model_server import ModelServer, chunk, refusal, reply, sse

__all__ = ["server"]

TASK = AgentTaskSpec("t-9", "Answer a policy question")
COUNTED = {"prompt_tokens": 9, "completion_tokens": 2}
USAGE = {"id": "chatcmpl-1", "model": "model-1-0613", "choices": [], "usage": COUNTED}
ANSWER = sse(chunk(content="Hello"), chunk(content=" there"), chunk("stop"), USAGE, "[DONE]")


async def test_9_4_r8_what_an_endpoint_tells_without_choices_is_mapped_by_default(
    server: ModelServer,
) -> None:
    wire = sse(
        {"text": "It is "},
        {"type": "tool_call", "data": {"name": "look", "id": "1", "input": {"at": 2}}},
        {"type": "artifact", "data": {"artifactId": "a-1"}},
        {"type": "text_delta", "data": {"text": "warm."}},
        {"type": "weather", "text": ""},
        {"type": "result", "data": {"finalText": "It is warm. Bye."}},
        "[DONE]",
    )

    server.will(reply(wire))
    backend = create_openai_compatible_backend(
        api_key="sk-secret", base_url=server.base_url, model="model-1"
    )
    events = await read(run_agent_task_stream(TASK, backend))
    told = [each.type for each in events if isinstance(each, BACKEND_EVENTS)]
    assert told == ["text_delta", "tool_call", "artifact", "text_delta", "text_delta"]
    final = final_of(events)
    assert (final.status, final.text) == ("completed", "It is warm. Bye.")
    await backend.aclose()


async def test_9_4_r8_the_text_is_that_of_the_first_choice_in_a_delta_or_a_whole_message(
    server: ModelServer,
) -> None:
    other = {"index": 1, "delta": {"content": "no"}}
    wire = sse(
        {"choices": [{"index": 0, "delta": {"content": "Wa"}}, other]},
        {"choices": [{"index": 0, "message": {"content": "rm."}, "finish_reason": "stop"}]},
        "[DONE]",
    )
    server.will(reply(b": a comment\n\n" + wire.replace(b"\n", b"\r\n")))
    backend = create_openai_compatible_backend(
        api_key="sk-secret", base_url=server.base_url, model="model-1"
    )
    final = final_of(await read(run_agent_task_stream(TASK, backend)))
    await backend.aclose()
    assert (final.status, final.text) == ("completed", "Warm.")


async def test_9_4_r8_what_cannot_be_read_is_no_text(server: ModelServer) -> None:
    server.will(reply(sse({"choices": [{"delta": {"content": "Wa"}}]}, "rm.", "[DONE]")))
    backend = create_openai_compatible_backend(
        api_key="sk-secret", base_url=server.base_url, model="model-1"
    )
    final = final_of(await read(run_agent_task_stream(TASK, backend)))
    await backend.aclose()
    assert (final.status, final.text) == ("failed", "Wa")


def test_the_events_that_are_told_are_those_that_are_mapped() -> None:
    mapped = {kind for kind in AGENT_EVENTS if event_of_raw(_raw(kind)) is not None}
    assert mapped == AGENT_EVENTS


def _raw(kind: str) -> dict[str, str]:
    return {"type": kind, "text": "x", "id": "1", "artifactId": "a", "proposalId": "p"}


@pytest.mark.parametrize("slashes", ["", "/"])
async def test_9_4_r1_r9_one_request_with_the_key_asks_for_a_stream_and_its_usage(
    server: ModelServer, slashes: str
) -> None:
    server.will(reply(ANSWER))
    backend = create_openai_compatible_backend(
        api_key="sk-secret", base_url=f"{server.base_url}{slashes}", model="model-1"
    )
    await read(run_agent_task_stream(TASK, backend))
    await backend.aclose()
    [asked] = server.received
    assert (asked.method, asked.target) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == "Bearer sk-secret"
    assert asked.headers["content-type"] == "application/json"
    assert (asked.body["model"], asked.body["stream"]) == ("model-1", True)
    assert asked.body["stream_options"] == {"include_usage": True}
    assert asked.body["messages"] == [{"role": "user", "content": TASK.intent}]


TALK = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({"messages": TALK, "message": "Hi"}, list(TALK)),
        ({"message": "Hi"}, [{"role": "user", "content": "Hi"}]),
        ({}, [{"role": "user", "content": TASK.intent}]),
    ],
)
async def test_9_4_r2_a_conversation_goes_before_a_message_and_that_before_the_intent(
    server: ModelServer, given: dict[str, Any], messages: list[Any]
) -> None:
    server.will(reply(ANSWER))
    backend = create_openai_compatible_backend(
        api_key="sk-secret", base_url=server.base_url, model="model-1"
    )
    asked = AgentBackendInput(task=TASK, **given)
    final = final_of(await read(run_agent_task_stream(TASK, backend, input=asked)))
    await backend.aclose()
    assert server.received[0].body["messages"] == messages
    assert final.session is not None
    assert (backend.kind, final.session.backend) == ("tcloud", "tcloud")


@pytest.mark.parametrize("asked_for", ["s-7", None])
async def test_9_4_r3_a_session_has_the_id_that_was_asked_for_and_no_metadata(
    server: ModelServer, asked_for: str | None
) -> None:
    server.will(reply(ANSWER))
    backend = create_openai_compatible_backend(
        api_key="sk-secret", base_url=server.base_url, model="model-1", kind="mine"
    )
    choice = SessionChoice(InMemoryRuntimeSessionStore(), asked_for)
    events = await read(run_agent_task_stream(TASK, backend, session=choice))
    await backend.aclose()
    session = final_of(events).session
    assert session is not None
    assert (session.backend, session.metadata, session.resume_token) == ("mine", None, None)
    assert session.id == asked_for or (asked_for is None and session.id)


LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("tools", [(), (LOOK,)])
async def test_9_6_r1_what_is_wanted_is_sent_and_a_choice_of_tools_only_with_tools(
    server: ModelServer, tools: tuple[Any, ...]
) -> None:
    server.will(reply(ANSWER))
    wanted = {"response_format": {"type": "json_object"}, "temperature": 0.5, "max_tokens": 7}
    backend = create_openai_compatible_backend(
        api_key="sk-secret",
        base_url=server.base_url,
        model="model-1",
        options=ModelOptions(tools=tools, tool_choice="required", **cast("Any", wanted)),
    )
    await read(run_agent_task_stream(TASK, backend))
    await backend.aclose()
    body = server.received[0].body
    assert {name: body.get(name) for name in wanted} == wanted
    expected = {"tools": [LOOK], "tool_choice": "required"} if tools else {}
    assert {name: body[name] for name in ("tools", "tool_choice") if name in body} == expected


async def test_9_6_r2_one_call_is_told_behind_the_answer_whose_cost_nobody_knows(
    server: ModelServer,
) -> None:
    server.will(reply(ANSWER))
    backend = create_openai_compatible_backend(
        api_key="sk-secret", base_url=server.base_url, model="model-1"
    )
    events = await read(run_agent_task_stream(TASK, backend))
    await backend.aclose()
    [call] = [event for event in events if isinstance(event, LlmCallEvent)]
    assert events[-4] == call
    assert (call.model, call.cost_usd) == ("model-1-0613", None)
    assert "costUsd" not in event_to_wire(call)


async def test_9_6_r5_an_error_within_the_answer_is_no_empty_success(server: ModelServer) -> None:
    server.will(reply(sse({"error": {"message": "overloaded", "code": 503}})))
    backend = create_openai_compatible_backend(
        api_key="sk-secret", base_url=server.base_url, model="model-1"
    )
    final = final_of(await read(run_agent_task_stream(TASK, backend)))
    await backend.aclose()
    assert final.status == "failed"
    assert final.error is not None
    assert final.error.kind == "transport"


async def test_9_6_r4_a_body_is_kept_to_2048_characters(server: ModelServer) -> None:
    server.will(refusal(400, b"x" * 3_000))
    backend = create_openai_compatible_backend(
        api_key="sk-secret", base_url=server.base_url, model="model-1"
    )
    events = await read(run_agent_task_stream(TASK, backend))
    await backend.aclose()
    error, final = events[-3], final_of(events)
    assert isinstance(error, BackendErrorEvent)
    assert final.error is not None
    assert final.error == error.error
    assert final.error.body == "x" * 2_048 + "…"
