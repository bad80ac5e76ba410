"""What a provider wants back with the results of tools: told with an answer, sent with the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from perdure.backends.anthropic import PAUSES_MAX
from perdure.backends.protocol import Backend, Prompt
from perdure.backends.replay import without_replay
from perdure.core.frames import Frame, text, upstream_end
from perdure.core.records import JsonValue
from perdure.errors import BackendTransportError
from perdure.turn.parts import frame_of
from tests.backends import asking, messaging, responding
from tests.backends.messaging import begun, block, changed, delta, end, wire
from tests.backends.model_server import Cut, ModelServer, chunk, refusal, reply, sse

USER = {"role": "user", "content": "How warm?"}


def calling(replay: JsonValue, id: str = "c1") -> dict[str, JsonValue]:
    """Return an answer that calls a tool, as a loop keeps it."""
    function = {"name": "look", "arguments": "{}"}
    made = [{"id": id, "type": "function", "function": function}]
    told = {} if replay is None else {"replay": replay}
    return {"role": "assistant", "content": "So:", "tool_calls": made, **told}


def answered(id: str = "c1") -> dict[str, JsonValue]:
    return {"role": "tool", "tool_call_id": id, "content": "20"}


async def all_of(backend: Backend, prompt: Prompt) -> list[Frame]:
    try:
        return [frame async for frame in backend.stream(prompt)]
    finally:
        await backend.aclose()


async def sent(server: ModelServer, backend: Backend, *messages: Mapping[str, Any]) -> Any:
    """Return what the provider is sent; it refuses it, since the answer does not matter."""
    server.will(refusal(400))
    with pytest.raises(BackendTransportError):
        await all_of(backend, Prompt(messages))
    return server.received[-1].body


# Anthropic's messages.

THOUGHT = {"type": "thinking", "thinking": "Hm. Look.", "signature": "EqQB"}
SEARCH = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"q": "a"}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"url": "u"}]}
THINKING_AND_CALLING = [
    begun(),
    block(0, "thinking", thinking="", signature=""),
    delta(0, "thinking_delta", thinking="Hm. "),
    delta(0, "thinking_delta", thinking="Look."),
    delta(0, "signature_delta", signature="EqQB"),
    end(0),
    block(1, "redacted_thinking", data="opaque"),
    end(1),
    block(2, "text", text=""),
    delta(2, "text_delta", text="So:"),
    delta(2, "citations_delta", citation={"url": "u", "cited_text": "t"}),
    end(2),
    block(3, "tool_use", id="c1", name="look", input={}),
    delta(3, "input_json_delta", partial_json='{"at": '),
    delta(3, "input_json_delta", partial_json="2}"),
    end(3),
    changed("tool_use", output_tokens=7),
    messaging.STOP,
]
BLOCKS: list[dict[str, Any]] = [
    THOUGHT,
    {"type": "redacted_thinking", "data": "opaque"},
    {"type": "text", "text": "So:", "citations": [{"url": "u", "cited_text": "t"}]},
    {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": 2}},
]


async def test_signed_thoughts_are_told_with_the_call_that_they_led_to(
    server: ModelServer,
) -> None:
    server.will(reply(wire(*THINKING_AND_CALLING)))
    found = await messaging.ask(messaging.backend_of(server))
    replay = {"backend": "anthropic/messages", "content": BLOCKS}
    assert found[-1] == upstream_end("tool_calls", replay=replay)


async def test_what_was_told_is_sent_as_it_was_with_the_ids_that_the_calls_have_now(
    server: ModelServer,
) -> None:
    replay = {"backend": "anthropic/messages", "content": BLOCKS}
    backend = messaging.backend_of(server)
    body = await sent(server, backend, USER, calling(replay, "c1_2"), answered("c1_2"))
    [said, told] = body["messages"][1:]
    assert said["content"][:3] == BLOCKS[:3]
    assert said["content"][3] == {**BLOCKS[3], "id": "c1_2", "input": {}}
    assert told["content"][0]["tool_use_id"] == "c1_2"


async def test_what_does_not_fit_to_the_calls_any_more_is_left_out(server: ModelServer) -> None:
    replay = {"backend": "anthropic/messages", "content": BLOCKS[:3]}
    body = await sent(server, messaging.backend_of(server), USER, calling(replay), answered())
    kinds = [each["type"] for each in body["messages"][1]["content"]]
    assert kinds == ["text", "tool_use"]


# An answer that pauses.

PAUSED = [
    begun(),
    block(0, "text", text=""),
    delta(0, "text_delta", text="I look. "),
    end(0),
    block(1, "server_tool_use", id="s1", name="web_search", input={}),
    delta(1, "input_json_delta", partial_json='{"q": "a"}'),
    end(1),
    block(2, "web_search_tool_result", **{k: v for k, v in FOUND.items() if k != "type"}),
    end(2),
    changed("pause_turn", output_tokens=5),
    messaging.STOP,
]
SAID = [{"type": "text", "text": "I look. "}, SEARCH, FOUND]


async def test_an_answer_that_pauses_is_gone_on_with_and_is_one_answer(
    server: ModelServer,
) -> None:
    server.will(reply(wire(*PAUSED)), reply(wire(*PAUSED)), reply(wire(*messaging.HELLO)))
    backend = messaging.backend_of(server)
    found = await messaging.ask(backend, Prompt([USER], idempotency_key="key"))
    kinds = ["text", "tool_call", "tool_result"]
    assert [frame.kind for frame in found] == [*kinds * 2, "text", "text", "usage", "upstream_end"]
    assert found[-1] == upstream_end("stop")
    counted = found[-2].data
    assert (counted["in"], counted["cached"], counted["out"]) == (45, 12, 17)
    asked = [received.body["messages"] for received in server.received]
    assert [each[0]["role"] for each in asked] == ["user"] * 3
    assert asked[1][1:] == [{"role": "assistant", "content": SAID}]
    assert asked[2][1:] == [{"role": "assistant", "content": SAID * 2}]
    keys = [received.headers["idempotency-key"] for received in server.received]
    assert keys == ["key", "key-1", "key-2"]


async def test_an_answer_is_gone_on_with_so_often_only(server: ModelServer) -> None:
    server.will(*[reply(wire(*PAUSED))] * 20)
    found = await messaging.ask(messaging.backend_of(server))
    assert found[-1] == upstream_end("pause_turn")
    assert [frame.kind for frame in found].count("usage") == 1
    assert len(server.received) == 1 + PAUSES_MAX


@pytest.mark.parametrize("then", [refusal(400), reply(wire(begun()), Cut())])
async def test_what_was_used_before_a_pause_is_told_where_it_does_not_go_on(
    server: ModelServer, then: Any
) -> None:
    server.will(reply(wire(*PAUSED)), then)
    found, _ = await messaging.ask_in_vain(messaging.backend_of(server))
    assert [frame.kind for frame in found].count("usage") == 1
    used = found[-1].data
    # Nobody knows how much came out of an answer that broke off, whatever came before it.
    has_begun = used["in"] > 15
    assert used["in"] == (30 if has_begun else 15)
    assert used.get("out") == (None if has_begun else 5)


async def test_the_thoughts_before_a_pause_are_told_with_the_calls_behind_it(
    server: ModelServer,
) -> None:
    server.will(reply(wire(*PAUSED)), reply(wire(*THINKING_AND_CALLING)))
    found = await messaging.ask(messaging.backend_of(server))
    assert found[-1].data["replay"]["content"] == SAID + BLOCKS


# Chat completions.

SIGNED = {"extra_content": {"google": {"thought_signature": "sig"}}}
CALLED = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": "{}"}, **SIGNED}
COMPLETION = {
    "backend": "openai/completions",
    "content": [{"reasoning_content": "Hm. Look."}, SIGNED],
}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_thoughts_in_the_open_and_signed_calls_are_told_by_their_name(
    server: ModelServer, name: str
) -> None:
    thinking = [chunk(**{name: "Hm. "}), chunk(**{name: "Look."})]
    server.will(reply(sse(*thinking, chunk("tool_calls", tool_calls=[CALLED]), "[DONE]")))
    told = {**COMPLETION, "content": [{name: "Hm. Look."}, SIGNED]}
    assert (await asking.ask(asking.backend_of(server)))[-1].data["replay"] == told


async def test_thoughts_and_signatures_are_sent_with_their_calls(server: ModelServer) -> None:
    body = await sent(server, asking.backend_of(server), USER, calling(COMPLETION), answered())
    plain = calling(None)
    [call] = plain["tool_calls"]
    thinking = {**plain, "reasoning_content": "Hm. Look.", "tool_calls": [{**call, **SIGNED}]}
    assert body["messages"] == [USER, thinking, answered()]


def detail(kind: str, index: int | None = 0, **fields: Any) -> dict[str, Any]:
    """Return a piece of a thought as OpenRouter tells it."""
    return {"type": f"reasoning.{kind}", "index": index, "format": "f-1", **fields}


DETAILED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], str]] = {
    "a text, and then its signature": (
        [
            detail("text", text="Hm. "),
            detail("text", text="Look.", signature=None),
            detail("text", signature="sig"),
        ],
        [detail("text", text="Hm. Look.", signature="sig")],
        "Hm. Look.",
    ),
    "a summary beside what is encrypted": (
        [
            detail("summary", summary="Hm. "),
            detail("summary", summary="Look."),
            detail("encrypted", data="opaque", id="rs_1"),
        ],
        [
            detail("summary", summary="Hm. Look."),
            detail("encrypted", data="opaque", id="rs_1"),
        ],
        "Hm. Look.",
    ),
    "thoughts in between each other": (
        [
            detail("text", 0, text="Hm. ", signature="a"),
            detail("encrypted", 1, data="redacted"),
            detail("text", 2, text="Lo"),
            detail("text", 2, text="ok.", signature="b"),
        ],
        [
            detail("text", 0, text="Hm. ", signature="a"),
            detail("encrypted", 1, data="redacted"),
            detail("text", 2, text="Look.", signature="b"),
        ],
        "Hm. Look.",
    ),
    "no index at all": (
        [detail("text", None, text="Hm. "), detail("text", None, text="Look.")],
        [detail("text", None, text="Hm. Look.")],
        "Hm. Look.",
    ),
    "signatures of the calls": (
        [detail("encrypted", data="x", id="c1"), detail("encrypted", data="y", id="c2")],
        [detail("encrypted", data="x", id="c1"), detail("encrypted", data="y", id="c2")],
        "",
    ),
}


@pytest.mark.parametrize("names_thought", [True, False], ids=["said", "detailed"])
@pytest.mark.parametrize("case", DETAILED)
async def test_details_of_thoughts_are_told_whole_and_sent_as_they_were(
    server: ModelServer, case: str, names_thought: bool
) -> None:
    pieces, whole, thought = DETAILED[case]
    thinking = [
        chunk(
            reasoning_details=[piece],
            **({"reasoning": piece.get("text") or piece.get("summary")} if names_thought else {}),
        )
        for piece in pieces
    ]
    plain = {name: value for name, value in CALLED.items() if name != "extra_content"}
    server.will(reply(sse(*thinking, chunk("tool_calls", tool_calls=[plain]), "[DONE]")))
    found = await asking.ask(asking.backend_of(server))
    said = "".join(frame.data["delta"] for frame in found if frame.kind == "reasoning")
    assert said == thought
    replay = found[-1].data["replay"]
    assert replay == {
        "backend": "openai/completions",
        "content": [{"reasoning_details": whole}, {}],
    }
    body = await sent(server, asking.backend_of(server), USER, calling(replay), answered())
    assert body["messages"][1] == {**calling(None), "reasoning_details": whole}


async def test_a_thought_that_is_told_in_both_dialects_is_sent_in_one(server: ModelServer) -> None:
    thinking = chunk(
        reasoning_content="Hm.", reasoning="Hm.", reasoning_details=[detail("text", text="Hm.")]
    )
    server.will(reply(sse(thinking, chunk("tool_calls", tool_calls=[CALLED]), "[DONE]")))
    found = await asking.ask(asking.backend_of(server))
    assert [frame.data["delta"] for frame in found if frame.kind == "reasoning"] == ["Hm."]
    assert found[-1].data["replay"]["content"] == [
        {"reasoning_details": [detail("text", text="Hm.")]},
        SIGNED,
    ]


@pytest.mark.parametrize("details", ["x", ["x"], [{"type": "reasoning.text", "text": 5}]])
async def test_details_of_another_shape_are_a_failure(server: ModelServer, details: Any) -> None:
    server.will(reply(sse(chunk(reasoning_details=details), chunk("stop"), "[DONE]")))
    with pytest.raises(BackendTransportError, match="no chat completion"):
        await asking.ask(asking.backend_of(server))


# Responses.

REASONED = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "e"}
FUNCTION = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look"}
ITEMS: list[dict[str, Any]] = [REASONED, {**FUNCTION, "arguments": "{}"}]
RESPONSE = {"backend": "openai/responses", "content": ITEMS}


async def test_the_output_that_called_is_told_where_the_model_thought(server: ModelServer) -> None:
    items = [
        responding.event("response.output_item.done", number, item=item)
        for number, item in enumerate(ITEMS, 1)
    ]
    server.will(reply(sse(responding.BEGUN, *items, responding.DONE)))
    found = await responding.ask(responding.backend_of(server))
    assert found[-1] == upstream_end("tool_calls", replay=RESPONSE)


async def test_the_output_is_sent_as_it_was(server: ModelServer) -> None:
    backend = responding.backend_of(server)
    body = await sent(server, backend, USER, calling(RESPONSE, "c9"), answered("c9"))
    output = {"type": "function_call_output", "call_id": "c9", "output": "20"}
    assert body["input"][1:] == [REASONED, {**ITEMS[1], "call_id": "c9"}, output]


@pytest.mark.parametrize("is_encrypted", [True, False])
async def test_thoughts_that_nobody_kept_are_not_named(
    server: ModelServer, is_encrypted: bool
) -> None:
    thought = REASONED if is_encrypted else {**REASONED, "encrypted_content": None}
    replay = {**RESPONSE, "content": [thought, ITEMS[1]]}
    server.will(refusal(400))
    backend = responding.backend_of(server)
    prompt = Prompt([USER, calling(replay), answered()], extra_body={"store": False})
    with pytest.raises(BackendTransportError):
        await all_of(backend, prompt)
    is_sent = thought in server.received[-1].body["input"]
    assert is_sent is is_encrypted


# Everybody else.


@pytest.mark.parametrize("told", [COMPLETION, RESPONSE])
async def test_nobody_is_sent_what_another_one_told(server: ModelServer, told: Any) -> None:
    body = await sent(server, messaging.backend_of(server), USER, calling(told), answered())
    assert "replay" not in body["messages"][1]
    assert [each["type"] for each in body["messages"][1]["content"]] == ["text", "tool_use"]
    foreign = calling({"backend": "anthropic/messages", "content": BLOCKS})
    body = await sent(server, asking.backend_of(server), USER, foreign, answered())
    assert body["messages"] == [USER, calling(None), answered()]
    body = await sent(server, responding.backend_of(server), USER, foreign, answered())
    kinds = [item.get("type", item.get("role")) for item in body["input"]]
    assert kinds == ["user", "assistant", "function_call", "function_call_output"]


def test_a_turn_stores_and_shows_nothing_of_it() -> None:
    assert frame_of(upstream_end("stop", replay=COMPLETION)) == upstream_end("stop")
    assert frame_of(text("Hi")) == text("Hi")
    assert without_replay([USER, calling(COMPLETION)]) == [USER, calling(None)]
