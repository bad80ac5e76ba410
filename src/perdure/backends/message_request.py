"""Prompts as requests of Anthropic's Messages API: the chat completions' shape as blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from perdure.backends.fields import arguments_of
from perdure.backends.protocol import Prompt
from perdure.backends.provider_error import is_object
from perdure.backends.replay import replay_in
from perdure.core.records import JsonValue
from perdure.errors import UsageError

Block = dict[str, Any]
Message = Mapping[str, JsonValue]

_INSTRUCTING: Final = ("system", "developer")
_CHOICES: Final = {"auto": "auto", "none": "none", "required": "any"}
_NO_PARAMETERS: Final = {"type": "object", "properties": dict[str, JsonValue]()}
_DATA_URL: Final = re.compile(r"data:([^;,]+);base64,(.*)", re.DOTALL)
_NOT_IN_IDS: Final = re.compile(r"[^a-zA-Z0-9_-]")


def message_request(
    prompt: Prompt,
    *,
    model: str | None,
    max_tokens: int,
    replayed_as: str = "",
    said: Sequence[Block] = (),
) -> Block:
    """Return the body that asks `prompt`, without what is None. Raises UsageError.

    `said` is how far the answer came before the provider paused. Of the messages, those that were
    told to be `replayed_as` this are sent as they were told.
    """
    messages = _turns(prompt.messages, replayed_as)
    is_thoughtless = _is_behind_thoughtless_call(messages)
    if said:
        messages = [*messages, {"role": "assistant", "content": _sendable(said)}]
    _end_prefill(messages)
    body: Block = {
        "model": prompt.model or model,
        "max_tokens": prompt.max_tokens or max_tokens,
        "stream": True,
        "system": _system(prompt.messages),
        "messages": messages,
        "tools": [_tool(tool) for tool in prompt.tools] or None,
        "tool_choice": _choice(prompt.tool_choice) if prompt.tools else None,
        "output_config": _format(prompt.response_format),
        "temperature": prompt.temperature,
        **prompt.extra_body,
    }
    if is_thoughtless and _is_thinking(body.get("thinking")):
        # The provider refuses to think on where it was not given what it thought before.
        del body["thinking"]
    return {name: value for name, value in body.items() if value is not None}


# Messages.


def _system(messages: Sequence[Message]) -> JsonValue:
    """Return all instructions: as one text if they are texts, else as blocks."""
    told = [message.get("content") for message in messages if message["role"] in _INSTRUCTING]
    texts = [content for content in told if isinstance(content, str)]
    if len(texts) == len(told):
        return "\n\n".join(texts) or None
    return [block for content in told for block in _blocks(content)]


def _turns(messages: Sequence[Message], replayed_as: str) -> list[Block]:
    """Return the conversation; what one side said in a row is one message.

    So the results of several tools stand in one message, where the provider wants them.
    """
    turns: list[Block] = []
    for message in messages:
        if message["role"] in _INSTRUCTING:
            continue
        role = "assistant" if message["role"] == "assistant" else "user"
        blocks = list(_said(message, replayed_as))
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def _said(message: Message, replayed_as: str) -> Iterator[Block]:
    if message["role"] == "tool":
        called = _id(message.get("tool_call_id"))
        content = message.get("content")
        told = content if isinstance(content, str) else _blocks(content)
        yield {"type": "tool_result", "tool_use_id": called, "content": told}
        return
    made: Sequence[Mapping[str, Any]] = message.get("tool_calls") or ()
    calls = [_call(call) for call in made]
    told = _sendable(replay_in(message, replayed_as))
    if told and len(calls) == sum(block.get("type") == "tool_use" for block in told):
        # The calls stand in between as they are answered: their ids may be others by now.
        named = iter(calls)
        yield from (next(named) if block.get("type") == "tool_use" else block for block in told)
        return
    yield from _blocks(message.get("content"))
    yield from calls


def _call(call: Mapping[str, Any]) -> Block:
    function = call["function"]
    return {
        "type": "tool_use",
        "id": _id(call["id"]),
        "name": function["name"],
        "input": _input(arguments_of(function["arguments"])),
    }


def _blocks(content: JsonValue) -> list[Block]:
    """Return content as blocks. A text of nothing but blanks is left out: it would be refused."""
    if not isinstance(content, list):
        return [{"type": "text", "text": content}] if content and content.strip() else []
    return _sendable([_block(part) for part in cast("list[dict[str, Any]]", content)])


def _sendable(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks without blank texts."""
    return [dict(block) for block in blocks if block.get("type") != "text" or block["text"].strip()]


