"""A prompt as a request of the Messages API."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.backends.message_request import message_request
from perdure.backends.protocol import Prompt
from perdure.errors import UsageError

USER = {"role": "user", "content": "Hi"}
TEXT = {"type": "text", "text": "Hi"}
HI = {"role": "user", "content": [TEXT]}


def asked(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return message_request(Prompt(list(messages), **fields), model="m", max_tokens=100)


def calling(*ids: str, content: str | None = None, arguments: str = "{}") -> dict[str, Any]:
    calls = [
        {"id": id, "type": "function", "function": {"name": "look", "arguments": arguments}}
        for id in ids
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def answered(id: str, content: Any = "20") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def test_instructions_stand_beside_the_conversation() -> None:
    told = {"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."}
    body = asked(told[0], USER, told[1])
    assert body["system"] == "Be brief.\n\nBe kind."
    assert body["messages"] == [HI]
    assert "system" not in asked(USER)


def test_instructions_may_be_blocks_to_be_cached() -> None:
    cached = {"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}
    body = asked({"role": "system", "content": [cached]}, {"role": "system", "content": "b"}, USER)
    assert body["system"] == [cached, {"type": "text", "text": "b"}]


def test_a_call_and_its_result_are_blocks() -> None:
    body = asked(USER, calling("c-1", content="I look.", arguments='{"at": 2}'), answered("c-1"))
    used = {"type": "tool_use", "id": "c-1", "name": "look", "input": {"at": 2}}
    assert body["messages"][1:] == [
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, used]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c-1", "content": "20"}],
        },
    ]


def test_results_of_one_answer_and_what_the_user_says_next_are_one_message() -> None:
    body = asked(USER, calling("a", "b"), answered("a"), answered("b"), USER)
    said = body["messages"][-1]
    assert said["role"] == "user"
    assert [block["type"] for block in said["content"]] == ["tool_result", "tool_result", "text"]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]


def test_a_result_may_have_parts() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://a.example/1.png"}}
    body = asked(USER, calling("a"), answered("a", [{"type": "text", "text": "See"}, picture]))
    (result,) = body["messages"][-1]["content"]
    assert [block["type"] for block in result["content"]] == ["text", "image"]


def test_ids_of_other_providers_are_made_to_fit_on_both_sides() -> None:
    body = asked(USER, calling("functions.look:0"), answered("functions.look:0"))
    assert body["messages"][1]["content"][0]["id"] == "functions_look_0"
    assert body["messages"][2]["content"][0]["tool_use_id"] == "functions_look_0"


@pytest.mark.parametrize(
    ("written", "given"),
    [("", {}), ("[1]", {"arguments": [1]}), ('{"a', {"arguments": '{"a'})],
)
def test_arguments_are_always_an_object(written: str, given: Any) -> None:
    body = asked(USER, calling("a", arguments=written), answered("a"))
    assert body["messages"][1]["content"][0]["input"] == given


@pytest.mark.parametrize("blank", [None, "", " \n"])
def test_a_blank_text_is_left_out(blank: str | None) -> None:
    body = asked(USER, {"role": "assistant", "content": blank}, USER)
    assert body["messages"] == [{"role": "user", "content": [TEXT, TEXT]}]
    parts = {"role": "user", "content": [{"type": "text", "text": blank or ""}, TEXT]}
    assert asked(parts)["messages"] == [HI]


def test_an_answer_to_be_gone_on_with_ends_without_blanks() -> None:
    body = asked(USER, {"role": "assistant", "content": "Once upon \n"})
    assert body["messages"][-1]["content"] == [{"type": "text", "text": "Once upon"}]


def test_images_and_documents_are_blocks_with_a_source() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "https://a.example/1.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
        {
            "type": "file",
            "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,YQ=="},
        },
        {"type": "file", "file": {"file_id": "file_1"}},
    ]
    (message,) = asked({"role": "user", "content": parts})["messages"]
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "YQ=="}
    png = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    assert message["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://a.example/1.png"}},
        {"type": "image", "source": png},
        {"type": "document", "source": pdf, "title": "a.pdf"},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
    ]


def test_blocks_of_the_provider_are_sent_as_they_are() -> None:
    native = {"type": "document", "source": {"type": "url", "url": "https://a.example/a.pdf"}}
    (message,) = asked({"role": "user", "content": [native]})["messages"]
    assert message["content"] == [native]


def test_tools_have_a_schema_of_their_input() -> None:
    schema = {"type": "object", "properties": {"at": {"type": "integer"}}}
    search = {"type": "web_search_20250305", "name": "web_search"}
    function = {"name": "look", "description": "Looks.", "parameters": schema, "strict": True}
    body = asked(
        USER,
        tools=[
            {"type": "function", "function": function},
            {"type": "function", "function": {"name": "now"}},
            search,
        ],
    )
    assert body["tools"] == [
        {"name": "look", "description": "Looks.", "input_schema": schema, "strict": True},
        {"name": "now", "input_schema": {"type": "object", "properties": {}}},
        search,
    ]
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "now"}}, {"type": "tool", "name": "now"}),
        ({"type": "any", "disable_parallel_tool_use": True},) * 2,
    ],
)
def test_which_tool_is_called_can_be_said(choice: Any, wanted: Any) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    assert asked(USER, tools=tools, tool_choice=choice)["tool_choice"] == wanted
    assert "tool_choice" not in asked(USER, tool_choice=choice)


def test_an_answer_may_have_a_form() -> None:
    schema = {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = asked(USER, response_format=wanted)
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    assert "output_config" not in asked(USER, response_format={"type": "text"})
    with pytest.raises(UsageError, match="json_schema"):
        asked(USER, response_format={"type": "json_object"})


def test_what_has_no_name_here_is_merged_into_the_request() -> None:
    body = asked(
        USER, model="other", max_tokens=7, temperature=0.5, extra_body={"stop_sequences": ["x"]}
    )
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("other", 7, 0.5)
    assert body["stop_sequences"] == ["x"]


THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}}


def test_a_model_thinks_unless_it_would_be_refused() -> None:
    assert "thinking" in asked(USER, extra_body=THINKING)
    thoughtless = USER, calling("a"), answered("a")
    assert "thinking" not in asked(*thoughtless, extra_body=THINKING)
    assert "thinking" in asked(*thoughtless, extra_body={"thinking": {"type": "adaptive"}})
    later = {"role": "assistant", "content": "It is 20."}
    assert "thinking" in asked(*thoughtless, later, USER, extra_body=THINKING)


def test_a_model_thinks_on_where_it_is_given_its_thoughts() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    call = {**calling("a"), "content": [thought]}
    body = asked(USER, call, answered("a"), extra_body=THINKING)
    assert body["thinking"] == THINKING["thinking"]
    assert [block["type"] for block in body["messages"][1]["content"]] == ["thinking", "tool_use"]
