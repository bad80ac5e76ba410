"""Frames as events: the only place that knows the reference's names.

An event is `{"type": …, "data": …}`, its keys in this order. A `Dialect` says how much of what is
new a client wants to see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from perdure.core.frames import Frame
from perdure.core.records import JsonValue

Dialect = Literal["perdure", "reference"]
Event = Mapping[str, JsonValue]


class Addressee(NamedTuple):
    """Whose events they are, and for whom. `replayed`: the turn was over when its reader came."""

    tenant_id: str
    session_id: str
    turn_index: int
    dialect: Dialect = "perdure"
    replayed: bool = False
    revision: int = 0


def started(to: Addressee) -> Event:
    """Return the event that opens every stream: a reader who sees it begins from nothing."""
    data: dict[str, JsonValue] = {
        "sessionId": to.session_id,
        "tenantId": to.tenant_id,
        "turnIndex": to.turn_index,
    }
    if to.revision and to.dialect != "reference":
        data["revision"] = to.revision
    return _event("session.run.started", data)


def result(final_text: str) -> Event:
    """Return the reference's replay of a finished turn: one event with the whole text."""
    return _event("result", {"finalText": final_text})


def recovering(to: Addressee) -> Event:
    """Return the passing remark that nobody works on the turn just now: somebody will."""
    return _event("session.run.recovering", {"sessionId": to.session_id})


def completed(to: Addressee, finish_reason: JsonValue = None) -> Event:
    """Return the event of a good end; `finish_reason` is the model's, if it is known."""
    data: dict[str, JsonValue] = {"sessionId": to.session_id, "replayed": to.replayed}
    if finish_reason is not None and to.dialect != "reference":
        data["finishReason"] = finish_reason
    return _event("session.run.completed", data)


def refused(to: Addressee, *, code: str, message: str, retryable: bool) -> tuple[Event, ...]:
    """Return the events of a turn that could not even be opened."""
    return _failed(to, {"code": code, "message": message, "retryable": retryable})


def events_of(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    """Return what a reader sees of `frame`: mostly one event, sometimes none or two."""
    return _TRANSLATIONS[frame.kind](frame, to)


def delta_text(frame: Frame) -> str:
    """Return the one event of a text or reasoning frame as JSON: most are of that kind."""
    data = frame.data
    return f"{_DELTA_HEAD}{_quote(data['delta'])}{_delta_tail(frame.kind, data['part'])}"


_quote = json.encoder.encode_basestring_ascii
_DELTA_HEAD: Final = '{"type":"message.part.updated","data":{"delta":'


@lru_cache(maxsize=1_024)
def _delta_tail(kind: str, part: str) -> str:
    return f',"part":{{"id":{_quote(part)},"type":{_quote(kind)}}}}}}}'


def _event(kind: str, data: JsonValue) -> Event:
    return {"type": kind, "data": data}


def _part(data: JsonValue) -> tuple[Event, ...]:
    return (_event("message.part.updated", data),)


def _of_delta(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    data = frame.data
    return _part({"delta": data["delta"], "part": {"id": data["part"], "type": frame.kind}})


def _of_tool_call(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    data = frame.data
    part = {
        "id": data["call"],
        "type": "tool",
        "name": data["name"],
        "args": data["args"],
        "state": "running",
    }
    return _part({"part": part})


def _of_tool_result(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    data = frame.data
    part: dict[str, JsonValue] = {"id": data["call"], "type": "tool"}
    if "error" in data:
        part |= {"state": "error", "error": data["error"]}
    else:
        part |= {"state": "completed", "result": data["result"]}
    return _part({"part": part})


def _of_source(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    data = frame.data
    source = {"id": f"s{frame.seq}", "type": "source", "url": data["url"], "title": data["title"]}
    return _part({"part": source})


def _of_data(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    return (_event(frame.data["name"], frame.data["value"]),)


def _of_event(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    return (frame.data["event"],)


def _of_restarted(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    if to.dialect == "reference":
        # There an update of a whole text part replaces what came before; kept text follows.
        return _part({"part": {"id": f"p{frame.seq}", "type": "text", "text": ""}})
    data = frame.data
    told = {"attempt": data["attempt"], "reason": data["reason"], "discardFrom": data["from"]}
    return (_event("session.run.restarted", told),)


def _of_completed(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    return (completed(to, frame.data.get("finish")),)


def _of_stopped(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    if to.dialect == "reference":
        return (completed(to),)
    return (_event("session.run.stopped", {"sessionId": to.session_id}),)


def _of_failed(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    return _failed(to, frame.data)


def _failed(to: Addressee, failure: Mapping[str, JsonValue]) -> tuple[Event, ...]:
    message = failure["message"]
    told: dict[str, JsonValue] = {"message": message}
    if to.dialect != "reference":
        told |= {"code": failure["code"], "retryable": failure["retryable"]}
        if "ref" in failure:
            told["ref"] = failure["ref"]
    ended = {"sessionId": to.session_id, "message": message}
    return (_event("error", told), _event("session.run.failed", ended))


def _nothing(frame: Frame, to: Addressee) -> tuple[Event, ...]:
    return ()


_TRANSLATIONS: Final[Mapping[str, Callable[[Frame, Addressee], tuple[Event, ...]]]] = {
    "text": _of_delta,
    "reasoning": _of_delta,
    "tool_call": _of_tool_call,
    "tool_result": _of_tool_result,
    "source": _of_source,
    "usage": _nothing,
    "data": _of_data,
    "event": _of_event,
    "upstream_end": _nothing,
    "wait": _nothing,
    "restarted": _of_restarted,
    "completed": _of_completed,
    "failed": _of_failed,
    "stopped": _of_stopped,
}
