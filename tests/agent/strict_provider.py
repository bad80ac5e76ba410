"""A provider that refuses every history that any real one might refuse, and keeps its own bill."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx2

from perdure.backends.openai import OpenAIBackend
from perdure.backends.retry import BackendRetry

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Reply = Mapping[str, Any]


def says(text: str, *, tokens_in: int = 10, tokens_out: int = 5) -> Reply:
    """Return the reply of a model that answers."""
    return {"text": text, "calls": [], "in": tokens_in, "out": tokens_out}


def calls(*asked: tuple[str, str, Any], text: str = "") -> Reply:
    """Return the reply of a model that calls tools, each `(id, name, arguments)`.

    Arguments that are a str are sent as they stand.
    """
    made = [
        (id, name, args if isinstance(args, str) else json.dumps(args)) for id, name, args in asked
    ]
    return {"text": text, "calls": made, "in": 10, "out": 5}


class StrictProvider:
    """Answers chat completions: the n-th answer of a conversation is the n-th of `replies`.

    Which one that is, it reads from the history, so it makes no difference how often it is asked.
    The last reply is repeated. `prompts` holds what it was asked, valid or not, and `refused` why
    it refused. `on_call` is called with the number of the answer.
    """

    def __init__(self, *replies: Reply, on_call: Callable[[int], object] | None = None) -> None:
        self.prompts: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.refused: list[str] = []
        self._replies = replies
        self._on_call = on_call

    def backend(self) -> OpenAIBackend:
        """Return a backend that asks this provider."""
        client = httpx2.AsyncClient(transport=httpx2.MockTransport(self._answer))
        return OpenAIBackend(
            "sk-test",
            base_url="http://provider.test/v1",
            model="strict-1",
            name="strict",
            retry=BackendRetry(tries_max=1),
            client=client,
        )

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        prompt = json.loads(request.content)
        self.prompts.append(prompt)
        self.keys.append(request.headers.get("idempotency-key"))
        fault = fault_of(prompt)
        if fault is not None:
            self.refused.append(fault)
            return httpx2.Response(400, json={"error": {"message": fault, "type": "invalid"}})
        number = answers_in(prompt["messages"])
        if self._on_call is not None:
            self._on_call(number)
        reply = self._replies[min(number, len(self._replies) - 1)]
        return httpx2.Response(
            200, content=_stream(reply), headers={"content-type": "text/event-stream"}
        )


def answers_in(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return how many answers of the model stand behind the last message of the user."""
    count = 0
    for message in messages:
        count = 0 if message["role"] == "user" else count + (message["role"] == "assistant")
    return count


def fault_of(prompt: Mapping[str, Any]) -> str | None:
    """Return why the prompt is refused."""
    messages = prompt["messages"]
    if not messages or messages[-1]["role"] == "assistant":
        return "nobody asks anything"
    for tool in prompt.get("tools", ()):
        function = tool["function"]
        if not _NAME.fullmatch(function["name"]) or function["parameters"]["type"] != "object":
            return f"bad tool {function['name']!r}"
    seen: set[str] = set()
    owed: list[str] = []
    for message in messages:
        fault = _fault_of_message(message, seen, owed)
        if fault is not None:
            return fault
    return f"calls without results: {owed}" if owed else None


def _fault_of_message(message: Mapping[str, Any], seen: set[str], owed: list[str]) -> str | None:
    role = message["role"]
    if role == "tool":
        if not owed or message["tool_call_id"] != owed[0]:
            return f"an unexpected result of {message['tool_call_id']!r}, owed are {owed}"
        owed.pop(0)
        return None if isinstance(message["content"], str) else "a result without content"
    if owed:
        return f"calls without results: {owed}"
    if role in ("system", "user"):
        return None if message.get("content") else f"an empty message of the {role}"
    if role != "assistant":
        return f"unknown role {role!r}"
    made = message.get("tool_calls")
    if made == [] or not (made or message.get("content")):
        return "the assistant says nothing"
    for call in made or ():
        fault = _fault_of_call(call, seen)
        if fault is not None:
            return fault
        owed.append(call["id"])
    return None


def _fault_of_call(call: Mapping[str, Any], seen: set[str]) -> str | None:
    if not call.get("id") or call["id"] in seen:
        return f"a missing or repeated id {call.get('id')!r}"
    seen.add(call["id"])
    if call.get("type") != "function" or not _NAME.fullmatch(call["function"]["name"]):
        return f"a bad call {call!r}"
    try:
        arguments = json.loads(call["function"]["arguments"], parse_constant=_no_constant)
    except ValueError:
        arguments = None
    return None if isinstance(arguments, dict) else f"bad arguments in {call!r}"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _stream(reply: Reply) -> bytes:
    deltas: list[dict[str, Any]] = [
        {"content": word} for word in re.findall(r"\S+\s*", reply["text"])
    ]
    for index, (id, name, arguments) in enumerate(reply["calls"]):
        half = len(arguments) // 2
        function = {"name": name, "arguments": arguments[:half]}
        deltas.append({"tool_calls": [{"index": index, "id": id, "function": function}]})
        rest = {"arguments": arguments[half:]}
        deltas.append({"tool_calls": [{"index": index, "function": rest}]})
    finish = "tool_calls" if reply["calls"] else "stop"
    usage = {"prompt_tokens": reply["in"], "completion_tokens": reply["out"]}
    records: list[dict[str, Any]] = [
        *({"choices": [{"index": 0, "delta": delta}]} for delta in deltas),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
        {"choices": [], "usage": usage, "model": "strict-1"},
    ]
    lines = [f"data: {json.dumps(record)}\n\n" for record in records]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()
