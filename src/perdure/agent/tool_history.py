"""Histories that every provider accepts: each tool call is answered, once, right behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol, TypeGuard, cast

from perdure.backends.replay import REPLAY
from perdure.core.records import JsonValue
from perdure.errors import AttachmentsNotShownError, UsageError

Message = Mapping[str, JsonValue]

NO_ANSWER: Final = json.dumps(
    {
        "error": {
            "code": "interrupted",
            "message": "the call was interrupted, and it is not known whether it took effect",
        }
    }
)
"""What stands in the place of a result that is not there."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


class Asking(Protocol):
    """What a conversation is made of."""

    @property
    def user_message(self) -> str: ...
    @property
    def history(self) -> Any: ...


def call_message(
    text: str, calls: Sequence[Mapping[str, JsonValue]], *, replay: JsonValue = None
) -> dict[str, JsonValue]:
    """Return the model's answer that makes `calls`, each `{id, name, arguments}`.

    `replay` is what its provider wants back with the results.
    """
    message: dict[str, JsonValue] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {
                    "name": usable_name(call["name"]),
                    "arguments": _arguments(call["arguments"]),
                },
            }
            for call in calls
        ]
    if replay is not None:
        message[REPLAY] = replay
    return message


def result_message(call_id: str, content: JsonValue) -> dict[str, JsonValue]:
    """Return the answer to a call."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def usable_name(name: str) -> str:
    """Return `name` as a provider takes it back: a model may have invented it."""
    return _NOT_IN_NAMES.sub("_", name)[:64] or "unnamed"


def check_messages(messages: object) -> Sequence[Message]:
    """Return `messages` if they are a conversation that a model can be asked with.

    Raises UsageError, which names the message, for anything but a sequence of one or more
    mappings with a `role` each.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise UsageError(f"messages must be a list of messages, not {messages!r:.60}")
    if not messages:
        raise UsageError("messages must not be empty: the model is asked with them")
    for place, message in enumerate(cast("Sequence[object]", messages)):
        if not isinstance(message, Mapping):
            raise UsageError(f"messages[{place}] must be a mapping, not {message!r:.60}")
        role = cast("Mapping[str, object]", message).get("role")
        if not isinstance(role, str) or not role:
            raise UsageError(f"messages[{place}].role must be a text, not {role!r:.60}")
    return cast("Sequence[Message]", messages)


def asked_in(turn: Asking, *, way_out: str) -> list[Message]:
    """Return the conversation so far, and what the user says now.

    Raises AttachmentsNotShownError, which tells the `way_out`, for files that earlier messages came
    with: a provider refuses them as they are stored, and without them it would answer unseen.
    """
    if any(message.get("attachments") for message in turn.history):
        raise AttachmentsNotShownError(
            "the conversation has attachments, which this producer cannot show to the model: "
            f"{way_out}"
        )
    return [*turn.history, {"role": "user", "content": turn.user_message}]


def repaired(messages: Sequence[Message]) -> list[Message]:
    """Return `messages` so that a provider accepts them; what is valid stays as it is.

    Each call of an assistant's message is answered right behind it, in the order of the calls: by
    the result that belongs to it, wherever that stood, or by one which says that nobody knows. A
    result without a call, a second result, and a message that says nothing are left out; calls
    that share an id get ids of their own; arguments that are no JSON object become `{}`, and what
    is no call of a function is left out.
    """
    results = _Results(messages)
    taken: set[str] = set()
    kept: list[Message] = []
    for place, message in enumerate(messages):
        role = message.get("role")
        if role == "tool":
            continue
        calls = _calls_of(message)
        if not calls:
            if role != "assistant" or message.get("content"):
                kept.append(_without_calls(message))
            continue
        mended = [_mended(call, _fresh(_id_of(call), taken)) for call in calls]
        kept.append({**message, "tool_calls": mended} if mended != calls else message)
        for call, named in zip(calls, mended, strict=True):
            kept.append(results.take(_id_of(call), named["id"], behind=place))
    return kept


class _Results:
    """The results that stand in a history, each of which answers one call."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages
        self._used: set[int] = set()

    def take(self, asked: str, id: str, *, behind: int) -> Message:
        """Return the answer to the call `asked` at the place `behind`, under the name `id`."""
        for place in self._places(asked, behind):
            self._used.add(place)
            message = self._messages[place]
            content = _usable_content(message.get("content"))
            if content is message.get("content") and message.get("tool_call_id") == id:
                return message
            return {**message, "tool_call_id": id, "content": content}
        return result_message(id, NO_ANSWER)

    def _places(self, asked: str, behind: int) -> Iterator[int]:
        """Yield where a result may stand: up to where the same id is called again."""
        for place in range(behind + 1, len(self._messages)):
            message = self._messages[place]
            if any(_id_of(call) == asked for call in _calls_of(message)):
                return
            is_result = message.get("role") == "tool" and _id_of(message, "tool_call_id") == asked
            if is_result and place not in self._used:
                yield place


def _calls_of(message: Message) -> list[dict[str, Any]]:
    calls = message.get("tool_calls") if message.get("role") == "assistant" else None
    if not isinstance(calls, list | tuple):
        return []
    return [call for call in cast("Sequence[object]", calls) if _is_call(call)]


def _is_call(call: object) -> TypeGuard[dict[str, Any]]:
    if not isinstance(call, dict):
        return False
    function = cast("dict[str, object]", call).get("function")
    return isinstance(function, dict) and bool(cast("dict[str, object]", function))


def _id_of(call: Mapping[str, JsonValue], name: str = "id") -> str:
    """Return an id, which some count from 0, as the text that a provider wants."""
    id: object = call.get(name)
    return "" if id is None else str(id)


def _fresh(id: str, taken: set[str]) -> str:
    wanted, number = id or "call", 1
    fresh = id or "call_1"
    while fresh in taken:
        number += 1
        fresh = f"{wanted}_{number}"
    taken.add(fresh)
    return fresh


def _mended(call: dict[str, Any], id: str) -> dict[str, Any]:
    function = call["function"]
    named = {
        **function,
        "name": usable_name(str(function.get("name") or "")),
        "arguments": _valid_arguments(function.get("arguments")),
    }
    return {**call, "id": id, "type": "function", "function": named}


def _without_calls(message: Message) -> Message:
    if message.get("role") != "assistant" or "tool_calls" not in message:
        return message
    return {name: value for name, value in message.items() if name != "tool_calls"}


def _valid_arguments(written: JsonValue) -> str:
    if not isinstance(written, str):
        return _arguments(written)
    try:
        is_object = isinstance(json.loads(written, parse_constant=_no_constant), dict)
    except (ValueError, RecursionError):
        is_object = False
    return written if is_object else "{}"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _arguments(arguments: JsonValue) -> str:
    """Return arguments as a provider takes them back; the model is told what was wrong."""
    return (_written(arguments) or "{}") if isinstance(arguments, dict) else "{}"


def _usable_content(content: JsonValue) -> JsonValue:
    """Return the content of a result as a provider takes it: a text, or a list of parts."""
    if content is None:
        return ""
    is_usable = isinstance(cast("object", content), str | list)
    return content if is_usable else _written(content) or str(content)


def _written(value: JsonValue) -> str | None:
    """Return a value as JSON, None for what is none."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
