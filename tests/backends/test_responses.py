"""The Responses API: what is asked, and what is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from perdure.backends.protocol import Prompt
from perdure.core.frames import (
    Frame,
    reasoning,
    source,
    text,
    tool_call,
    tool_result,
    upstream_begin,
    upstream_end,
)
from tests.backends.asking import KEY, PROMPT
from tests.backends.model_server import ModelServer, reply, sse, tiny
from tests.backends.responding import (
    BEGUN,
    COUNTED,
    DONE,
    HANDLE,
    HELLO,
    HELLO_FRAMES,
    USED,
    ask,
    ask_in_vain,
    backend_of,
    delta,
    event,
    response,
)


async def asked(server: ModelServer, prompt: Prompt, **options: Any) -> dict[str, Any]:
    """Return the body of the request that a prompt becomes."""
    server.will(reply(sse(*HELLO)))
    await ask(backend_of(server, **options), prompt)
    return dict(server.received[0].body)


# What is asked.


async def test_an_answer_is_asked_for_in_the_background(server: ModelServer) -> None:
    server.will(reply(sse(*HELLO)))
    assert await ask(backend_of(server), PROMPT._replace(idempotency_key="k-1")) == HELLO_FRAMES
    (request,) = server.received
    assert (request.method, request.target) == ("POST", "/v1/responses")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["idempotency-key"] == "k-1"
    assert request.body == {
        "model": "model-1",
        "input": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "background": True,
        "store": True,
    }


async def test_messages_of_the_chat_completions_become_items(server: ModelServer) -> None:
    function = {"name": "search", "arguments": '{"q": 1}'}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    body = await asked(
        server,
        Prompt(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "What?"}, picture]},
                {
                    "role": "assistant",
                    "content": "Let me look.",
                    "tool_calls": [{"id": "c1", "type": "function", "function": function}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "found"},
                {"role": "assistant", "content": [{"type": "text", "text": "It is"}]},
            ]
        ),
    )
    assert body["input"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What?"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
            ],
        },
        {"role": "assistant", "content": "Let me look."},
        {"type": "function_call", "call_id": "c1", **function},
        {"type": "function_call_output", "call_id": "c1", "output": "found"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "It is"}]},
    ]


async def test_what_else_a_prompt_says_has_other_names(server: ModelServer) -> None:
    search = {"name": "search", "parameters": {"type": "object"}}
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    body = await asked(
        server,
        PROMPT._replace(
            model="model-2",
            tools=[{"type": "function", "function": search}],
            tool_choice={"type": "function", "function": {"name": "search"}},
            response_format={"type": "json_schema", "json_schema": schema},
            temperature=0.5,
            max_tokens=7,
            extra_body={"service_tier": "flex", "store": False},
        ),
    )
    assert body["model"] == "model-2"
    assert body["tools"] == [{"type": "function", **search}]
    assert body["tool_choice"] == {"type": "function", "name": "search"}
    assert body["text"] == {"format": {"type": "json_schema", **schema}}
    assert (body["temperature"], body["max_output_tokens"]) == (0.5, 7)
    assert (body["service_tier"], body["store"]) == ("flex", False)


@pytest.mark.parametrize("choice", ["required", None])
async def test_a_choice_of_tools_may_be_a_word(server: ModelServer, choice: str | None) -> None:
    tool = {"type": "function", "function": {"name": "search"}}
    body = await asked(server, PROMPT._replace(tools=[tool], tool_choice=choice))
    assert body.get("tool_choice") == choice


async def test_a_format_without_a_schema_is_named(server: ModelServer) -> None:
    body = await asked(server, PROMPT._replace(response_format={"type": "json_object"}))
    assert body["text"] == {"format": {"type": "json_object"}}


# What is read.

CASES: dict[str, tuple[Sequence[dict[str, Any]], Sequence[Frame]]] = {
    "text and refusals": (
        [delta(1, "No"), delta(2, " thanks", "refusal"), DONE],
        [text("No"), text(" thanks"), USED, upstream_end("stop")],
    ),
    "reasoning, and summaries of it": (
        [
            delta(1, "hm", "reasoning_text"),
            event("response.reasoning_summary_part.added", 2, summary_index=0),
            delta(3, "one", "reasoning_summary_text"),
            event("response.reasoning_summary_part.added", 4, summary_index=1),
            delta(5, "two", "reasoning_summary_text"),
            DONE,
        ],
        [reasoning(each) for each in ("hm", "one", "\n\n", "two")] + [USED, upstream_end("stop")],
    ),
    "calls of tools": (
        [
            event(
                "response.output_item.done",
                1,
                item={
                    "type": "function_call",
                    "call_id": "c1",
                    "name": "search",
                    "arguments": '{"q": 1}',
                },
            ),
            event("response.output_item.done", 2, item={"type": "message"}),
            DONE,
        ],
        [tool_call("c1", "search", {"q": 1}), USED, upstream_end("tool_calls")],
    ),
    "sources": (
        [
            event(
                "response.output_text.annotation.added",
                1,
                annotation={"type": "url_citation", "url": "https://a.example", "title": "A"},
            ),
            event("response.output_text.annotation.added", 2, annotation={"type": "file_path"}),
            DONE,
        ],
        [source("https://a.example", "A"), USED, upstream_end("stop")],
    ),
    "an answer cut by its length": (
        [
            delta(1, "He"),
            event(
                "response.incomplete",
                2,
                response=response(incomplete_details={"reason": "max_output_tokens"}),
            ),
        ],
        [text("He"), upstream_end("length")],
    ),
    "an answer cut by a filter": (
        [
            event(
                "response.incomplete",
                1,
                response=response(incomplete_details={"reason": "content_filter"}),
            )
        ],
        [upstream_end("content_filter")],
    ),
    "a call that was cut off before its arguments": (
        [
            event(
                "response.output_item.done",
                1,
                item={
                    "type": "function_call",
                    "call_id": "c1",
                    "name": "delete",
                    "arguments": "",
                    "status": "incomplete",
                },
            ),
            event(
                "response.incomplete",
                2,
                response=response(incomplete_details={"reason": "max_output_tokens"}),
            ),
        ],
        [tool_call("c1", "delete", ""), upstream_end("length")],
    ),
    "characters that two deltas share": (
        [delta(1, "Hi \ud83d"), delta(2, "\udc4b!"), DONE],
        [text("Hi "), text("👋!"), USED, upstream_end("stop")],
    ),
    "events that all have one number": (
        [delta(0, "Hel"), delta(0, "lo"), {**DONE, "sequence_number": 0}],
        [text("Hel"), text("lo"), USED, upstream_end("stop")],
    ),
    "what nobody knows, and what is empty": (
        [
            event("response.in_progress", 1, response=response()),
            event("response.new_thing", 2, delta="?"),
            delta(3, ""),
            DONE,
        ],
        [USED, upstream_end("stop")],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_tiny", [False, True])
async def test_events_become_frames(server: ModelServer, name: str, is_tiny: bool) -> None:
    events, frames = CASES[name]
    stream = sse(BEGUN, *events)
    server.will(reply(*(tiny(stream, 7) if is_tiny else [stream])))
    assert await ask(backend_of(server)) == [upstream_begin(HANDLE), *frames]


async def test_a_response_that_is_not_kept_has_no_handle(server: ModelServer) -> None:
    begun = event("response.created", 0, response=response(background=False))
    server.will(reply(sse(begun, delta(1, "a"), DONE)))
    kinds = [frame.kind for frame in await ask(backend_of(server))]
    assert kinds == ["text", "usage", "upstream_end"]


async def test_an_id_that_cannot_stand_in_an_address_is_no_handle(server: ModelServer) -> None:
    begun = event("response.created", 0, response=response(id="../files"))
    server.will(reply(sse(begun, delta(1, "a"), DONE)))
    assert (await ask(backend_of(server)))[0] == text("a")


@pytest.mark.parametrize(
    ("last", "retryable"),
    [
        (
            event(
                "response.failed",
                2,
                response=response(usage=COUNTED, error={"code": "server_error", "message": KEY}),
            ),
            True,
        ),
        (event("error", 2, code="content_policy_violation", message=KEY), False),
        (event("response.cancelled", 2, response=response(usage=COUNTED)), True),
    ],
    ids=["failed", "error", "cancelled"],
)
async def test_a_response_that_failed_raises_behind_its_usage(
    server: ModelServer, last: dict[str, Any], retryable: bool
) -> None:
    server.will(reply(sse(BEGUN, delta(1, "He"), last)))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames[:2] == [upstream_begin(HANDLE), text("He")]
    assert frames[2:] == ([USED] if "usage" in last.get("response", {}) else [])
    assert failure.retryable is retryable
    assert KEY not in failure.body
    assert len(server.received) == 1, "what the provider has given up is not joined"


@pytest.mark.parametrize(
    "broken",
    [
        b"data: {no json\n\n",
        b"data: [1]\n\n",
        sse(event("response.output_item.done", 1, item={"type": "function_call", "name": "x"})),
        sse(event("response.output_text.delta", 1, delta=7)),
    ],
)
async def test_what_cannot_be_read_is_a_failure(server: ModelServer, broken: bytes) -> None:
    server.will(reply(sse(BEGUN) + broken))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == [upstream_begin(HANDLE)]
    assert "no event of a response" in str(failure)


async def test_what_the_provider_runs_itself_is_told_as_call_and_result(
    server: ModelServer,
) -> None:
    action = {"type": "search", "query": "warm"}
    ran: list[tuple[dict[str, Any], list[Frame]]] = [
        (
            {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": action},
            [
                tool_call("ws_1", "web_search", {"action": action}, "idempotent"),
                tool_result("ws_1", "completed"),
            ],
        ),
        (
            {"type": "file_search_call", "id": "fs_1", "queries": ["a"], "results": None},
            [
                tool_call("fs_1", "file_search", {"queries": ["a"]}, "idempotent"),
                tool_result("fs_1"),
            ],
        ),
        (
            {"type": "code_interpreter_call", "id": "ci_1", "code": "1+1", "outputs": [{"n": 2}]},
            [
                tool_call("ci_1", "code_interpreter", {"code": "1+1"}, "idempotent"),
                tool_result("ci_1", [{"n": 2}]),
            ],
        ),
        (
            {"type": "mcp_call", "id": "m_1", "name": "pay", "arguments": "{}", "output": "paid"},
            [tool_call("m_1", "pay", {}), tool_result("m_1", "paid")],
        ),
        (
            {"type": "mcp_call", "id": "m_2", "name": "pay", "arguments": "{}", "error": "broke"},
            [tool_call("m_2", "pay", {}), tool_result("m_2", "broke")],
        ),
    ]
    items = [
        event("response.output_item.done", number, item=item)
        for number, (item, _) in enumerate(ran, 1)
    ]
    server.will(reply(sse(BEGUN, *items, DONE)))
    frames = [frame for _, frames in ran for frame in frames]
    assert await ask(backend_of(server)) == [
        upstream_begin(HANDLE),
        *frames,
        USED,
        upstream_end("stop"),
    ]


ASKED: list[tuple[dict[str, Any], str]] = [
    ({"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "x"}, "as a function"),
    ({"type": "computer_call", "call_id": "c", "action": {"type": "click"}}, "offer the model"),
    ({"type": "local_shell_call", "call_id": "c", "action": {}}, "offer the model"),
    ({"type": "shell_call", "call_id": "c", "action": {}}, "a container of its own"),
    ({"type": "apply_patch_call", "call_id": "c", "operation": {}}, "offer the model"),
    ({"type": "mcp_approval_request", "id": "m", "name": "pay"}, '"require_approval": "never"'),
]


@pytest.mark.parametrize(("item", "way_out"), ASKED, ids=[item["type"] for item, _ in ASKED])
async def test_what_nobody_here_carries_out_is_refused_with_the_way_out(
    server: ModelServer, item: dict[str, Any], way_out: str
) -> None:
    server.will(reply(sse(BEGUN, event("response.output_item.done", 1, item=item), DONE)))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames == [upstream_begin(HANDLE), USED]
    assert f"answered with a {item['type']}, which nobody here carries out" in str(failure)
    assert way_out in str(failure)
    assert not failure.retryable
    assert len(server.received) == 1


async def test_a_shell_in_a_container_of_the_provider_is_none_of_ours(server: ModelServer) -> None:
    ran = [
        {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "c", "output": []},
    ]
    items = [event("response.output_item.done", n, item=item) for n, item in enumerate(ran, 1)]
    server.will(reply(sse(BEGUN, *items, delta(3, "Done."), DONE)))
    assert [frame.kind for frame in await ask(backend_of(server))][-2:] == ["usage", "upstream_end"]
