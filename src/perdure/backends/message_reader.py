"""The reader of one streamed message of Anthropic's Messages API: bytes in, frames out."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from perdure.backends.fields import CUT, count_of, is_json, object_of, string_of
from perdure.backends.message_block import MessageBlock
from perdure.backends.pieces import Pieces
from perdure.backends.provider_error import is_object, provider_error
from perdure.backends.replay import to_replay
from perdure.backends.retry import RETRY_STATUSES
from perdure.backends.sse import SSEEvent, SSEParser
from perdure.core import frames
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.errors import BackendTransportError, ValueTooLargeError

Record = Mapping[str, JsonValue]

OVERLOADED: Final = 529
"""The status by which this provider says that it has too much to do."""

_STATUSES: Final = {
    "api_error": 500,
    "overloaded_error": OVERLOADED,
    "rate_limit_error": 429,
    "timeout_error": 504,
}
"""The status that an error would have had before the answer began."""
PAUSED: Final = "pause_turn"
"""Why an answer ended that is to be gone on with: the provider's own tools took long."""

_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
"""Why an answer ended, in the words of the other backends; what is not here stays as it is."""
_COUNTS: Final = {
    "input": ("input_tokens",),
    "read": ("cache_read_input_tokens",),
    "written": ("cache_creation_input_tokens",),
    "output": ("output_tokens",),
    "reasoning": ("output_tokens_details", "thinking_tokens"),
}
_CAME_IN: Final = frozenset({"input", "read", "written"})
_PLAIN_BLOCKS: Final = frozenset({"text", "tool_use"})
"""What a conversation says in the shape of the chat completions, too."""


def replay_name(backend: str) -> str:
    """Return under which name a backend of messages is given back what it said."""
    return f"{backend}/messages"


