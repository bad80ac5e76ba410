"""Frames as events: the names, fields and order of fields of the wire."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.frames import (
    Frame,
    data,
    event,
    reasoning,
    source,
    text,
    tool_call,
    tool_result,
    upstream_end,
    usage,
)
from perdure.turn.wire import events
from perdure.turn.wire.events import Addressee, Dialect

TO = Addressee("acme", "s", 3)
FAILURE = {"code": "internal", "message": "No.", "retryable": True, "ref": "ab12"}


def told(frame: Frame, dialect: Dialect = "perdure", *, replayed: bool = False) -> list[str]:
    to = TO._replace(dialect=dialect, replayed=replayed)
    return [json.dumps(one, separators=(",", ":")) for one in events.events_of(frame, to)]


def part(**fields: object) -> str:
    inner = json.dumps(fields, separators=(",", ":"))
    return f'{{"type":"message.part.updated","data":{{"part":{inner}}}}}'


def updated(body: str) -> list[str]:
    return [f'{{"type":"message.part.updated","data":{body}}}']


SAME_IN_BOTH = [
    (text("Hi", "p1"), updated('{"delta":"Hi","part":{"id":"p1","type":"text"}}')),
    (reasoning("Hm", "p2"), updated('{"delta":"Hm","part":{"id":"p2","type":"reasoning"}}')),
    (
        tool_call("c", "search", {"q": 1}),
        [part(id="c", type="tool", name="search", args={"q": 1}, state="running")],
    ),
    (tool_result("c", [1]), [part(id="c", type="tool", state="completed", result=[1])]),
    (
        tool_result("c", error={"code": "x", "message": "y"}),
        [part(id="c", type="tool", state="error", error={"code": "x", "message": "y"})],
    ),
    (source("u", "t")._replace(seq=7), [part(id="s7", type="source", url="u", title="t")]),
    (data("note", {"b": 1, "a": 2}), ['{"type":"note","data":{"b":1,"a":2}}']),
    (event({"type": "x", "data": {"z": 1}, "more": 2}), ['{"type":"x","data":{"z":1},"more":2}']),
    (usage(tokens_in=1), []),
    (upstream_end("stop"), []),
]


@pytest.mark.parametrize("dialect", ["perdure", "reference"])
@pytest.mark.parametrize(("frame", "lines"), SAME_IN_BOTH, ids=lambda value: str(value)[:30])
def test_content_is_told_as_the_reference_tells_it(
    frame: Frame, lines: list[str], dialect: Dialect
) -> None:
    assert told(frame, dialect) == lines


@given(st.text(), st.text(), st.sampled_from(["text", "reasoning"]))
def test_the_fast_way_writes_what_the_general_one_writes(delta: str, name: str, kind: str) -> None:
    frame = Frame(1, 1, kind, {"part": name, "delta": delta})
    assert [events.delta_text(frame)] == told(frame)


@pytest.mark.parametrize("replayed", [False, True])
def test_a_stream_opens_and_closes_as_the_reference_does(replayed: bool) -> None:
    opening = json.dumps(events.started(TO), separators=(",", ":"))
    assert opening == (
        '{"type":"session.run.started","data":{"sessionId":"s","tenantId":"acme","turnIndex":3}}'
    )
    (closing,) = told(Frame(9, 1, "completed", {}), replayed=replayed)
    assert closing == (
        '{"type":"session.run.completed","data":{"sessionId":"s","replayed":'
        f"{str(replayed).lower()}}}}}"
    )


def test_the_model_s_finish_reason_is_told_but_not_to_the_reference() -> None:
    frame = Frame(9, 1, "completed", {"finish": "length"})
    assert told(frame) == [
        '{"type":"session.run.completed",'
        '"data":{"sessionId":"s","replayed":false,"finishReason":"length"}}'
    ]
    assert told(frame, "reference") == told(Frame(9, 1, "completed", {}))


def test_a_failure_has_a_code_but_not_for_the_reference() -> None:
    frame = Frame(9, 1, "failed", FAILURE)
    ended = '{"type":"session.run.failed","data":{"sessionId":"s","message":"No."}}'
    assert told(frame, "reference") == ['{"type":"error","data":{"message":"No."}}', ended]
    full = '{"message":"No.","code":"internal","retryable":true,"ref":"ab12"}'
    assert told(frame) == [f'{{"type":"error","data":{full}}}', ended]


def test_a_stop_is_an_end_like_any_other_for_the_reference() -> None:
    frame = Frame(9, 1, "stopped", {})
    assert told(frame) == ['{"type":"session.run.stopped","data":{"sessionId":"s"}}']
    assert told(frame, "reference") == [
        '{"type":"session.run.completed","data":{"sessionId":"s","replayed":false}}'
    ]


def test_a_restart_replaces_the_text_for_the_reference() -> None:
    facts = {"attempt": 2, "reason": "lease_expired", "from": "0001_1_ab", "kept": 1}
    frame = Frame(9, 2, "restarted", facts)
    assert told(frame) == [
        '{"type":"session.run.restarted","data":'
        '{"attempt":2,"reason":"lease_expired","discardFrom":"0001_1_ab"}}'
    ]
    assert told(frame, "reference") == [part(id="p9", type="text", text="")]


def test_a_result_and_a_refusal_are_single_facts() -> None:
    assert events.result("all") == {"type": "result", "data": {"finalText": "all"}}
    error, failed = events.refused(TO, code="lease_held", message="Later.", retryable=True)
    assert error["data"] == {"message": "Later.", "code": "lease_held", "retryable": True}
    assert failed["type"] == "session.run.failed"
