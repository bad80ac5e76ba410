"""The reader of one streamed chat completion: bytes of the provider in, frames out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Final

from perdure.backends.fields import (
    CUT,
    arguments_of,
    count_of,
    is_json,
    object_of,
    objects_of,
    string_of,
)
from perdure.backends.pieces import Pieces
from perdure.backends.provider_error import is_object, provider_error
from perdure.backends.reasoning_details import FIELD, ReasoningDetails, thought_in
from perdure.backends.replay import to_replay
from perdure.backends.retry import RETRY_STATUSES
from perdure.backends.sse import SSEEvent, SSEParser
from perdure.core.effects import new_reference
from perdure.core.frames import Frame, tool_call, upstream_end, usage
from perdure.core.frames import event as event_frame
from perdure.core.records import JsonValue
from perdure.errors import BackendTransportError, ValueTooLargeError

_TOKEN_COUNTS: Final = {
    "tokens_in": (("prompt_tokens",), ("input_tokens",)),
    "tokens_out": (("completion_tokens",), ("output_tokens",)),
    "tokens_cached": (
        ("prompt_tokens_details", "cached_tokens"),
        ("input_tokens_details", "cached_tokens"),
        ("prompt_cache_hit_tokens",),
    ),
    "tokens_cache_written": (
        ("prompt_tokens_details", "cache_write_tokens"),
        ("input_tokens_details", "cache_write_tokens"),
    ),
    "tokens_reasoning": (
        ("completion_tokens_details", "reasoning_tokens"),
        ("output_tokens_details", "reasoning_tokens"),
    ),
}
"""Where the providers keep each count; the first that is there counts."""
_STOPPED_IN: Final = "x_groq"
"""What of a record says at Groq why its answer was stopped early, and, at the end, its usage."""
_USAGE_IN: Final = (("usage",), ("message", "usage"), (_STOPPED_IN, "usage"))
"""Where in a record the counts are."""
_COME_OUT: Final = ("tokens_out", "tokens_reasoning")
AGENT_EVENTS: Final = frozenset(
    {
        "message.part.updated",
        "text_delta",
        "delta",
        "reasoning_delta",
        "tool_call",
        "tool_result",
        "result",
        "final",
        "artifact",
        "proposal_created",
        "proposal",
        "filing",
    }
)
"""The events of an agent that some endpoints tell in place of choices."""
_THOUGHTS: Final = ("reasoning_content", "reasoning")
"""What providers call thoughts in the open. Where both are told they are the same; each provider
knows the name that it says."""
_SIGNED: Final = "extra_content"
"""The field of a call in which some providers sign the thought behind it."""


def replay_name(backend: str) -> str:
    """Return under which name a backend of completions is given back what it said."""
    return f"{backend}/completions"


class CompletionReader:
    """Reads one answer. How its bytes are cut into chunks makes no difference.

    `finish` is the provider's finish reason, None until it came; `done` says that nothing more
    will follow. `feed` and `close` raise BackendTransportError, its `body` uncut, for what cannot
    be read, an error within the answer, and a tool call without a name.
    """

    def __init__(
        self,
        backend: str,
        *,
        status: int = 200,
        request_id: str | None = None,
        retry_statuses: Collection[int] = RETRY_STATUSES,
    ) -> None:
        self.finish: str | None = None
        self.done = False
        self._backend = backend
        self._status = status
        self._request_id = request_id
        self._retry_statuses = retry_statuses
        self._model: str | None = None
        self._counts: dict[str, int] = {}
        self._calls: list[_ToolCall] = []
        self._thoughts: dict[str, list[str]] = {}
        self._details = ReasoningDetails()
        self._extras: list[dict[str, JsonValue]] = []
        self._has_no_choices = False
        self._pieces = Pieces()
        self._parser = SSEParser()

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the answer is missing, though its usage may be."""
        return self.done or self.finish is not None

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the frames that `chunk` completes."""
        try:
            events = self._parser.feed(chunk)
        except ValueTooLargeError as error:
            raise self._failure(f"sent too much at once: {error}", retryable=False) from error
        for event in events:
            yield from self._event(event)

    def close(self) -> Iterator[Frame]:
        """Yield what the end of the stream completes, and last `usage` and `upstream_end`.

        Raises BackendTransportError when the provider never said that it was finished.
        """
        rest = self._parser.close()
        # A provider may spare the last blank line; what is no JSON was cut off in its middle.
        if rest is not None and is_json(rest.data):
            yield from self._event(rest)
        if self.finish is None and self.done and self._has_no_choices:
            # Who tells no choices has no place for a reason either.
            self.finish = "stop"
        if self.finish is None:
            body = "" if rest is None else rest.data
            raise self._failure("ended its answer without a finish reason", body=body)
        yield from self._finished_calls()
        yield from self.usage_so_far()
        yield upstream_end(self.finish, replay=self._replay())

    def usage_so_far(self) -> Iterator[Frame]:
        """Yield the usage as far as the provider named it; nothing if it counted no tokens.

        Some count while they answer: of an answer that broke off, what came out is not known.
        """
        counts = self._counts
        if self.finish is None:
            counts = {name: counts[name] for name in counts if name not in _COME_OUT}
        if counts:
            yield usage(
                provider=self._backend,
                model=self._model,
                request_id=self._request_id,
                **counts,
            )

    def _replay(self) -> JsonValue:
        """Return the fields, of the message and of each call, that are wanted back with it.

        Only providers that send such fields know them: thoughts in the open, signed calls.
        """
        message: dict[str, JsonValue] = {}
        if self._details.whole:
            # They are the same thoughts, signed.
            message[FIELD] = self._details.whole
        else:
            message.update({name: "".join(told) for name, told in self._thoughts.items()})
        if not self._extras or not (message or any(self._extras)):
            return None
        return to_replay(replay_name(self._backend), [message, *self._extras])

    def _event(self, event: SSEEvent) -> Iterator[Frame]:
        if self.done or not event.data:
            return
        if event.data.strip() == "[DONE]":
            self.done = True
            return
        try:
            record = json.loads(event.data)
            if not is_object(record):
                raise ValueError("an object was expected")
            self._refuse_error(record, event)
            self._note(record)
            frames = list(self._told(record))
        except (ValueError, RecursionError) as error:
            raise self._failure("sent what is no chat completion", body=event.data) from error
        yield from frames

    def _refuse_error(self, record: dict[str, JsonValue], event: SSEEvent) -> None:
        document = {"error": record.get("error", record)} if event.event == "error" else record
        error = provider_error(document) or provider_error(record.get(_STOPPED_IN))
        if error is None:
            return
        code = f" ({error.code})" if error.code else ""
        raise self._failure(
            f"reported an error within its answer{code}",
            body=event.data,
            status=error.status,
            retryable=error.may_pass(self._retry_statuses),
        )

    def _note(self, record: dict[str, JsonValue]) -> None:
        model, id = record.get("model"), record.get("id")
        if isinstance(model, str) and model:
            self._model = model
        if isinstance(id, str) and id and self._request_id is None:
            self._request_id = id
        for name, paths in _TOKEN_COUNTS.items():
            places = ((*place, *path) for place in _USAGE_IN for path in paths)
            counts = (count_of(record, place) for place in places)
            count = next((each for each in counts if each is not None), None)
            if count is not None:
                self._counts[name] = count

    def _told(self, record: dict[str, JsonValue]) -> Iterator[Frame]:
        """Yield what a record says: its first choice, or else an event of an agent, or a text."""
        if "choices" in record:
            for choice in objects_of(record["choices"]):
                if not choice.get("index"):
                    yield from self._choice(choice)
            return
        kind = record.get("type")
        written = record.get("text")
        if isinstance(kind, str) and kind in AGENT_EVENTS:
            self._has_no_choices = True
            yield event_frame(record)
        elif isinstance(written, str) and written:
            self._has_no_choices = True
            yield from self._pieces.text(written)

    def _choice(self, choice: dict[str, JsonValue]) -> Iterator[Frame]:
        delta = object_of(choice.get("delta")) or object_of(choice.get("message"))
        name = next((name for name in _THOUGHTS if string_of(delta.get(name))), "")
        thought = string_of(delta.get(name))
        if thought:
            self._thoughts.setdefault(name, []).append(thought)
        details = objects_of(delta.get(FIELD))
        for detail in details:
            self._details.add(detail)
        yield from self._pieces.reasoning(thought or thought_in(details))
        yield from self._content(delta.get("content"))
        yield from self._pieces.text(string_of(delta.get("refusal")))
        for position, fragment in enumerate(objects_of(delta.get("tool_calls"))):
            self._fragment(position, fragment)
        finish = string_of(choice.get("finish_reason"))
        if finish == "error":
            raise self._failure("ended its answer with an error")
        if finish:
            self.finish = finish
            yield from self._finished_calls()

    def _content(self, content: JsonValue) -> Iterator[Frame]:
        """Yield what is said, by some providers in parts, of which some are thoughts."""
        if not isinstance(content, list):
            yield from self._pieces.text(string_of(content))
            return
        for part in objects_of(content):
            if part.get("type") == "text":
                yield from self._pieces.text(string_of(part.get("text")))
            elif part.get("type") == "thinking":
                yield from self._pieces.reasoning(_thought_in_part(part.get("thinking")))

    def _fragment(self, position: int, fragment: dict[str, JsonValue]) -> None:
        named = fragment.get("index")
        index = named if isinstance(named, int) else position
        id = string_of(fragment.get("id"))
        function = object_of(fragment.get("function"))
        name, written = string_of(function.get("name")), string_of(function.get("arguments"))
        call = next((each for each in reversed(self._calls) if each.index == index), None)
        if call is None or call.is_another(id, name, written):
            call = _ToolCall(index)
            self._calls.append(call)
        call.id = call.id or id
        call.name = call.name or name
        call.arguments.append(written)
        if _SIGNED in fragment:
            call.extra[_SIGNED] = fragment[_SIGNED]

    def _finished_calls(self) -> Iterator[Frame]:
        calls, self._calls = sorted(self._calls, key=lambda call: call.index), []
        for call in calls:
            if not call.name:
                raise self._failure("called a tool without naming it")
            call_id = call.id or f"call_{new_reference()}"
            self._extras.append(call.extra)
            is_cut = self.finish in CUT and call is calls[-1]
            yield tool_call(call_id, call.name, arguments_of(call.written, is_cut=is_cut))

    def _failure(
        self, what: str, *, body: str = "", status: int = 0, retryable: bool = True
    ) -> BackendTransportError:
        return BackendTransportError(
            f"{self._backend} {what}",
            backend=self._backend,
            status=status or self._status,
            body=body,
            retryable=retryable,
        )


class _ToolCall:
    """A tool call that is still arriving."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.extra: dict[str, JsonValue] = {}

    @property
    def written(self) -> str:
        """The arguments so far."""
        return "".join(self.arguments)

    def is_another(self, id: str, name: str, written: str) -> bool:
        """Tell whether a fragment with the index of this call is of another one.

        Some providers give all calls the same index. Then the ids tell them apart, and where
        there are none, that nothing can follow the arguments once they are a whole object.
        """
        if id and self.id and id != self.id:
            return True
        if not name or not self.name or not (written.strip() or name != self.name):
            return False
        before = self.written
        return before.lstrip().startswith("{") and is_json(before)


def _thought_in_part(thinking: JsonValue) -> str:
    """Return what a part of the content thinks: a text, or a list of texts. Raises ValueError."""
    if not isinstance(thinking, list):
        return string_of(thinking)
    return "".join(string_of(each.get("text")) for each in objects_of(thinking))
