"""Stored sessions are cleaned up and erased with what they belong to, and never before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from perdure.agent import stored_sessions
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import new_session
from perdure.agent.stored_sessions import DurableSessionStore, stored_name
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import LlmCallEvent, TextDeltaEvent, UnknownEvent
from perdure.agent.stream_frames import AgentTaskProducer
from perdure.core.records import AgentTaskSpec, RunManifest, SessionKey
from perdure.durable.erasing import erase_session, erase_user
from perdure.durable.retention import collect_garbage
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing import ManualClock
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import ChatTurnIdentity
from tests.agent.streaming import Played, final_of, read, said

TASK = AgentTaskSpec("t-9", "Answer a question of the kitchen")
DAY_MS = 86_400_000
WORDS = "canary-4k8w2x"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory:", "sqlite:{}/turns.db", "file:{}/turns"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[RunStore]:
    store = await open_store(request.param.format(tmp_path), clock=clock)
    yield store
    await store.close()


async def use(store: DurableSessionStore, id: str = "s-1") -> None:
    """Work in a session, as each use of it does."""
    choice = SessionChoice(store, id, resume=True)
    events = await read(run_agent_task_stream(TASK, Played(*said(WORDS)), session=choice))
    assert final_of(events).status == "completed"


async def collect(store: RunStore) -> int:
    return (await collect_garbage(store, runs_after_ms=7 * DAY_MS)).runs


async def test_a_session_is_kept_for_as_long_as_it_is_used(
    store: RunStore, clock: ManualClock
) -> None:
    for _ in range(4):
        await use(DurableSessionStore(store))
        clock.advance(6 * DAY_MS)
        assert await collect(store) == 0
    assert len(await DurableSessionStore(store).list_events("s-1")) == 4 * 6
    clock.advance(2 * DAY_MS)
    assert await collect(store) == 4
    assert await store.list_runs() == []
    assert await DurableSessionStore(store).get("s-1") is None


async def test_a_user_is_erased_with_his_sessions_and_nobody_elses(store: RunStore) -> None:
    mine, hers, nobodys = (DurableSessionStore(store, owner_id=each) for each in ("a", "b", None))
    for number, each in enumerate((mine, hers, nobodys)):
        for _ in range(2):
            await use(each, f"s-{number}")
    assert (await erase_user(store, "a")).sessions == 1
    assert await mine.get("s-0") is None
    assert await hers.get("s-1") is not None
    assert await nobodys.get("s-2") is not None


async def test_a_session_is_erased_by_its_name_in_the_store(store: RunStore) -> None:
    sessions = DurableSessionStore(store)
    for id in ("s-1", "x" * 200):
        await use(sessions, id)
        await erase_session(store, stored_name(id))
        assert await DurableSessionStore(store).get(id) is None
    assert await store.list_runs() == []


async def test_a_deleted_session_leaves_nothing(store: RunStore) -> None:
    sessions = DurableSessionStore(store)
    for _ in range(3):
        await use(sessions)
    assert await sessions.delete("s-1")
    assert not await sessions.delete("s-1")
    assert await store.list_runs() == []
    await use(sessions)
    assert await sessions.get("s-1") is not None


async def test_a_session_whose_process_died_as_it_was_taken_up_can_be_used_and_deleted(
    store: RunStore, clock: ManualClock
) -> None:
    sessions = DurableSessionStore(store)
    await use(sessions)
    mark = RunManifest("agent-sessions", AgentTaskSpec("s-1", "Keep what happens"))
    key = SessionKey(stored_name("s-1"), 9)
    await store.start_or_resume("agent-session-use:9:s-1", mark, worker_id="dead", session=key)
    await use(sessions)
    clock.advance(DAY_MS)
    assert await sessions.delete("s-1")
    assert await store.list_runs() == []


async def test_8_r4_no_name_of_a_session_is_that_of_a_use_of_another(store: RunStore) -> None:
    sessions = DurableSessionStore(store)
    await use(sessions)
    await use(sessions)
    uses = [run for run in await store.list_runs() if run.turn_index]
    assert uses
    others = [run.run_id.removeprefix("agent-session:") for run in uses]
    others += [f"s-1#{run.turn_index}" for run in uses]
    for other in others:
        await use(sessions, other)
    await sessions.delete("s-1")
    for other in others:
        assert await sessions.get(other) is not None
        assert len(await sessions.list_events(other)) == 6


async def test_8_r4_two_long_names_are_two_sessions(store: RunStore) -> None:
    sessions = DurableSessionStore(store)
    for id in ("ü" * 300, "ü" * 301):
        await use(sessions, id)
        await use(sessions, id)
    assert await sessions.delete("ü" * 300)
    assert await sessions.get("ü" * 300) is None
    assert len(await sessions.list_events("ü" * 301)) == 12


async def test_8_r4_an_event_that_cannot_be_read_costs_none_of_the_others(store: RunStore) -> None:
    sessions = DurableSessionStore(store)
    await sessions.put(new_session("played", session_id="s-1"))
    odd = LlmCallEvent(model="m", tokens_in=cast("Any", "many"))
    for event in (TextDeltaEvent(text="a"), odd, TextDeltaEvent(text="b")):
        await sessions.append_event("s-1", event)
    assert await sessions.list_events("s-1") == [
        TextDeltaEvent(text="a"),
        UnknownEvent("llm_call", {"type": "llm_call", "model": "m", "tokensIn": "many"}),
        TextDeltaEvent(text="b"),
    ]


async def test_more_sessions_are_told_at_once_than_a_handle_remembers(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_sessions, "LOGS_MAX", 2)
    sessions = DurableSessionStore(store)
    ids = ["s-1", "s-2", "s-3"]
    for id in ids:
        await sessions.put(new_session("demo", session_id=id))
    for piece in "ab":
        for id in ids:
            await sessions.append_event(id, TextDeltaEvent(text=f"{id} {piece}"))
    for id in ids:
        texts = [getattr(event, "text", "") for event in await sessions.list_events(id)]
        assert texts == [f"{id} a", f"{id} b"]


async def test_a_session_of_somebody_else_cannot_be_used(store: RunStore) -> None:
    await use(DurableSessionStore(store, owner_id="ada"))
    session = new_session("played", session_id="s-1")
    details = await store.read_details("agent-session:s-1")
    for owner_id in ("bob", None):
        other = DurableSessionStore(store, owner_id=owner_id)
        for use_it in (
            other.get("s-1"),
            other.list_events("s-1"),
            other.append_event("s-1", TextDeltaEvent(text="x")),
            other.put(session),
            other.put_if(session, None),
            other.delete("s-1"),
        ):
            with pytest.raises(RunNotFoundError):
                await use_it
    assert await store.read_details("agent-session:s-1") == details
    hers = DurableSessionStore(store, owner_id="ada")
    assert await hers.get("s-1") is not None
    assert await hers.delete("s-1")


# Sessions of chats.


def engine_on(store: RunStore) -> ChatTurnEngine:
    producer = AgentTaskProducer(
        Played(*said(WORDS)), task_of=lambda _: TASK, sessions=DurableSessionStore(store)
    )
    return ChatTurnEngine(store, produce=producer)


async def chat(engine: ChatTurnEngine, index: int, *, tenant: str = "") -> None:
    identity = ChatTurnIdentity(tenant, "kitchen", "ada", index)
    submitted = await engine.submit(identity, "Hello")
    async for _ in submitted.lines():
        pass


async def stored(store: RunStore, tenant: str = "") -> list[Any]:
    view = store.for_tenant(tenant) if tenant else store
    return sorted(run.run_id for run in await view.list_runs())


@pytest.mark.parametrize("tenant", ["", "acme"])
async def test_the_session_of_a_chat_lives_within_it(store: RunStore, tenant: str) -> None:
    engine = engine_on(store)
    for index in range(2):
        await chat(engine, index, tenant=tenant)
    assert await stored(store, tenant) == ["chat:kitchen:0", "chat:kitchen:1"]
    view = store.for_tenant(tenant) if tenant else store
    kept = (await view.read_details("chat:kitchen:0")).events
    types = [each.payload["event"]["type"] for each in kept if "event" in each.payload]
    assert types.count("session_created") == types.count("session_resumed") == 1
    assert "text_delta" not in types, "a piece of text is kept twice"
    await engine.aclose()


@pytest.mark.parametrize("tenant", ["", "acme"])
async def test_a_chat_is_erased_with_its_session(store: RunStore, tenant: str) -> None:
    engine = engine_on(store)
    await chat(engine, 0, tenant=tenant)
    view = store.for_tenant(tenant) if tenant else store
    await erase_session(view, "kitchen", owner_id="ada")
    assert await store.list_runs() == [] == await view.list_runs()
    await engine.aclose()


async def test_a_chat_that_does_not_begin_with_its_first_turn_has_a_session_too(
    store: RunStore,
) -> None:
    engine = engine_on(store)
    await chat(engine, 5)
    names = await stored(store)
    assert names == ["agent-session:chat:kitchen", "chat:kitchen:5"]
    assert (await erase_user(store, "ada")).sessions == 2
    assert await stored(store) == []
    await engine.aclose()


async def test_a_session_within_a_run_goes_with_that_only(store: RunStore) -> None:
    engine = engine_on(store)
    await chat(engine, 0)
    sessions = DurableSessionStore(store).beside("chat:kitchen:0")
    with pytest.raises(UsageError, match="chat:kitchen:0"):
        await sessions.delete("chat:kitchen")
    await engine.aclose()
