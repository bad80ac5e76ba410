"""Server-sent events: any JSON as one, and what may leave of the events of a task as a stream."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from typing import Final

from perdure.core.finite import is_finite
from perdure.core.records import JsonValue
from perdure.errors import NotSerializableError
from perdure.observe.deltas import SanitizedStream
from perdure.observe.sanitize import sanitize_event, sanitize_knowledge_readiness_report
from perdure.observe.telemetry import RuntimeTelemetryOptions, telemetry_client

_LINE_ENDS: Final = re.compile(r"\r\n|\r|\n")
_SURROGATES: Final = re.compile(r"[\ud800-\udfff]")


def encode_server_sent_event(
    data: JsonValue, *, event: str | None = None, id: str | None = None, retry: float | None = None
) -> str:
    """Return one server-sent event: `id`, `event` and `retry` if there are any, then the data.

    A text is sent as it is, a line of it as a `data:` line each, and anything else as compact
    JSON. Line ends in `id` and `event` become spaces, and so does NUL in `id`. `retry` is in
    milliseconds, rounded down; one that is negative or not finite is left out. Raises
    NotSerializableError for data that has no JSON.
    """
    lines: list[str] = []
    if id:
        lines.append(f"id: {_on_one_line(id)}")
    if event:
        lines.append(f"event: {_on_one_line(event)}")
    if retry is not None and is_finite(retry) and retry >= 0:
        lines.append(f"retry: {math.floor(retry)}")
    text = data if isinstance(data, str) else _json(data)
    lines += [f"data: {piece}" for piece in _LINE_ENDS.split(_SURROGATES.sub("\ufffd", text))]
    return "\n".join(lines) + "\n\n"


def encode_server_sent_event_bytes(
    data: JsonValue, *, event: str | None = None, id: str | None = None, retry: float | None = None
) -> bytes:
    """Return what `encode_server_sent_event` does, in UTF-8."""
    return encode_server_sent_event(data, event=event, id=id, retry=retry).encode()


def readiness_server_sent_event(
    report: object,
    options: RuntimeTelemetryOptions | None = None,
    *,
    event: str | None = None,
    id: str | None = None,
    retry: float | None = None,
) -> str:
    """Return a server-sent event with what may leave of a readiness report.

    Without `options` it is for the browser of who owns the task (`telemetry_client()`).
    """
    kept = sanitize_knowledge_readiness_report(report, options or telemetry_client())
    data: JsonValue = {"type": "readiness", "readiness": kept}
    return encode_server_sent_event(data, event=event, id=id, retry=retry)


def runtime_stream_server_sent_event(
    runtime_event: object,
    options: RuntimeTelemetryOptions | None = None,
    *,
    event: str | None = None,
    id: str | None = None,
    retry: float | None = None,
) -> str:
    """Return a server-sent event with what may leave of an event of a task or a stream.

    Without `options` it is for the browser of who owns the task (`telemetry_client()`). A delta is
    masked by itself: `sse_stream` sees also a credential that several deltas share.
    """
    kept = sanitize_event(runtime_event, options or telemetry_client())
    return encode_server_sent_event(kept, event=event, id=id, retry=retry)


async def sse_stream(
    events: AsyncIterable[object],
    options: RuntimeTelemetryOptions | None = None,
    *,
    event: str | None = None,
    id_of: Callable[[object], str | None] | None = None,
    retry: float | None = None,
) -> AsyncIterator[bytes]:
    """Yield each of `events` as a server-sent event in UTF-8, as it comes.

    `id_of` gives the id of an event; `retry` goes with the first. A delta waits until its last word
    is over, or that of a secret which it names: what looks like a credential is masked also where
    several deltas share it (`SanitizedStream`). Closing this closes `events`.
    """
    stream = SanitizedStream(options or telemetry_client())
    ids: deque[str | None] = deque()

    def sent(left: Iterable[dict[str, JsonValue]]) -> Iterator[bytes]:
        nonlocal retry
        for kept in left:
            id = ids.popleft()
            yield encode_server_sent_event_bytes(kept, event=event, id=id, retry=retry)
            retry = None

    async with AsyncExitStack() as stack:
        close = getattr(events, "aclose", None)
        if close is not None:
            stack.push_async_callback(close)
        try:
            async for item in events:
                ids.append(None if id_of is None else id_of(item))
                for frame in sent(stream.take(item)):
                    yield frame
        except Exception:
            for frame in sent(stream.rest()):
                yield frame
            raise
        for frame in sent(stream.rest()):
            yield frame


def _json(data: JsonValue) -> str:
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise NotSerializableError(f"the data of a server-sent event is no JSON: {error}") from None
    # Half a character has no UTF-8, but JSON has an escape for it.
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _on_one_line(text: str) -> str:
    return _SURROGATES.sub("\ufffd", re.sub(r"[\r\n\0]", " ", text))
