"""The Messages API: how it is called, and what is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.backends.anthropic import AnthropicBackend
from perdure.core.frames import (
    Frame,
    reasoning,
    source,
    text,
    tool_call,
    tool_result,
    upstream_end,
)
from perdure.errors import BackendTransportError, UsageError
from tests.backends.asking import KEY, PROMPT
from tests.backends.messaging import (
    COUNTED,
    ENDING,
    HELLO,
    HELLO_FRAMES,
    PING,
    STOP,
    USED,
    ask,
    ask_in_vain,
    backend_of,
    begun,
    block,
    changed,
    delta,
    end,
    wire,
)
from tests.backends.model_server import Hang, ModelServer, Reply, reply, tiny


async def read(server: ModelServer, *records: dict[str, Any]) -> list[Frame]:
    """Return what is read of the events of a message, without its usage."""
    server.will(reply(wire(*records)))
    return [frame for frame in await ask(backend_of(server)) if frame.kind != "usage"]


# How it is called.


async def test_an_answer_is_one_streamed_post(server: ModelServer) -> None:
    server.will(reply(wire(*HELLO)))
    assert await ask(backend_of(server), PROMPT._replace(idempotency_key="k-1")) == HELLO_FRAMES
    (request,) = server.received
    assert (request.method, request.target) == ("POST", "/v1/messages")
    assert request.headers["x-api-key"] == KEY
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert request.headers["idempotency-key"] == "k-1"
    assert "authorization" not in request.headers
    assert request.body == {
        "model": "claude-1",
        "max_tokens": 8_192,
        "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    }


async def test_the_address_may_be_named_without_its_version(server: ModelServer) -> None:
    server.will(reply(wire(*HELLO)))
    origin = server.base_url.removesuffix("/v1")
    assert await ask(backend_of(server, base_url=origin + "/")) == HELLO_FRAMES
    assert server.received[0].target == "/v1/messages"


async def test_headers_of_the_caller_win(server: ModelServer) -> None:
    server.will(reply(wire(*HELLO)))
    own = {"anthropic-version": "2030-01-01", "anthropic-beta": "a-1"}
    await ask(backend_of(server, headers=own))
    headers = server.received[0].headers
    assert (headers["anthropic-version"], headers["anthropic-beta"]) == ("2030-01-01", "a-1")


async def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="max_tokens"):
        AnthropicBackend(model="claude-1", max_tokens=0)


# What is read.


@pytest.mark.parametrize("size", [1, 2, 7, 64])
async def test_chunks_may_be_cut_anywhere(server: ModelServer, size: int) -> None:
    server.will(reply(*tiny(wire(*HELLO), size)))
    assert await ask(backend_of(server)) == HELLO_FRAMES


async def test_the_provider_names_the_request_in_a_header(server: ModelServer) -> None:
    headers = {"content-type": "text/event-stream", "request-id": "req_7"}
    server.will(Reply((wire(*HELLO),), headers=headers))
    frames = await ask(backend_of(server))
    assert frames[-2].data["request"] == "req_7"


async def test_a_thought_is_told_apart_from_text(server: ModelServer) -> None:
    found = await read(
        server,
        begun(),
        block(0, "thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="Let me "),
        delta(0, "thinking_delta", thinking="see."),
        delta(0, "signature_delta", signature="EqQB"),
        end(0),
        block(1, "redacted_thinking", data="opaque"),
        end(1),
        block(2, "text", text="So: "),
        delta(2, "text_delta", text="yes"),
        end(2),
        *ENDING,
    )
    assert found == [
        reasoning("Let me "),
        reasoning("see."),
        text("So: "),
        text("yes"),
        upstream_end("stop"),
    ]


async def test_tools_are_called_with_their_arguments_once_these_are_whole(
    server: ModelServer,
) -> None:
    found = await read(
        server,
        begun(),
        block(0, "text", text=""),
        delta(0, "text_delta", text="I look."),
        end(0),
        block(1, "tool_use", id="toolu_1", name="look", input={}),
        delta(1, "input_json_delta", partial_json=""),
        delta(1, "input_json_delta", partial_json='{"at": '),
        block(2, "tool_use", id="toolu_2", name="now", input={}),
        delta(1, "input_json_delta", partial_json="2}"),
        end(1),
        end(2),
        changed("tool_use"),
        STOP,
    )
    assert found == [
        text("I look."),
        tool_call("toolu_1", "look", {"at": 2}),
        tool_call("toolu_2", "now", {}),
        upstream_end("tool_calls"),
    ]


async def test_a_tool_that_the_provider_runs_has_a_result_too(server: ModelServer) -> None:
    hits = [{"type": "web_search_result", "url": "https://a.example", "title": "A"}]
    cited = {"type": "web_search_result_location", "url": "https://a.example", "title": "A"}
    found = await read(
        server,
        begun(),
        block(0, "server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        delta(0, "input_json_delta", partial_json='{"query": "a"}'),
        end(0),
        block(1, "web_search_tool_result", tool_use_id="srvtoolu_1", content=hits),
        end(1),
        block(2, "text", text=""),
        delta(2, "text_delta", text="It is A."),
        delta(2, "citations_delta", citation=cited),
        delta(2, "citations_delta", citation={"type": "char_location", "cited_text": "A"}),
        end(2),
        *ENDING,
    )
    assert found == [
        tool_call("srvtoolu_1", "web_search", {"query": "a"}, effect="idempotent"),
        tool_result("srvtoolu_1", hits),
        text("It is A."),
        source("https://a.example", "A"),
        upstream_end("stop"),
    ]


async def test_arguments_that_came_at_once_are_read(server: ModelServer) -> None:
    found = await read(
        server,
        begun(),
        block(0, "tool_use", id="t", name="look", input={"at": 1}),
        changed("tool_use"),
        STOP,
    )
    assert found == [tool_call("t", "look", {"at": 1}), upstream_end("tool_calls")]


@pytest.mark.parametrize("reason", ["max_tokens", "refusal"])
@pytest.mark.parametrize("is_ended", [True, False])
async def test_a_call_that_was_cut_off_before_its_arguments_is_none_without_any(
    server: ModelServer, reason: str, is_ended: bool
) -> None:
    found = await read(
        server,
        begun(),
        block(0, "tool_use", id="t1", name="now", input={}),
        end(0),
        block(1, "tool_use", id="t2", name="delete", input={}),
        delta(1, "input_json_delta", partial_json=""),
        *([end(1)] if is_ended else []),
        changed(reason),
        STOP,
    )
    assert found[:2] == [tool_call("t1", "now", {}), tool_call("t2", "delete", "")]


async def test_a_character_that_two_deltas_share_is_told_whole(server: ModelServer) -> None:
    found = await read(
        server,
        begun(),
        block(0, "text", text=""),
        delta(0, "text_delta", text="Hi \ud83d"),
        delta(0, "text_delta", text="\udc4b!"),
        end(0),
        *ENDING,
    )
    assert found[:2] == [text("Hi "), text("👋!")]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("tool_use", "tool_calls"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
        ("something_new", "something_new"),
    ],
)
async def test_why_an_answer_ended_is_told_in_the_words_of_all_backends(
    server: ModelServer, reason: str, finish: str
) -> None:
    assert await read(server, begun(), changed(reason), STOP) == [upstream_end(finish)]


async def test_what_is_not_known_is_passed_over(server: ModelServer) -> None:
    found = await read(
        server,
        PING,
        begun(),
        {"type": "something_new", "index": "x"},
        block(0, "novelty", text=7),
        delta(0, "novelty_delta", text=7),
        end(0),
        *ENDING,
    )
    assert found == [upstream_end("stop")]


async def test_later_counts_replace_earlier_ones(server: ModelServer) -> None:
    counted = {**COUNTED, "input_tokens": 20, "output_tokens": 5}
    server.will(reply(wire(begun(), changed("end_turn", **counted), STOP)))
    used = (await ask(backend_of(server)))[0].data
    assert (used["in"], used["out"], used["cached"], used["cache_written"]) == (26, 5, 4, 2)
    assert "reasoning" not in used


async def test_what_came_out_is_unknown_where_the_end_does_not_count_it(
    server: ModelServer,
) -> None:
    server.will(reply(wire(begun(), changed("end_turn"), STOP)))
    used = (await ask(backend_of(server)))[0].data
    assert (used["in"], used.get("out")) == (15, None)


async def test_a_nought_at_the_end_takes_nothing_back_of_what_went_in(server: ModelServer) -> None:
    nought = {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 5}
    server.will(reply(wire(begun(), changed("end_turn", **nought), STOP)))
    used = (await ask(backend_of(server)))[0].data
    assert (used["in"], used["out"], used["cached"], used["cache_written"]) == (15, 5, 4, 2)


async def test_nothing_is_counted_where_the_provider_counts_nothing(server: ModelServer) -> None:
    server.will(reply(wire(begun(usage=None), changed("end_turn"), STOP)))
    assert await ask(backend_of(server)) == [upstream_end("stop")]


async def test_the_last_blank_line_may_be_missing(server: ModelServer) -> None:
    server.will(reply(wire(*HELLO).removesuffix(b"\n")))
    assert await ask(backend_of(server)) == HELLO_FRAMES


async def test_a_provider_that_does_not_end_the_response_is_not_waited_for(
    server: ModelServer,
) -> None:
    server.will(reply(wire(*HELLO), Hang()))
    assert await ask(backend_of(server)) == HELLO_FRAMES


# What is no message.


@pytest.mark.parametrize(
    "record",
    [
        {"type": "content_block_delta", "index": 5, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 7}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_stop", "index": 5},
        {"type": "content_block_start", "index": 1, "content_block": "text"},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "x_tool_result"}},
        {"type": "message_start", "message": 7},
        STOP,
    ],
    ids=json.dumps,
)
async def test_an_event_of_another_shape_fails_the_answer(
    server: ModelServer, record: dict[str, Any]
) -> None:
    server.will(reply(wire(begun(), block(0, "text", text="a"), record, *ENDING)))
    frames, failure = await ask_in_vain(backend_of(server))
    assert frames[0] == text("a")
    assert "no event of a message" in str(failure)
    assert failure.retryable


async def test_a_call_without_a_name_fails_the_answer(server: ModelServer) -> None:
    server.will(reply(wire(begun(), block(0, "tool_use", id="t"), end(0), *ENDING)))
    frames, failure = await ask_in_vain(backend_of(server))
    assert [frame.kind for frame in frames] == ["usage"]
    assert isinstance(failure, BackendTransportError)


async def test_the_usage_of_a_whole_message_is_told_once(server: ModelServer) -> None:
    server.will(reply(wire(*HELLO, *HELLO)))
    assert [frame for frame in await ask(backend_of(server)) if frame.kind == "usage"] == [USED]
