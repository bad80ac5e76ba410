"""A box is prompted with the right message, and what it streams is mapped by the table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from perdure.agent.backend import AgentBackendInput
from perdure.agent.sandbox_backend import DROP, SandboxPromptBackend, event_of_raw
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import InMemoryRuntimeSessionStore, RuntimeSession
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import TextDeltaEvent, ToolCallEvent, event_to_wire
from perdure.core.records import AgentTaskSpec
from tests.agent.streaming import final_of, read, types

TASK = AgentTaskSpec("t-9", "Answer a policy question")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"type": "message.part.updated", "data": {"text": "a"}}, {"text": "a"}),
        ({"type": "message.part.updated", "data": {"delta": "a"}}, {"text": "a"}),
        ({"type": "delta", "text": "a"}, {"text": "a"}),
        ({"type": "text_delta", "data": {"text": ""}, "text": "b"}, {"text": "b"}),
        ({"type": "delta", "data": {"part": {"type": "text", "text": "c"}}}, {"text": "c"}),
        ({"type": "delta", "data": {"part": {"type": "file", "text": "c"}}}, None),
        ({"type": "reasoning_delta", "data": {"text": "hm"}}, {"text": "hm"}),
        (
            {"type": "tool_call", "data": {"name": "look", "id": "1", "input": {"at": 2}}},
            {"toolName": "look", "toolCallId": "1", "args": {"at": 2}},
        ),
        ({"type": "tool_call", "args": 1}, {"toolName": "tool", "args": 1}),
        (
            {"type": "tool_result", "toolName": "look", "data": {"output": "x"}},
            {"toolName": "look", "result": "x"},
        ),
        ({"type": "result", "data": {"finalText": "all"}}, {"text": "all"}),
        ({"type": "final", "text": "all"}, {"text": "all"}),
        ({"type": "artifact", "data": {"id": "a-1", "uri": "x:y"}}, {"artifactId": "a-1"}),
        ({"type": "artifact", "data": {"uri": "x:y"}}, None),
        ({"type": "filing", "data": {"proposalId": "p-1"}}, {"proposalId": "p-1", "title": "p-1"}),
        ({"type": "weather", "text": "rain"}, None),
        ({"type": ["delta"], "text": "a"}, None),
        ("text", None),
        (None, None),
    ],
)
def test_9_5_the_default_mapping(raw: Any, expected: dict[str, Any] | None) -> None:
    event = event_of_raw(raw)
    if expected is None:
        assert event is None
    else:
        assert event is not None
        assert expected.items() <= event_to_wire(event).items()


SOURCES = [
    ("text_delta", "text", "data.text data.delta text data.part"),
    ("message.part.updated", "text", "data.text data.delta text data.part"),
    ("delta", "text", "data.text data.delta text data.part"),
    ("reasoning_delta", "text", "data.text text"),
    ("tool_call", "toolName", "data.name toolName"),
    ("tool_call", "toolCallId", "data.id toolCallId"),
    ("tool_call", "args", "data.args data.input args"),
    ("tool_result", "toolName", "data.name toolName"),
    ("tool_result", "toolCallId", "data.id toolCallId"),
    ("tool_result", "result", "data.result data.output result"),
    ("result", "text", "data.finalText data.text text"),
    ("final", "text", "data.finalText data.text text"),
    ("artifact", "artifactId", "data.artifactId data.id artifactId"),
    ("proposal_created", "proposalId", "data.proposalId data.id proposalId"),
    ("proposal", "proposalId", "data.proposalId data.id proposalId"),
    ("filing", "proposalId", "data.proposalId data.id proposalId"),
    ("filing", "title", "data.title data.id"),
]
"""For each type of raw event and each member of what it stands for: where that is looked for."""


@pytest.mark.parametrize(("kind", "member", "sources"), SOURCES)
def test_9_5_the_first_source_that_is_there_wins(kind: str, member: str, sources: str) -> None:
    places = sources.split()
    while places:
        raw: dict[str, Any] = {"type": kind, "data": {"x": 1}}
        for place in places:
            within, _, name = place.rpartition(".")
            value: Any = {"type": "text", "text": place} if name == "part" else place
            (raw["data"] if within else raw)[name] = value
        event = event_of_raw(raw)
        assert event is not None
        assert event_to_wire(event)[member] == places.pop(0)


@pytest.mark.parametrize("kind", ["text_delta", "result", "final", "reasoning_delta"])
def test_9_5_an_empty_text_is_none(kind: str) -> None:
    assert event_of_raw({"type": kind, "data": {"text": "", "delta": 1}, "text": ""}) is None


def test_9_5_data_that_is_an_object_stands_for_the_event_even_if_it_is_empty() -> None:
    raw = {"type": "tool_call", "data": {}, "name": "look", "id": "1", "args": 2}
    assert event_of_raw(raw) == ToolCallEvent(tool_name="tool", args=2)
    assert event_of_raw({**raw, "data": "look"}) == ToolCallEvent(
        tool_name="look", tool_call_id="1", args=2
    )


def test_9_5_an_artifact_keeps_what_is_said_of_it() -> None:
    said_of_it = {"name": "n", "mimeType": "text/plain", "uri": "x:y", "content": [1]}
    raw = {"type": "artifact", "data": {"id": "a-1", **said_of_it, "metadata": {"a_b": 1}}}
    event = event_of_raw(raw)
    assert event is not None
    known = {"type": "artifact", "artifactId": "a-1", "metadata": {"a_b": 1}}
    assert event_to_wire(event) == {**known, **said_of_it}


class Untouched(list[str]):
    """Pieces of text that nobody may join: as many as a long answer has."""

    def __iter__(self) -> Any:
        raise AssertionError("a piece of text costs as much as all that was said before it")


def test_only_a_closing_event_looks_at_what_was_said_before() -> None:
    for raw in ({"type": "delta", "text": "a"}, {"type": "tool_call"}, {"type": "odd"}):
        event_of_raw(raw, told=Untouched())
    with pytest.raises(AssertionError, match="all that was said"):
        event_of_raw({"type": "final", "text": "a"}, told=Untouched())


@pytest.mark.parametrize(
    ("told", "whole", "rest"),
    [("", "Yes.", "Yes."), ("Ye", "Yes.", "s."), ("Yes.", "Yes.", None), ("No", "Yes.", None)],
)
def test_bb_14_a_closing_text_is_never_told_twice(told: str, whole: str, rest: str | None) -> None:
    event = event_of_raw({"type": "final", "text": whole}, told=told)
    assert event == (None if rest is None else TextDeltaEvent(text=rest))


class Box:
    """Counts how often it is got, and plays raw events to the messages it is sent."""

    def __init__(self, *raw: Any) -> None:
        self.raw = raw
        self.got = 0
        self.messages: list[str] = []
        self.closed = 0

    def get(self, *_: Any) -> Box:
        self.got += 1
        return self

    async def prompt(self, box: Box, message: str, context: Any) -> AsyncIterator[Any]:
        self.messages.append(message)
        try:
            for raw in self.raw:
                yield raw
        finally:
            self.closed += 1


async def test_9_3_a_box_is_got_at_the_start_and_for_the_stream() -> None:
    box = Box({"type": "delta", "text": "Yes"}, {"type": "odd"}, {"type": "final", "text": "Yes."})
    backend = SandboxPromptBackend(box.get, box.prompt)
    events = await read(run_agent_task_stream(TASK, backend))
    final = final_of(events)
    assert (final.text, box.got, box.closed, box.messages) == ("Yes.", 2, 1, [TASK.intent])
    assert final.session is not None
    assert (final.session.backend, final.session.metadata) == ("sandbox", {"resumable": True})


async def test_9_3_r1_r2_the_session_is_named_after_the_box_and_resumed_without_it() -> None:
    box, store = Box(), InMemoryRuntimeSessionStore()

    async def name(box: Box, input: AgentBackendInput) -> str:
        return "box-7"

    backend = SandboxPromptBackend(box.get, box.prompt, get_session_id=name)
    await read(run_agent_task_stream(TASK, backend, session=SessionChoice(store, "wanted")))
    assert await store.get("box-7") is not None
    again = SessionChoice(store, "box-7", resume=True)
    events = await read(run_agent_task_stream(TASK, backend, session=again))
    assert (events[3].type, box.got) == ("session_resumed", 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"message": "hi"}, "hi"),
        ({"messages": ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})}, "b"),
        (
            {
                "messages": (
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "see "},
                            {"type": "image_url", "image_url": {"url": "x:y"}},
                            {"type": "text", "text": "this"},
                        ],
                    },
                )
            },
            "see this",
        ),
        ({"messages": ({"role": "user", "content": [{"type": "image_url"}]},)}, TASK.intent),
        ({"message": "hi", "messages": ({"role": "user", "content": "a"},)}, "hi"),
        ({}, TASK.intent),
    ],
)
async def test_9_3_r3_the_message_that_the_box_gets(given: Any, message: str) -> None:
    box = Box()
    asked = AgentBackendInput(task=TASK, **given)
    await read(run_agent_task_stream(TASK, SandboxPromptBackend(box.get, box.prompt), input=asked))
    assert box.messages == [message]


async def test_9_3_r4_map_event_may_map_drop_or_leave_an_event() -> None:
    def mapped(raw: Any, context: Any) -> Any:
        match raw["text"]:
            case "own":
                return TextDeltaEvent(text="mine")
            case "secret":
                return DROP
            case _:
                return None

    raw = [{"type": "delta", "text": text} for text in ("own", "secret", "plain")]
    box = Box(*raw)
    backend = SandboxPromptBackend(box.get, box.prompt, map_event=mapped)
    events = await read(run_agent_task_stream(TASK, backend))
    assert final_of(events).text == "mineplain"
    assert types(events).count("text_delta") == 2


async def test_9_3_r1_without_a_name_the_session_has_the_wanted_id_or_a_random_one() -> None:
    box, store = Box(), InMemoryRuntimeSessionStore()
    backend = SandboxPromptBackend(box.get, box.prompt)
    await read(run_agent_task_stream(TASK, backend, session=SessionChoice(store, "wanted")))
    session = await store.get("wanted")
    assert session is not None
    assert (session.backend, session.metadata) == ("sandbox", {"resumable": True})
    ids: set[str] = set()
    for _ in range(2):
        final = final_of(await read(run_agent_task_stream(TASK, backend)))
        assert final.session is not None
        ids.add(final.session.id)
    assert len(ids) == 2


def test_9_3_r2_a_resumed_session_is_active_and_touched_and_else_the_same() -> None:
    box = Box()
    backend = SandboxPromptBackend(box.get, box.prompt)
    failed = RuntimeSession("s", "sandbox", "failed", "2020", "2020", "token", {"resumable": True})
    known: Any = None
    resumed = backend.resume(failed, AgentBackendInput(task=TASK), known)
    assert resumed == replace(failed, status="active", updated_at=resumed.updated_at)
    assert resumed.updated_at > failed.updated_at
    assert box.got == 0
