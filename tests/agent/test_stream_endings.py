"""A streamed task ends with exactly one `final`, the last event, whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, cast

import pytest

from perdure.agent.adapter import KnowledgeHooks
from perdure.agent.backend import IterableBackend
from perdure.agent.cancel import CancelSignal
from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import (
    InMemoryRuntimeSessionStore,
    RuntimeSession,
    new_session,
)
from perdure.agent.stream import STORE_ERROR, run_agent_task_stream
from perdure.agent.stream_events import (
    BackendErrorEvent,
    FinalEvent,
    LlmCallEvent,
    ReasoningDeltaEvent,
    RuntimeStreamEvent,
    TaskEndEvent,
    TextDeltaEvent,
    ToolCallEvent,
)
from perdure.core.records import AgentTaskSpec
from perdure.errors import (
    BackendTransportError,
    ValidationError,
)
from tests.agent.streaming import Played, final_of, read, said, types

TASK = AgentTaskSpec("t-9", "Answer a policy question")
COLOUR = KnowledgeRequirement("colour", "the colour", fallback_policy="block")
WIND = KnowledgeRequirement(
    "wind", "the wind", acquisition_mode="search_web", fallback_policy="continue_with_caveat"
)
READY = "task_start readiness_start readiness_end"
BEGUN = f"{READY} session_created backend_start"
FAILED = "backend_error task_end final"
OFF = ConnectionError("the line is dead")


class Failing(InMemoryRuntimeSessionStore):
    """A store that fails where `points` says: `get`, `put:<n>`, or at an event's type."""

    def __init__(self, *points: str) -> None:
        super().__init__()
        self.points = points
        self.puts = 0

    async def get(self, session_id: str) -> RuntimeSession | None:
        self._at("get")
        return await super().get(session_id)

    async def put(self, session: RuntimeSession) -> None:
        self.puts += 1
        self._at(f"put:{self.puts}")
        await super().put(session)

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        self._at(event.type)
        await super().append_event(session_id, event)

    def _at(self, point: str) -> None:
        if point in self.points:
            raise OSError(f"no room at {point}")


async def test_7_3_r11_a_failure_ends_with_the_partial_text_and_no_backend_end() -> None:
    backend = Played(*said("Ye"), OFF)
    events = await read(run_agent_task_stream(TASK, backend))
    assert types(events) == f"{BEGUN} text_delta {FAILED}"
    error, final = events[-3], final_of(events)
    assert isinstance(error, BackendErrorEvent)
    assert (error.message, error.recoverable) == ("the line is dead", True)
    assert (final.status, final.reason, final.text) == ("failed", "the line is dead", "Ye")
    assert final.session is not None
    assert final.session.status == "failed"
    assert final.error is not None
    assert final.error.kind == "backend"
    assert backend.stopped == ["the line is dead"]


async def test_7_3_r11_a_failing_stop_adds_to_the_message_of_the_error_only() -> None:
    def stop(*_: Any) -> None:
        raise OSError("still running")

    events = await read(run_agent_task_stream(TASK, Played(OFF, stop=stop)))
    error = events[-3]
    assert isinstance(error, BackendErrorEvent)
    assert error.message.startswith("the line is dead")
    assert "still running" in error.message
    assert isinstance(events[-2], TaskEndEvent)
    assert {events[-2].reason, final_of(events).reason} == {"the line is dead"}


async def test_9_6_r4_a_body_is_cut_whoever_raises_it() -> None:
    lost = BackendTransportError("lost", backend="b", status=500, body="x" * 3_000)
    events = await read(run_agent_task_stream(TASK, Played(lost)))
    for error in (events[-3].error, final_of(events).error):
        assert error is not None
        assert error.body == "x" * 2_048 + "…"


async def test_9_6_r4_a_transport_failure_tells_status_and_body_and_whether_it_may_pass() -> None:
    refused = BackendTransportError(
        "no key", backend="played", status=401, body="who are you?", retryable=False
    )
    events = await read(run_agent_task_stream(TASK, Played(refused)))
    error, final = events[-3], final_of(events)
    assert isinstance(error, BackendErrorEvent)
    assert not error.recoverable
    assert final.error is not None
    assert (final.error.kind, final.error.status, final.error.body) == (
        "transport",
        401,
        "who are you?",
    )
    assert error.error == final.error


async def test_7_3_r14_a_signal_ends_a_backend_that_hangs() -> None:
    signal = CancelSignal()
    backend = Played(*said("a"), asyncio.Event().wait)
    events: list[Any] = []
    async for event in run_agent_task_stream(TASK, backend, signal=signal):
        events.append(event)
        if event.type == "text_delta":
            signal.cancel("closed the window")
    assert types(events) == f"{BEGUN} text_delta {FAILED}"
    error, final = events[-3], final_of(events)
    assert isinstance(error, BackendErrorEvent)
    assert (error.recoverable, final.status, backend.closed) == (False, "aborted", 1)
    assert "closed the window" in final.reason


