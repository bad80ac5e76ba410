"""What an OpenAPI document says of each route of the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from perdure.web.shapes import (
    Approvals,
    Decided,
    Decision,
    Erased,
    Health,
    Refusal,
    Session,
    Shape,
    Submission,
    Turn,
)

Parameters = list[dict[str, Any]]


class Description(NamedTuple):
    """What a document says of one route."""

    summary: str
    responses: Mapping[int | str, dict[str, Any]]
    extra: Mapping[str, Any] = {}


_EVENT: Final = (
    '{"type":"message.part.updated","data":{"delta":"It","part":{"id":"p1","type":"text"}}}'
)
_CURSOR: Final = "0001_0000000001_97bce5"
_EXAMPLES: Final = {
    "application/x-ndjson": {
        "plain": {"summary": "plain events", "value": f"{_EVENT}\n"},
        "envelope": {
            "summary": "envelope=1: events with cursors, and heartbeats",
            "value": f'{{"id":"{_CURSOR}","chunk":{_EVENT}}}\n{{"id":null,"chunk":null}}\n',
        },
    },
    "text/event-stream": {
        "sse": {
            "summary": "Accept: text/event-stream",
            "value": f"id: {_CURSOR}\ndata: {_EVENT}\n\n: hb\n\n",
        }
    },
}
_STREAM: Final = {
    media_type: {"schema": {"type": "string"}, "examples": examples}
    for media_type, examples in _EXAMPLES.items()
}


def _parameter(name: str, place: str, description: str, **schema: Any) -> dict[str, Any]:
    """Return a parameter; what stands in a path is required."""
    known: dict[str, Any] = {"name": name, "in": place, "description": description}
    if place == "path":
        known["required"] = True
    return {**known, "schema": {"type": "string", **schema}}


_SESSION: Final[Parameters] = [
    _parameter(
        "session_id", "path", "The chat: printable text of at most 200 bytes, without a slash."
    )
]
_TURN: Final[Parameters] = [
    *_SESSION,
    _parameter("turn_index", "path", "The turn's place in it.", type="integer", minimum=0),
]
_REVISION: Final = _parameter(
    "revision",
    "query",
    "Which revision of the turn; else the newest, or that of the cursor.",
    type="integer",
    minimum=0,
)
_FORM: Final[Parameters] = [
    _parameter("envelope", "query", "1: each line has its cursor; heartbeats.", enum=["0", "1"]),
    _parameter(
        "wire", "query", "`reference`: the dialect of the TypeScript library.", enum=["reference"]
    ),
]
_BEHIND: Final[Parameters] = [
    _parameter("after", "query", "The cursor of the last line that the reader has."),
    _parameter("Last-Event-ID", "header", "The same, from an EventSource; it counts first."),
]


def _refusals(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    """Return the responses of a route that refuses with statuses named `_404`."""
    told = {"_400": "A part of the request is wrong: the message names it.", **descriptions}
    of_status: dict[int | str, dict[str, Any]] = {
        int(status[1:]): {"model": Refusal, "description": description}
        for status, description in sorted(told.items())
    }
    return {**of_status, "default": {"model": Refusal, "description": "Anything else."}}


_OF_CALLERS: Final = {
    "_401": "Nobody is known to have asked.",
    "_404": "There is none, or it is not the caller's.",
    "_503": "The store cannot be reached, or the service shuts down.",
}

_OF_BODIES: Final = {
    "_408": "The body did not come in time.",
    "_413": "The body is too long.",
    "_415": "The body is not JSON.",
}
_OF_DELETIONS: Final = {**_OF_CALLERS, "_409": "A turn is in flight, or queued."}
_STOP: Final = _parameter("stop", "query", "1: stop what is in flight first.", enum=["0", "1"])


def _body(shape: type[Shape]) -> dict[str, Any]:
    content = {"application/json": {"schema": shape.model_json_schema()}}
    return {"required": True, "content": content}


DESCRIPTIONS: Final[Mapping[str, Description]] = {
    "submit": Description(
        "Submit a turn, and stream its answer",
        {
            200: {"description": "The turn was there: joined, or replayed.", "content": _STREAM},
            201: {"description": "This request began or queued it.", "content": _STREAM},
            **_refusals(
                **_OF_CALLERS,
                **_OF_BODIES,
                _409="The turn has another message, or another turn is in flight.",
                _429="There is too much to do; come back later.",
            ),
        },
        {
            "parameters": [*_SESSION, *_FORM],
            "requestBody": _body(Submission),
        },
    ),
    "stream": Description(
        "Stream a turn from behind a cursor",
        {
            200: {"description": "The stream, live or of a finished turn.", "content": _STREAM},
            204: {"description": "The reader has everything of a turn that is over."},
            **_refusals(
                **_OF_CALLERS,
                _410="The frames are no longer kept: look at the turn instead.",
                _429="The turn has too many readers.",
            ),
        },
        {"parameters": [*_TURN, _REVISION, *_BEHIND, *_FORM]},
    ),
    "turn": Description(
        "Look at a turn",
        {200: {"model": Turn, "description": "The turn."}, **_refusals(**_OF_CALLERS)},
        {"parameters": [*_TURN, _REVISION]},
    ),
    "stop": Description(
        "Stop a turn",
        {
            200: {"model": Turn, "description": "The turn; its partial answer is kept."},
            **_refusals(**_OF_CALLERS),
        },
        {"parameters": [*_TURN, _REVISION]},
    ),
    "approvals": Description(
        "Look at the calls that wait for a human",
        {200: {"model": Approvals, "description": "They."}, **_refusals(**_OF_CALLERS)},
        {"parameters": [*_TURN, _REVISION]},
    ),
    "decide": Description(
        "Decide a call that waits for a human",
        {
            200: {"model": Decided, "description": "The first answer counts."},
            **_refusals(**_OF_CALLERS, **_OF_BODIES),
        },
        {"parameters": [*_TURN, _REVISION], "requestBody": _body(Decision)},
    ),
    "session": Description(
        "Look at a conversation",
        {200: {"model": Session, "description": "The chat."}, **_refusals(**_OF_CALLERS)},
        {"parameters": _SESSION},
    ),
    "delete_session": Description(
        "Delete a conversation, with everything of it",
        {200: {"model": Erased, "description": "It is gone."}, **_refusals(**_OF_DELETIONS)},
        {"parameters": [*_SESSION, _STOP]},
    ),
    "delete_mine": Description(
        "Delete every conversation of the caller",
        {
            200: {"model": Erased, "description": "They are gone; there may have been none."},
            **_refusals(**{name: text for name, text in _OF_DELETIONS.items() if name != "_404"}),
        },
        {"parameters": [_STOP]},
    ),
    "alive": Description(
        "Is the process alive?",
        {200: {"model": Health, "description": "It is."}},
    ),
    "ready": Description(
        "Can it work?",
        {
            200: {"model": Health, "description": "The store can be read."},
            503: {"model": Refusal, "description": "The store cannot be read."},
        },
    ),
}
"""By the name of the endpoint."""