class MessageReader:
    """Reads one message. How its bytes are cut into chunks makes no difference.

    `done` says that the message was stopped: nothing of it is missing, and nothing will follow.
    `blocks` are those that are whole, as the provider takes them back, and `counts` what the
    answer used, with the `counted` of the messages that it went on from. `feed` and `close` raise
    BackendTransportError, its `body` uncut, for what cannot be read, and for an error within the
    answer.
    """

    def __init__(
        self,
        backend: str,
        *,
        status: int = 200,
        request_id: str | None = None,
        retry_statuses: Collection[int] = RETRY_STATUSES,
        said: Sequence[Mapping[str, JsonValue]] = (),
        counted: Mapping[str, int] | None = None,
    ) -> None:
        self.done = False
        self.blocks: list[dict[str, JsonValue]] = []
        self._said = said
        self._counted = counted or {}
        self._backend = backend
        self._status = status
        self._request_id = request_id
        self._retry_statuses = retry_statuses
        self._finish: str | None = None
        self._model: str | None = None
        self._counts: dict[str, int] = {}
        self._is_counted = False
        self._blocks: dict[int, MessageBlock] = {}
        self._held: MessageBlock | None = None
        """A call without arguments, until it is known whether they were cut off."""
        self._pieces = Pieces()
        self._parser = SSEParser()
        self._readers: Mapping[str, Callable[[Record], Iterator[Frame]]] = {
            "message_start": self._begun,
            "content_block_start": self._block_begun,
            "content_block_delta": self._block_delta,
            "content_block_stop": self._block_ended,
            "message_delta": self._changed,
            "message_stop": self._stopped,
        }

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the answer is missing, whatever else may come."""
        return self.done

    @property
    def is_paused(self) -> bool:
        """Whether the message was stopped so that the provider is to be asked to go on."""
        return self.done and self._finish == PAUSED and bool(self.blocks)

    @property
    def counts(self) -> dict[str, int]:
        counted = self._counted
        return {
            name: counted.get(name, 0) + self._counts.get(name, 0)
            for name in _COUNTS
            if name in counted or name in self._counts
        }

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the frames that `chunk` completes."""
        try:
            events = self._parser.feed(chunk)
        except ValueTooLargeError as error:
            raise self._failed(f"sent too much at once: {error}", retryable=False) from error
        for event in events:
            yield from self._event(event)

    def close(self) -> Iterator[Frame]:
        """Yield what the end of the stream completes, and last `usage` and `upstream_end`.

        Raises BackendTransportError when the provider never stopped the message.
        """
        rest = self._parser.close()
        # A provider may spare the last blank line; what is no JSON was cut off in its middle.
        if rest is not None and is_json(rest.data):
            yield from self._event(rest)
        if not self.done:
            body = "" if rest is None else rest.data
            raise self._failed("ended its answer without stopping the message", body=body)
        assert self._finish is not None
        yield from self.usage_so_far()
        yield frames.upstream_end(self._finish, replay=self._replay())

    def usage_so_far(self) -> Iterator[Frame]:
        """Yield the usage as far as the provider named it; nothing if it counted no tokens.

        What an answer used that broke off is known only as far as it went in.

        The provider counts what it read from its cache, and wrote there, beside the other tokens
        that went in; here they are a part of them, as for the other backends.
        """
        counts = self.counts
        if not self._is_counted:
            # What it has said by now is on the bill, too, and nobody has counted it.
            counts.pop("output", None)
            counts.pop("reasoning", None)
        if not counts:
            return
        read, written = counts.get("read"), counts.get("written")
        went_in = None
        if "input" in counts:
            went_in = counts["input"] + (read or 0) + (written or 0)
        yield frames.usage(
            provider=self._backend,
            model=self._model,
            request_id=self._request_id,
            tokens_in=went_in,
            tokens_out=counts.get("output"),
            tokens_cached=read,
            tokens_cache_written=written,
            tokens_reasoning=counts.get("reasoning"),
        )

    def _replay(self) -> JsonValue:
        """Return what is wanted back with the results of tools, if that is more than the calls."""
        blocks = [*self._said, *self.blocks]
        kinds = {block.get("type") for block in blocks}
        if "tool_use" not in kinds or kinds <= _PLAIN_BLOCKS:
            return None
        return to_replay(replay_name(self._backend), blocks)

    def _event(self, event: SSEEvent) -> Iterator[Frame]:
        if self.done or not event.data:
            return
        try:
            record = json.loads(event.data)
            if not is_object(record):
                raise ValueError("an object was expected")
            kind = string_of(record.get("type")) or event.event
            if kind == "error":
                raise self._refused(record, event.data)
            read = self._readers.get(kind)
            # An event of a kind that nobody here knows, such as a ping, changes nothing.
            found = [] if read is None else list(read(record))
        except (ValueError, RecursionError) as error:
            raise self._failed("sent what is no event of a message", body=event.data) from error
        yield from found

    # What events say.

    def _begun(self, record: Record) -> Iterator[Frame]:
        message = object_of(record.get("message"))
        self._model = string_of(message.get("model")) or self._model
        self._request_id = self._request_id or string_of(message.get("id")) or None
        self._count(message.get("usage"))
        yield from ()

    def _block_begun(self, record: Record) -> Iterator[Frame]:
        yield from self._release()
        described = object_of(record.get("content_block"))
        block = MessageBlock(described)
        self._blocks[_index(record)] = block
        if block.kind == "text":
            yield from self._pieces.text(string_of(described.get("text")))
        elif block.kind == "thinking":
            yield from self._pieces.reasoning(string_of(described.get("thinking")))
        elif block.kind.endswith("_tool_result"):
            yield _result_of(described)

    def _block_delta(self, record: Record) -> Iterator[Frame]:
        block = self._blocks.get(_index(record))
        if block is None:
            raise ValueError("a block that never began cannot go on")
        delta = object_of(record.get("delta"))
        block.add(delta)
        match delta.get("type"):
            case "text_delta":
                yield from self._pieces.text(string_of(delta.get("text")))
            case "thinking_delta":
                yield from self._pieces.reasoning(string_of(delta.get("thinking")))
            case "citations_delta":
                yield from _source(object_of(delta.get("citation")))
            case _:
                # Arguments are told once they are whole; signatures say nothing to a reader.
                pass

    def _block_ended(self, record: Record) -> Iterator[Frame]:
        block = self._blocks.pop(_index(record), None)
        if block is None:
            raise ValueError("a block that never began cannot end")
        yield from self._whole(block)

    def _whole(self, block: MessageBlock) -> Iterator[Frame]:
        self._held = block
        if not block.has_no_arguments or self._finish is not None:
            yield from self._release()

    def _release(self) -> Iterator[Frame]:
        """Yield the call of which it is known by now whether its arguments were cut off."""
        block, self._held = self._held, None
        if block is not None:
            block.is_cut = self._finish in CUT
            self.blocks.append(block.said())
            yield from block.call()

    def _changed(self, record: Record) -> Iterator[Frame]:
        reason = string_of(object_of(record.get("delta")).get("stop_reason"))
        if reason:
            self._finish = _FINISH.get(reason, reason)
            yield from self._release()
        counted = record.get("usage")
        if self._finish and count_of(counted, _COUNTS["output"]) is not None:
            self._is_counted = True
        self._count(counted)

    def _stopped(self, record: Record) -> Iterator[Frame]:
        if self._finish is None:
            raise ValueError("a message stops for a reason")
        # Some servers of this protocol do not end the last block.
        for block in self._blocks.values():
            yield from self._whole(block)
        self.done = True

    def _count(self, counted: JsonValue) -> None:
        """Note what has been counted so far; each count stands for the whole message."""
        for name, path in _COUNTS.items():
            count = count_of(counted, path)
            # Behind its beginning some servers count nought for what went in.
            if count is not None and (count or name not in _CAME_IN or name not in self._counts):
                self._counts[name] = count

    def _refused(self, record: Record, body: str) -> BackendTransportError:
        error = provider_error({"error": record.get("error") or record})
        code = "" if error is None else error.code
        status = (0 if error is None else error.status) or _STATUSES.get(code, 0)
        may_pass = error is None or error._replace(status=status).may_pass(self._retry_statuses)
        told = f" ({code})" if code else ""
        return self._failed(
            f"reported an error within its answer{told}",
            body=body,
            status=status,
            retryable=may_pass,
        )

    def _failed(
        self, what: str, *, body: str = "", status: int = 0, retryable: bool = True
    ) -> BackendTransportError:
        return BackendTransportError(
            f"{self._backend} {what}",
            backend=self._backend,
            status=status or self._status,
            body=body,
            retryable=retryable,
        )


def _index(record: Record) -> int:
    index = record.get("index")
    if type(index) is not int:
        raise ValueError("a block has an index")
    return index


def _result_of(block: Record) -> Frame:
    """Return what a tool came to that the provider itself has run."""
    call = string_of(block.get("tool_use_id"))
    if not call:
        raise ValueError("the result of a tool names its call")
    return frames.tool_result(call, block.get("content"))


def _source(citation: Record) -> Iterator[Frame]:
    if url := string_of(citation.get("url")):
        yield frames.source(url, string_of(citation.get("title")) or None)