async def test_7_3_r11_what_fails_behind_a_signal_is_aborted_and_not_failed() -> None:
    signal = CancelSignal()

    class Leaving(InMemoryRuntimeSessionStore):
        async def append_event(self, session_id: str, event: Any) -> None:
            if event.type == "text_delta":
                signal.cancel("closed the window")
                raise OSError("the disk is full")
            await super().append_event(session_id, event)

    store, backend = Leaving(), Played(*said("a"))
    choice = SessionChoice(store, "s-1")
    events = await read(run_agent_task_stream(TASK, backend, session=choice, signal=signal))
    assert types(events) == f"{BEGUN} {FAILED}"
    error, final = events[-3], final_of(events)
    assert (error.recoverable, final.status) == (False, "aborted")
    session = await store.get("s-1")
    assert session is not None
    assert (session.status, len(backend.stopped)) == ("aborted", 1)


async def test_7_3_r14_a_signal_that_fired_before_ends_before_the_session() -> None:
    signal, backend = CancelSignal(), Played(*said("a"))
    signal.cancel()
    events = await read(run_agent_task_stream(TASK, backend, signal=signal))
    assert (final_of(events).status, backend.inputs) == ("aborted", [])
    assert "session_created" not in types(events)


@pytest.mark.parametrize(
    "event",
    [
        FinalEvent(task=TASK, timestamp="", status="completed", reason="mine"),
        TaskEndEvent(task=TASK, timestamp="", status="completed", reason="mine"),
        {"type": "text_delta", "text": "a"},
    ],
)
async def test_7_3_r15_bb_9_what_only_the_runtime_may_tell_is_a_failure_of_the_backend(
    event: object,
) -> None:
    events = await read(run_agent_task_stream(TASK, Played(event)))
    assert types(events) == f"{BEGUN} {FAILED}"
    known = "no event" if isinstance(event, dict) else "only the runtime may tell"
    assert (final_of(events).status, known in final_of(events).reason) == ("failed", True)


@pytest.mark.parametrize(
    "event",
    [
        TextDeltaEvent(text=cast("Any", None)),
        ReasoningDeltaEvent(text=cast("Any", 5)),
        ToolCallEvent(tool_name=cast("Any", None)),
        LlmCallEvent(model=cast("Any", None)),
    ],
)
async def test_7_3_r9_an_event_without_its_text_is_a_failure_of_the_backend(
    event: RuntimeStreamEvent,
) -> None:
    store = InMemoryRuntimeSessionStore()
    stream = run_agent_task_stream(
        TASK, Played(*said("a"), event), session=SessionChoice(store, "s-1")
    )
    events = await read(stream)
    assert types(events) == f"{BEGUN} text_delta {FAILED}"
    assert "no text" in final_of(events).reason
    assert event not in await store.list_events("s-1")


async def test_7_3_r13_closing_the_stream_ends_session_and_backend() -> None:
    backend, store = Played(*said("a", "b")), InMemoryRuntimeSessionStore()
    stream = run_agent_task_stream(TASK, backend, session=SessionChoice(store, "s-1"))
    async for event in stream:
        if event.type == "text_delta":
            break
    await stream.aclose()
    session, kept = await store.get("s-1"), await store.list_events("s-1")
    assert session is not None
    assert (session.status, backend.closed, len(backend.stopped)) == ("aborted", 1, 1)
    assert final_of(kept).status == "aborted"


async def test_7_3_r13_a_reader_who_leaves_behind_the_end_changes_nothing() -> None:
    backend, store = Played(), InMemoryRuntimeSessionStore()
    stream = run_agent_task_stream(TASK, backend, session=SessionChoice(store, "s-1"))
    async for event in stream:
        if event.type == "backend_end":
            break
    await stream.aclose()
    session, kept = await store.get("s-1"), await store.list_events("s-1")
    assert session is not None
    assert (session.status, final_of(kept).status, backend.stopped) == (
        "completed",
        "completed",
        [],
    )


async def test_1_2_r3_cancelling_the_reader_cleans_up_and_stays_a_cancellation() -> None:
    hangs, store = asyncio.Event(), InMemoryRuntimeSessionStore()

    async def hang() -> None:
        hangs.set()
        await asyncio.Event().wait()

    backend = Played(hang)
    choice = SessionChoice(store, "s-1")
    reader = asyncio.ensure_future(read(run_agent_task_stream(TASK, backend, session=choice)))
    await hangs.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    session = await store.get("s-1")
    assert session is not None
    assert (session.status, backend.closed) == ("aborted", 1)


