"""The session of a stream: what it needs of its store, and that nothing which hangs holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from perdure.agent import session_life
from perdure.agent.cancel import CancelSignal
from perdure.agent.session_life import RESUME_MISSED, SessionChoice
from perdure.agent.sessions import (
    InMemoryRuntimeSessionStore,
    RuntimeSession,
    new_session,
    touched,
)
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream import STORE_ERROR, run_agent_task_stream
from perdure.core.records import AgentTaskSpec
from perdure.core.secret import Secret
from perdure.errors import ValidationError
from perdure.store.memory import MemoryStore
from tests.agent.streaming import Played, final_of, read, said, types

TASK = AgentTaskSpec("t-9", "Answer a policy question")
COMPLETED = (
    "task_start readiness_start readiness_end session_created backend_start text_delta "
    "backend_end task_end final"
)


class TwoMethods:
    """All that a session store must have."""

    def __init__(self) -> None:
        self.kept: dict[str, RuntimeSession] = {}

    async def get(self, session_id: str) -> RuntimeSession | None:
        return self.kept.get(session_id)

    async def put(self, session: RuntimeSession) -> None:
        self.kept[session.id] = session


class Plain:
    """A session store without one coroutine."""

    def __init__(self) -> None:
        self.kept: dict[str, RuntimeSession] = {}
        self.events: list[Any] = []

    def get(self, session_id: str) -> RuntimeSession | None:
        return self.kept.get(session_id)

    def put(self, session: RuntimeSession) -> None:
        self.kept[session.id] = session

    def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        fits = self.kept.get(session.id) == expected
        if fits:
            self.put(session)
        return fits

    def append_event(self, session_id: str, event: object) -> None:
        self.events.append(event)


class RaisesAtOnce(InMemoryRuntimeSessionStore):
    def append_event(self, session_id: str, event: object) -> Any:
        raise OSError("the disk is gone")


async def hang(*_: object) -> None:
    await asyncio.Event().wait()


async def test_8_a_store_needs_get_and_put_alone() -> None:
    store = TwoMethods()
    choice = SessionChoice(store, "s-1")
    events = await read(run_agent_task_stream(TASK, Played(*said("a")), session=choice))
    assert types(events) == COMPLETED
    assert store.kept["s-1"].status == "completed"


async def test_1_2_r1_the_methods_of_a_store_may_be_plain() -> None:
    store = Plain()
    choice = SessionChoice(cast("Any", store), "s-1")
    events = await read(run_agent_task_stream(TASK, Played(*said("a")), session=choice))
    assert types(events) == COMPLETED
    assert store.events == events[3:]
    assert store.kept["s-1"].status == "completed"


async def test_bb_4_a_store_that_raises_before_it_is_awaited_costs_no_final() -> None:
    choice = SessionChoice(RaisesAtOnce(), "s-1")
    events = await read(run_agent_task_stream(TASK, Played(*said("a")), session=choice))
    assert (final_of(events).status, final_of(events).reason) == ("failed", "the disk is gone")


@pytest.mark.parametrize("hook", ["start", "resume"])
async def test_7_3_r14_a_signal_ends_a_backend_that_hangs_before_it_streams(hook: str) -> None:
    signal, store, called = CancelSignal(), InMemoryRuntimeSessionStore(), asyncio.Event()
    if hook == "resume":
        await store.put(new_session("played", session_id="s-1"))

    async def begin(*_: object) -> None:
        called.set()
        await hang()

    backend = Played(**cast("Any", {hook: begin}))
    choice = SessionChoice(store, "s-1", resume=True)
    stream = run_agent_task_stream(TASK, backend, session=choice, signal=signal)
    reading = asyncio.ensure_future(read(stream))
    await called.wait()
    signal.cancel("enough")
    final = final_of(await reading)
    assert (final.status, final.reason) == ("aborted", "the task was cancelled: enough")


async def test_7_3_r11_a_backend_that_cannot_be_stopped_in_time_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_life, "STOP_MS", 1)
    events = await read(run_agent_task_stream(TASK, Played(OSError("no more"), stop=hang)))
    assert types(events).endswith("backend_start backend_error task_end final")
    assert final_of(events).reason == "no more"
    assert events[-3].message == "no more (and it could not be stopped: it took more than 1 ms)"


async def test_bb_4_a_store_that_hangs_at_the_end_costs_no_final(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_life, "STOP_MS", 1)

    class HangsLater(InMemoryRuntimeSessionStore):
        async def append_event(self, session_id: str, event: Any) -> None:
            await super().append_event(session_id, event)
            if event.type == "text_delta":
                monkeypatch.setattr(self, "put", hang)
                monkeypatch.setattr(self, "append_event", hang)

    backend, choice = Played(*said("a"), OSError("no more")), SessionChoice(HangsLater(), "s-1")
    events = await read(run_agent_task_stream(TASK, backend, session=choice))
    assert types(events).endswith("text_delta backend_error task_end final")
    final = final_of(events)
    assert (final.reason, final.metadata) == ("no more", {STORE_ERROR: "it took more than 1 ms"})


async def test_7_3_r14_a_signal_ends_a_task_whose_store_hangs_behind_its_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_life, "STOP_MS", 1)
    store, signal, hangs = InMemoryRuntimeSessionStore(), CancelSignal(), asyncio.Event()

    async def hang_and_say_so(*_: object) -> None:
        hangs.set()
        await hang()

    async def break_the_store() -> None:
        monkeypatch.setattr(store, "put", hang_and_say_so)

    backend, choice = Played(*said("a"), break_the_store), SessionChoice(store, "s-1")
    stream = run_agent_task_stream(TASK, backend, session=choice, signal=signal)
    reading = asyncio.ensure_future(read(stream))
    await hangs.wait()
    signal.cancel("enough")
    final = final_of(await reading)
    assert (final.status, final.text) == ("aborted", "a")


async def test_bb_10_a_resume_that_names_no_session_can_be_seen() -> None:
    events = await read(
        run_agent_task_stream(TASK, Played(*said("a")), session=SessionChoice(resume=True))
    )
    session = final_of(events).session
    assert session is not None
    assert session.metadata == {RESUME_MISSED: True}


@pytest.mark.parametrize(
    ("choice", "culprit"),
    [({"on_existing": "reuse"}, "on_existing"), ({"session_id": 5}, "session_id")],
)
def test_bb_10_a_choice_that_cannot_be_is_refused(choice: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ValidationError, match=culprit):
        SessionChoice(**choice)


@pytest.mark.parametrize("bound", ["sessions_max", "events_max"])
@pytest.mark.parametrize("most", [0, -1, 1.5, True])
def test_8_r3_a_bound_of_the_store_in_memory_is_checked(bound: str, most: Any) -> None:
    with pytest.raises(ValidationError, match=bound):
        InMemoryRuntimeSessionStore(**{bound: most})


async def test_8_r3_a_session_that_was_dropped_leaves_nothing_behind() -> None:
    store = InMemoryRuntimeSessionStore(sessions_max=1)
    first = new_session("demo", session_id="s-1")
    await store.put(first)
    await store.put(new_session("demo", session_id="s-2"))
    for event in said("a", "b"):
        await store.append_event("s-1", event)
    assert list(await store.list_events("s-1")) == []
    await store.put(touched(first))
    assert list(await store.list_events("s-1")) == []


class KeepsAndFails(InMemoryRuntimeSessionStore):
    """Keeps the first session, and then does what `then` does."""

    def __init__(self, then: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self.then = then

    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        kept = await super().put_if(session, expected)
        then, self.then = self.then, nothing
        await then()
        return kept


async def nothing() -> None:
    """Do nothing."""


async def cancel_itself(*_: object) -> None:
    raise asyncio.CancelledError("its own")


async def break_off() -> None:
    raise OSError("the line is dead")


@pytest.mark.parametrize(("then", "status"), [(hang, "aborted"), (break_off, "failed")])
async def test_7_3_r11_a_session_that_was_kept_but_not_opened_is_ended_and_its_backend_stopped(
    then: Any, status: str
) -> None:
    signal, backend = CancelSignal(), Played(*said("a"))

    async def at_last() -> None:
        if then is hang:
            signal.cancel("enough")
        await then()

    store = KeepsAndFails(at_last)
    choice = SessionChoice(store, "s-1")
    events = await read(run_agent_task_stream(TASK, backend, session=choice, signal=signal))
    assert final_of(events).status == status
    assert cast("Any", await store.get("s-1")).status == status
    assert [event.type for event in await store.list_events("s-1")] == ["task_end", "final"]
    assert len(backend.stopped) == 1


async def test_7_3_r13_a_reader_who_leaves_while_a_session_is_opened_leaves_none_active() -> None:
    reached = asyncio.Event()

    async def reach_and_hang() -> None:
        reached.set()
        await hang()

    store, backend = KeepsAndFails(reach_and_hang), Played(*said("a"))
    choice = SessionChoice(store, "s-1")
    reader = asyncio.ensure_future(read(run_agent_task_stream(TASK, backend, session=choice)))
    await reached.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert cast("Any", await store.get("s-1")).status == "aborted"
    assert [event.type for event in await store.list_events("s-1")] == ["final"]
    assert backend.stopped == ["nobody listens any more"]


async def test_bb_10_a_session_that_somebody_else_has_taken_is_neither_ended_nor_stopped() -> None:
    store = InMemoryRuntimeSessionStore()
    other = new_session("played", session_id="s-1", metadata={"by": "somebody else"})

    async def be_late(input: object, context: Any) -> RuntimeSession:
        await store.put(other)
        return new_session("played", session_id=context.requested_session_id)

    backend = Played(*said("a"), start=be_late)
    choice = SessionChoice(store, "s-1")
    events = await read(run_agent_task_stream(TASK, backend, session=choice))
    assert final_of(events).status == "failed"
    assert await store.get("s-1") == other
    assert backend.stopped == []


@pytest.mark.parametrize("end", ["completes", "fails", "is left"])
@pytest.mark.parametrize("kind", ["memory", "durable"])
async def test_bb_10_a_session_that_was_taken_up_since_is_neither_ended_nor_stopped(
    kind: str, end: str
) -> None:
    """Who slept past its lease must not take the token back that the session has by now."""
    stores = {
        "memory": InMemoryRuntimeSessionStore(),
        "durable": DurableSessionStore(MemoryStore()),
    }
    store: Any = stores[kind]
    go_on = asyncio.Event()

    def start(input: object, context: Any) -> RuntimeSession:
        metadata = {"sizes": (1, 2)}
        return new_session(
            "played", session_id=context.requested_session_id, resume_token="old", metadata=metadata
        )

    def resume(session: RuntimeSession, *_: object) -> RuntimeSession:
        return replace(session, status="active", resume_token=Secret("new"))

    rest = said("b") if end == "completes" else [OSError("the line is dead")]
    slow = Played(*said("a"), go_on.wait, *rest, start=start)
    choice = SessionChoice(store, "s-1", resume=True)
    late = run_agent_task_stream(TASK, slow, session=choice)
    async for event in late:
        if event.type == "text_delta":
            break
    fast = Played(*said("c"), resume=resume)
    told = await read(run_agent_task_stream(TASK, fast, session=choice))
    go_on.set()
    if end == "is left":
        await late.aclose()
    else:
        final = final_of(await read(late))
        assert final.status == "failed"
    session = await store.get("s-1")
    assert (session.status, session.resume_token) == ("completed", Secret("new"))
    assert slow.stopped == []
    assert final_of(told).status == "completed"
    kept = [event.type for event in await store.list_events("s-1")]
    assert kept.count("final") == 1
    # What came before anybody knew is kept: an event is not worth a look at who has the session.
    assert kept[-1] == ("text_delta" if end == "completes" else "final")


async def test_7_3_r11_a_session_of_ones_own_is_ended_whatever_types_its_store_keeps() -> None:
    store = DurableSessionStore(MemoryStore())

    def start(input: object, context: Any) -> RuntimeSession:
        metadata: Any = {"sizes": (1, 2), "tree": {"a": ("b",)}}
        id = context.requested_session_id
        return new_session("played", session_id=id, resume_token="t", metadata=metadata)

    choice = SessionChoice(store, "s-1")
    events = await read(
        run_agent_task_stream(TASK, Played(*said("a"), start=start), session=choice)
    )
    assert final_of(events).status == "completed"
    assert cast("Any", await store.get("s-1")).status == "completed"


async def test_7_3_r11_a_backend_is_stopped_if_the_first_event_cannot_be_kept() -> None:
    backend = Played(*said("a"))
    events = await read(
        run_agent_task_stream(TASK, backend, session=SessionChoice(RaisesAtOnce(), "s-1"))
    )
    assert final_of(events).status == "failed"
    assert backend.stopped == ["the disk is gone"]


@pytest.mark.parametrize("method", ["get", "put_if", "put", "append_event"])
async def test_bb_4_a_store_that_cancels_itself_is_a_failure_and_costs_no_final(
    method: str,
) -> None:
    store = InMemoryRuntimeSessionStore()
    setattr(store, method, cancel_itself)
    choice = SessionChoice(store, "s-1")
    events = await read(run_agent_task_stream(TASK, Played(*said("a")), session=choice))
    assert final_of(events).status == "failed"
    assert "cancelled from within" in final_of(events).reason


@pytest.mark.parametrize("hook", ["start", "stop"])
async def test_bb_4_a_hook_of_the_backend_that_cancels_itself_costs_no_final(hook: str) -> None:
    hooks: dict[str, Any] = {hook: cancel_itself}
    backend = Played(OSError("no line"), **hooks)
    events = await read(run_agent_task_stream(TASK, backend))
    assert final_of(events).status == "failed"
