"""The reader of one streamed response of OpenAI's Responses API: bytes in, frames out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from perdure.backends.fields import arguments_of, count_of, object_of, string_of
from perdure.backends.pieces import Pieces
from perdure.backends.provider_error import is_object, provider_error
from perdure.backends.replay import to_replay
from perdure.backends.response_told import LeftOutError, ToldResponse
from perdure.backends.retry import RETRY_STATUSES
from perdure.backends.sse import SSEEvent, SSEParser
from perdure.core import frames
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.errors import BackendTransportError, ValueTooLargeError

Record = Mapping[str, JsonValue]

RESPONSE_ID: Final = re.compile(r"[\w-]{1,200}", re.ASCII)
"""What may stand in an address."""

_COUNTS: Final = {
    "tokens_in": ("input_tokens",),
    "tokens_out": ("output_tokens",),
    "tokens_cached": ("input_tokens_details", "cached_tokens"),
    "tokens_cache_written": ("input_tokens_details", "cache_write_tokens"),
    "tokens_reasoning": ("output_tokens_details", "reasoning_tokens"),
}
_FINISH: Final = {"max_output_tokens": "length"}
_RUN_UPSTREAM: Final[Mapping[str, tuple[str, str]]] = {
    "web_search_call": ("action", "status"),
    "file_search_call": ("queries", "results"),
    "code_interpreter_call": ("code", "outputs"),
    "mcp_call": ("arguments", "output"),
}
"""The items of tools that the provider runs itself: which field is asked, and which is answered."""
_AS_A_FUNCTION: Final = "offer the model a function that does it"
_ASKED_OF_US: Final[Mapping[str, str]] = {
    "custom_tool_call": "describe the tool as a function",
    "computer_call": _AS_A_FUNCTION,
    "local_shell_call": _AS_A_FUNCTION,
    "shell_call": f"{_AS_A_FUNCTION}, or let the provider run it in a container of its own",
    "apply_patch_call": _AS_A_FUNCTION,
    "mcp_approval_request": 'say `"require_approval": "never"` of the server, or call it by a '
    "function that needs approval",
}
"""The items by which a model asks for what nobody here does, and what helps."""


def replay_name(backend: str) -> str:
    """Return under which name a backend of responses is given back what it said."""
    return f"{backend}/responses"


class ResponseReader:
    """Reads one response, over as many connections as it takes.

    `response_id` is None until the provider named one that it keeps; `sequence` is the number of
    the last event; `is_over` says that nothing more will follow. `feed` raises
    BackendTransportError, its `body` uncut, for what cannot be read.
    """

    def __init__(self, backend: str, *, retry_statuses: Collection[int] = RETRY_STATUSES) -> None:
        self.response_id: str | None = None
        self.sequence = -1
        self.is_over = False
        self.lost: BackendTransportError | None = None
        """Why the last connection brought no more."""
        self._backend = backend
        self._retry_statuses = retry_statuses
        self._finish: str | None = None
        self._failure: BackendTransportError | None = None
        self._unanswered: dict[str, str] = {}
        """Calls that are not functions, and of which kind; a container may answer some."""
        self._told = ToldResponse()
        self._model: str | None = None
        self._counts: dict[str, int] = {}
        self._may_lack = False
        """Whether something may not have come: then the end is compared with what has been told."""
        self._is_numbered = True
        self._joined_behind: int | None = None
        self._pieces = Pieces()
        self._parser = SSEParser()
        self._readers: Mapping[str, Callable[[Record], Iterator[Frame]]] = {
            "response.created": self._begun,
            "response.queued": self._begun,
            "response.in_progress": self._begun,
            "response.output_text.delta": self._text,
            "response.refusal.delta": self._text,
            "response.reasoning_text.delta": self._thought,
            "response.reasoning_summary_text.delta": self._thought,
            "response.reasoning_summary_part.added": self._next_thought,
            "response.output_text.annotation.added": self._source,
            "response.output_item.done": self._item,
            "response.completed": self._completed,
            "response.incomplete": self._incomplete,
            "response.failed": self._broken,
            "response.cancelled": self._broken,
            "error": self._broken,
        }

    @property
    def can_be_joined(self) -> bool:
        """Whether the provider keeps it, and can go on behind an event by its number."""
        return self.response_id is not None and self.sequence >= 0 and self._is_numbered

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the frames that `chunk` completes."""
        try:
            events = self._parser.feed(chunk)
        except ValueTooLargeError as error:
            raise self._failed(f"sent too much at once: {error}", retryable=False) from error
        for event in events:
            yield from self._event(event)

    def reconnect(self) -> None:
        """Forget the beginning of an event whose connection was lost: it comes again."""
        self._joined_behind = self.sequence
        self._may_lack = True
        self._parser = SSEParser()

    def cut_off(self) -> BackendTransportError:
        """Return the failure of a response whose connection ended before it did."""
        return self._failed("ended its answer without saying how")

    def ending(self) -> Iterator[Frame]:
        """Yield, of a response that is over, `usage` and `upstream_end`.

        Raises BackendTransportError, behind the usage, for one that failed.
        """
        yield from self.usage_so_far()
        if self._failure is not None:
            raise self._failure
        assert self._finish is not None
        kinds = {item.get("type") for item in self._told.items}
        is_wanted = {"reasoning", "function_call"} <= kinds
        told = to_replay(replay_name(self._backend), self._told.items) if is_wanted else None
        yield frames.upstream_end(self._finish, replay=told)

    def usage_so_far(self) -> Iterator[Frame]:
        """Yield the usage as far as the provider named it; nothing if it counted no tokens."""
        if self._counts:
            yield frames.usage(
                provider=self._backend,
                model=self._model,
                request_id=self.response_id,
                **self._counts,
            )

    def look(self, body: str) -> Iterator[Frame]:
        """Yield what the whole response says, as it is kept by now, that no event has told."""
        try:
            response = object_of(json.loads(body))
            read = self._readers[f"response.{string_of(response.get('status'))}"]
            self._may_lack = True
            found = [*self._begun({"response": response}), *read({"response": response})]
        except (ValueError, KeyError, RecursionError) as error:
            raise self._failed("keeps what is no response", body=body) from error
        self._told.note(found)
        yield from found

    def _event(self, event: SSEEvent) -> Iterator[Frame]:
        if self.is_over or not event.data or event.data.strip() == "[DONE]":
            return
        try:
            record = json.loads(event.data)
            if not is_object(record):
                raise ValueError("an object was expected")
            read = self._readers.get(string_of(record.get("type")) or event.event)
            is_known = self._is_known(record)
            found = [] if read is None or is_known else list(read(record))
        except (ValueError, RecursionError) as error:
            raise self._failed("sent what is no event of a response", body=event.data) from error
        self._told.note(found)
        yield from found

    def _is_known(self, record: Record) -> bool:
        """Tell whether an event has come over another connection, and note its number."""
        number = record.get("sequence_number")
        if type(number) is not int or number < 0:
            return False
        if self._joined_behind is not None and number <= self._joined_behind:
            return True
        # Some gateways give all events one number: then no connection can go on behind it.
        self._is_numbered = self._is_numbered and number > self.sequence
        # Signs of life have numbers too, and are not sent again: a gap may be harmless.
        self._may_lack = self._may_lack or number > self.sequence + 1 > 0
        self.sequence = max(self.sequence, number)
        return False

    # What events say.

    def _begun(self, record: Record) -> Iterator[Frame]:
        response = self._note(record)
        named = string_of(response.get("id"))
        is_kept = response.get("background") is not False and RESPONSE_ID.fullmatch(named)
        if is_kept and self.response_id is None:
            self.response_id = named
            yield frames.upstream_begin({"response": named})

    def _text(self, record: Record) -> Iterator[Frame]:
        yield from self._pieces.text(string_of(record.get("delta")))

    def _thought(self, record: Record) -> Iterator[Frame]:
        yield from self._pieces.reasoning(string_of(record.get("delta")))

    def _next_thought(self, record: Record) -> Iterator[Frame]:
        if record.get("summary_index"):
            yield frames.reasoning("\n\n")

    def _source(self, record: Record) -> Iterator[Frame]:
        annotation = object_of(record.get("annotation"))
        url = string_of(annotation.get("url"))
        if annotation.get("type") == "url_citation" and url:
            yield frames.source(url, string_of(annotation.get("title")) or None)

    def _item(self, record: Record) -> Iterator[Frame]:
        item = object_of(record.get("item"))
        self._told.items.append(item)
        kind = string_of(item.get("type"))
        if kind in _ASKED_OF_US:
            self._unanswered[string_of(item.get("call_id")) or string_of(item.get("id"))] = kind
        elif kind.endswith("_output"):
            self._unanswered.pop(string_of(item.get("call_id")), None)
        if kind in _RUN_UPSTREAM:
            yield from _ran_upstream(item)
        if kind != "function_call":
            return
        call, name = string_of(item.get("call_id")), string_of(item.get("name"))
        if not call or not name:
            raise ValueError("a call has an id and a name")
        written, is_cut = string_of(item.get("arguments")), item.get("status") == "incomplete"
        yield frames.tool_call(call, name, arguments_of(written, is_cut=is_cut))

    def _completed(self, record: Record) -> Iterator[Frame]:
        yield from self._rest(self._note(record))
        is_calling = any(item.get("type") == "function_call" for item in self._told.items)
        self._finish = "tool_calls" if is_calling else "stop"
        self.is_over = True
        for kind in self._unanswered.values():
            self._failure = self._failed(
                f"answered with a {kind}, which nobody here carries out: {_ASKED_OF_US[kind]}",
                retryable=False,
            )

    def _incomplete(self, record: Record) -> Iterator[Frame]:
        response = self._note(record)
        yield from self._rest(response)
        reason = string_of(object_of(response.get("incomplete_details")).get("reason"))
        self._finish = _FINISH.get(reason, reason) or "incomplete"
        self.is_over = True

    def _broken(self, record: Record) -> Iterator[Frame]:
        response = self._note(record)
        said = response.get("error") or record.get("error") or record
        error = provider_error({"error": said})
        code = f" ({error.code})" if error is not None and error.code else ""
        is_cancelled = response.get("status") == "cancelled"
        what = "was cancelled" if is_cancelled else f"reported an error within its answer{code}"
        self._failure = self._failed(
            what,
            body=json.dumps(said),
            status=0 if error is None else error.status,
            retryable=error is None or error.may_pass(self._retry_statuses),
        )
        self.is_over = True
        yield from ()

    def _rest(self, response: Record) -> Iterator[Frame]:
        """Yield what of a whole response has not come, if something may not have come."""
        if not self._may_lack:
            return
        # Half a character that waits has not been told, and comes whole.
        self._pieces = Pieces()
        try:
            for kind, record in self._told.rest(response.get("output")):
                yield from self._readers[kind](record)
        except LeftOutError:
            self._failure = self._failed("left out a part of its answer")

    def _note(self, record: Record) -> dict[str, JsonValue]:
        response = object_of(record.get("response"))
        self._model = string_of(response.get("model")) or self._model
        for name, path in _COUNTS.items():
            count = count_of(response.get("usage"), path)
            if count is not None:
                self._counts[name] = count
        return response

    def _failed(
        self, what: str, *, body: str = "", status: int = 0, retryable: bool = True
    ) -> BackendTransportError:
        return BackendTransportError(
            f"{self._backend} {what}",
            backend=self._backend,
            status=status or 200,
            body=body,
            retryable=retryable,
        )


def _ran_upstream(item: Record) -> Iterator[Frame]:
    """Yield the call of a tool that the provider has run, and what it came to."""
    id, kind = string_of(item.get("id")), string_of(item.get("type"))
    if not id:
        raise ValueError("a call has an id")
    asked, answered = _RUN_UPSTREAM[kind]
    given = item.get(asked)
    args = arguments_of(given) if kind == "mcp_call" and isinstance(given, str) else {asked: given}
    name = string_of(item.get("name")) or kind.removesuffix("_call")
    # Searches, and code in a box that begins empty, may be repeated; a server may do anything.
    yield frames.tool_call(id, name, args, "at_most_once" if kind == "mcp_call" else "idempotent")
    yield frames.tool_result(id, item.get("error") or item.get(answered))