@pytest.mark.parametrize(
    "points",
    [
        ("get",),
        ("put:1",),
        ("session_created",),
        ("backend_start",),
        ("text_delta",),
        ("put:2",),
        ("backend_end",),
        ("task_end",),
        ("final",),
        ("text_delta", "put:2", "backend_error", "task_end", "final"),
    ],
)
async def test_bb_4_exactly_one_final_is_last_wherever_the_store_fails(
    points: Sequence[str],
) -> None:
    store = Failing(*points)
    choice = SessionChoice(store, "s-1")
    events = await read(run_agent_task_stream(TASK, Played(*said("a")), session=choice))
    final = final_of(events)
    assert events[-2].type == "task_end"
    assert (final.status == "completed") == (points in [("task_end",), ("final",)])
    if "task_end" in points:
        assert final.metadata is not None
        assert STORE_ERROR in final.metadata


async def test_7_3_r12_bb_4_a_failing_provider_ends_the_stream_too() -> None:
    class Broken:
        def build_readiness(self, task: AgentTaskSpec) -> None:
            raise OSError("no library")

    events = await read(run_agent_task_stream(TASK, Played(), knowledge=Broken()))
    assert types(events) == "task_start readiness_start task_end final"
    final = final_of(events)
    assert final.error is not None
    assert (final.status, final.error.kind) == ("failed", "readiness")


@pytest.mark.parametrize("hook", ["start", "resume"])
async def test_bb_4_a_failing_hook_of_the_backend_ends_the_stream_too(hook: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no box")

    store = InMemoryRuntimeSessionStore()
    if hook == "resume":
        await store.put(new_session("played", session_id="s-1"))
    choice = SessionChoice(store, "s-1", resume=True)
    hooks: dict[str, Any] = {hook: fail}
    events = await read(run_agent_task_stream(TASK, Played(**hooks), session=choice))
    final = final_of(events)
    assert final.error is not None
    assert (final.reason, final.error.kind) == ("no box", "session")


@pytest.mark.parametrize("place", ["backend", "start", "knowledge", "store", "stop"])
async def test_7_3_an_error_that_cannot_say_what_it_is_ends_the_stream_too(place: str) -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    class Broken(InMemoryRuntimeSessionStore):
        async def get(self, session_id: str) -> RuntimeSession | None:
            raise SpeechlessError

    def fail(*_: Any) -> Any:
        raise SpeechlessError

    backends = {
        "backend": Played(SpeechlessError()),
        "start": Played(start=fail),
        "stop": Played(OFF, stop=fail),
    }
    store = Broken() if place == "store" else InMemoryRuntimeSessionStore()
    provider = KnowledgeHooks(build_readiness=fail) if place == "knowledge" else None
    events = await read(
        run_agent_task_stream(
            TASK,
            backends.get(place) or Played(),
            knowledge=provider,
            session=SessionChoice(store, "s-1", resume=True),
        )
    )
    final = final_of(events)
    assert final.status == "failed"
    if place == "stop":
        assert "could not be stopped" in repr(events)
    else:
        assert final.reason.endswith("SpeechlessError")


class Kindless:
    async def stream(self, *_: object) -> AsyncIterator[TextDeltaEvent]:
        yield TextDeltaEvent(text="a")


@pytest.mark.parametrize(
    ("task", "backend", "input", "culprit"),
    [
        ({"id": "t", "intent": "i"}, Played(), None, "AgentTaskSpec"),
        (TASK, object(), None, "no method stream"),
        (TASK, Kindless(), None, "'Kindless' has no kind"),
        (TASK, Played(), "Hello", "AgentBackendInput"),
    ],
)
def test_7_1_what_is_no_task_backend_or_input_is_refused_at_once(
    task: Any, backend: Any, input: Any, culprit: str
) -> None:
    with pytest.raises(ValidationError, match=culprit):
        run_agent_task_stream(task, backend, input=input)


@pytest.mark.parametrize("given", [list, partial(asyncio.sleep, 0)])
async def test_9_1_a_stream_that_is_no_iterator_is_named_and_never_recoverable(given: Any) -> None:
    backend = IterableBackend("played", lambda *_: given())
    *_, error, _, _ = await read(run_agent_task_stream(TASK, backend))
    assert isinstance(error, BackendErrorEvent)
    assert "async iterator" in error.message
    assert not error.recoverable


@pytest.mark.parametrize("task", [TASK._replace(id=""), TASK._replace(intent="")])
def test_3_1_an_empty_id_or_intent_is_refused_at_once(task: AgentTaskSpec) -> None:
    with pytest.raises(ValidationError):
        run_agent_task_stream(task, Played())


async def test_8_r1_a_backend_may_name_its_own_session_but_only_of_its_kind() -> None:
    def start(*_: Any) -> RuntimeSession:
        return new_session("played", session_id="mine", resume_token="tok-1")

    events = await read(run_agent_task_stream(TASK, Played(start=start)))
    session = final_of(events).session
    assert session is not None
    assert session.id == "mine"
    assert "tok-1" not in repr(events)
    strange = Played(start=lambda *_: new_session("other"))
    assert final_of(await read(run_agent_task_stream(TASK, strange))).status == "failed"
