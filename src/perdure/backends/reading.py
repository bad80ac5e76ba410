"""Reading one streamed answer to its end: how long for, and what is told when it fails."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Final, Protocol

from perdure.backends.endpoint import Answer, Endpoint
from perdure.backends.provider_error import fields_of
from perdure.backends.sse import SSEParser
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.errors import BackendTransportError, UsageError, ValueTooLargeError

IDLE_TIMEOUT_MS: Final = 60_000
"""So long an answer may be silent where nothing else is said."""
USAGE_WAIT_MS: Final = 5_000
"""So long the usage is awaited once the answer is whole."""
CLOSE_WAIT_MS: Final = 100
"""So long the end of the response is awaited once nothing can follow: it frees the connection."""


class AnswerReader(Protocol):
    """What makes frames of the bytes of one answer, however they are cut."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the answer is missing, whatever else may come."""
        ...

    @property
    def done(self) -> bool:
        """Whether nothing more will follow."""
        ...

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the frames that `chunk` completes. Raises BackendTransportError, `body` uncut."""
        ...

    def close(self) -> Iterator[Frame]:
        """Yield what is left, `usage` and `upstream_end`; raise if the answer is not whole."""
        ...

    def usage_so_far(self) -> Iterator[Frame]:
        """Yield the usage as far as it is known; nothing if no tokens were counted."""
        ...


async def read_answer(
    endpoint: Endpoint, answer: Answer, reader: AnswerReader
) -> AsyncGenerator[Frame, None]:
    """Yield an answer to its end, and close it.

    Raises BackendTransportError for one that is not whole, behind the usage that is known of it.
    """
    async with aclosing(answer):
        try:
            while chunk := await _next_chunk(endpoint, answer, reader):
                for frame in reader.feed(chunk):
                    yield frame
            for frame in reader.close():
                yield frame
        except BackendTransportError as failure:
            endpoint.hide_secrets(failure)
            # What a failed answer used is billed as well.
            for frame in reader.usage_so_far():
                yield frame
            raise


async def _next_chunk(endpoint: Endpoint, answer: Answer, reader: AnswerReader) -> bytes:
    limit_ms = endpoint.idle_timeout_ms
    if reader.done:
        limit_ms = CLOSE_WAIT_MS
    elif reader.is_whole:
        limit_ms = min(USAGE_WAIT_MS, limit_ms or USAGE_WAIT_MS)
    try:
        return await answer.chunk(limit_ms)
    except BackendTransportError:
        if not reader.is_whole:
            raise
        # Nothing of the answer is missing: to fail now would have it made, and paid, again.
        return b""


def request_body(fields: Mapping[str, JsonValue]) -> bytes:
    """Return the body of a request without what is None. Raises UsageError for what is no JSON."""
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return json.dumps(given, allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the prompt is not plain JSON: {error}") from error


def key_header(idempotency_key: str | None) -> dict[str, str]:
    """Return the header by which a provider may know a repeated question."""
    return {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}


def begins_with_error(first: bytes) -> bool:
    """Tell whether the first bytes of an answer are an error instead of its beginning."""
    try:
        event = next(iter(SSEParser().feed(first)), None)
        if event is None or event.event == "error":
            return event is not None
        record = fields_of(json.loads(event.data))
    except (ValueTooLargeError, ValueError, RecursionError):
        return False
    return record.get("type") == "error" or bool(record.get("error"))