def _block(part: Mapping[str, Any]) -> Block:
    """Return a part as a block; what has no other shape here is one already."""
    if part.get("type") == "image_url":
        return {"type": "image", "source": _source(part["image_url"]["url"])}
    if part.get("type") == "file":
        return _document(part["file"])
    return dict(part)


def _document(file: Mapping[str, Any]) -> Block:
    named = {"title": file["filename"]} if file.get("filename") else {}
    if file.get("file_id"):
        return {
            "type": "document",
            "source": {"type": "file", "file_id": file["file_id"]},
            **named,
        }
    return {"type": "document", "source": _source(file.get("file_data") or ""), **named}


def _source(url: str) -> Block:
    carried = _DATA_URL.fullmatch(url)
    if carried is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": carried[1], "data": carried[2]}


def _id(id: JsonValue) -> JsonValue:
    """Return the id of a call, which another provider may have made, as this one accepts it."""
    return _NOT_IN_IDS.sub("_", id) if isinstance(id, str) else id


def _input(arguments: JsonValue) -> JsonValue:
    """Return arguments as the object that the provider wants, whatever the model once wrote."""
    return arguments if is_object(arguments) else {"arguments": arguments}


def _end_prefill(messages: Sequence[Block]) -> None:
    """Drop the blanks at the end of an answer that is to be gone on with: they are refused."""
    if not messages or messages[-1]["role"] != "assistant":
        return
    last: Block = messages[-1]["content"][-1]
    if last.get("type") == "text":
        last["text"] = last["text"].rstrip()


# Thinking.


def _is_thinking(thinking: JsonValue) -> bool:
    return is_object(thinking) and thinking.get("type") == "enabled"


def _is_behind_thoughtless_call(messages: Sequence[Block]) -> bool:
    """Return whether tools have just answered calls of which no thoughts are left."""
    if len(messages) < 2 or not _has(messages[-1], "tool_result"):
        return False
    first: Block = messages[-2]["content"][0]
    return _has(messages[-2], "tool_use") and "thinking" not in str(first.get("type"))


def _has(message: Block, kind: str) -> bool:
    return any(block.get("type") == kind for block in message["content"])


# Tools and forms.


def _tool(tool: Mapping[str, Any]) -> JsonValue:
    function: Mapping[str, Any] | None = tool.get("function")
    if function is None:
        return dict(tool)
    schema = function.get("parameters") or _NO_PARAMETERS
    rest = {name: value for name, value in function.items() if name != "parameters"}
    return {**rest, "input_schema": schema}


def _choice(choice: str | Mapping[str, Any] | None) -> JsonValue:
    if isinstance(choice, str):
        return {"type": _CHOICES.get(choice, choice)}
    if choice is None or choice.get("type") != "function":
        return choice
    return {"type": "tool", "name": choice["function"]["name"]}


def _format(wanted: Mapping[str, Any] | None) -> JsonValue:
    if wanted is None or wanted.get("type") == "text":
        return None
    if wanted.get("type") != "json_schema":
        raise UsageError(
            f"this provider knows no response_format {json.dumps(wanted.get('type'))}: "
            "name a json_schema"
        )
    return {"format": {"type": "json_schema", "schema": wanted["json_schema"]["schema"]}}
