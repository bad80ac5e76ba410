"""Every session store keeps the same promises: in memory, and in the database of the runs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import (
    ComparingSessionStore,
    InMemoryRuntimeSessionStore,
    new_session,
    touched,
)
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import TextDeltaEvent, event_to_wire
from perdure.core.records import AgentTaskSpec
from perdure.core.secret import Secret
from perdure.store.opening import open_store
from tests.agent.streaming import Played, final_of, read, said, types

TASK = AgentTaskSpec("t-9", "Answer a policy question", inputs={"draft": "a long text"})
URLS = ("memory:", "sqlite:{}/sessions.db", "file:{}/sessions")
Store = InMemoryRuntimeSessionStore | DurableSessionStore


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[DurableSessionStore]:
    store = await open_store(url)
    try:
        yield DurableSessionStore(store)
    finally:
        await store.close()


@pytest.fixture(params=["", *URLS])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if not request.param:
        yield InMemoryRuntimeSessionStore()
        return
    async with opened(request.param.format(tmp_path)) as stored:
        yield stored


async def test_8_what_was_put_last_is_got_with_its_token(store: Store) -> None:
    assert await store.get("s-1") is None
    first = new_session("demo", session_id="s-1", resume_token="tok-1", metadata={"a_b": [1]})
    await store.put(first)
    last = touched(first, status="completed")
    await store.put(last)
    assert await store.get("s-1") == last
    assert last.resume_token == Secret("tok-1")


async def test_8_events_come_back_in_order_and_whole(store: Store) -> None:
    choice = SessionChoice(store, "s-1")
    told = await read(run_agent_task_stream(TASK, Played(*said("a", "b")), session=choice))
    assert list(await store.list_events("s-1")) == told[3:]
    assert list(await store.list_events("s-2")) == []


async def test_8_an_event_without_task_or_session_comes_back_without(store: Store) -> None:
    session = new_session("demo", session_id="s-1")
    await store.put(session)
    events = [
        TextDeltaEvent(text="a", task=TASK, session=session),
        TextDeltaEvent(text="b"),
        TextDeltaEvent(text="c", task=TASK, session=session),
    ]
    for event in events:
        await store.append_event("s-1", event)
    assert list(await store.list_events("s-1")) == events


async def test_bb_10_put_if_is_won_by_one(store: Store) -> None:
    assert isinstance(store, ComparingSessionStore)
    first = new_session("demo", session_id="s-1")
    assert await store.put_if(first, None)
    assert not await store.put_if(first, None)
    wins = await asyncio.gather(
        *(
            store.put_if(new_session("demo", session_id="s-1", metadata={"by": by}), first)
            for by in range(5)
        )
    )
    assert wins.count(True) == 1


@pytest.mark.parametrize("url", URLS[1:])
async def test_two_processes_lose_none_of_each_others_events(url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(opened(url.format(tmp_path))) for _ in range(2)]
        mine, yours = TASK, TASK._replace(id="t-10")
        session = new_session("demo", session_id="s-1")
        await one.put(session)
        for number in range(5):
            event = TextDeltaEvent(text=str(number), session=session)
            await one.append_event("s-1", _of(event, mine))
            await two.append_event("s-1", _of(event, yours))
        kept: Any = await one.list_events("s-1")
        assert [(event.text, event.task.id) for event in kept] == [
            (str(number), task.id) for number in range(5) for task in (mine, yours)
        ]


def _of(event: TextDeltaEvent, task: AgentTaskSpec) -> TextDeltaEvent:
    return TextDeltaEvent(text=event.text, session=event.session, task=task)


async def test_8_r3_the_oldest_goes_first_where_memory_is_bounded() -> None:
    store = InMemoryRuntimeSessionStore(sessions_max=2, events_max=2)
    for name in ("a", "b", "c"):
        await store.put(new_session("demo", session_id=name))
        for piece in "123":
            await store.append_event(name, TextDeltaEvent(text=piece))
    assert await store.get("a") is None
    assert await store.list_events("a") == []
    assert [getattr(each, "text", "") for each in await store.list_events("c")] == ["2", "3"]


async def test_a_deleted_session_is_forgotten() -> None:
    async with opened("memory:") as store:
        await store.put(new_session("demo", session_id="s-1"))
        assert await store.delete("s-1")
        assert await store.get("s-1") is None
        await store.put(new_session("demo", session_id="s-1"))
        assert await store.get("s-1") is not None


CRASHING = """
import asyncio, os, signal, sys
from perdure.agent.backend import IterableBackend
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import new_session
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import TextDeltaEvent
from perdure.core.records import AgentTaskSpec
from perdure.store.opening import open_store

async def stream(input, context):
    yield TextDeltaEvent(text="half an ")

def start(input, context):
    return new_session("demo", session_id=context.requested_session_id, resume_token="tok-1")

async def main():
    store = DurableSessionStore(await open_store(sys.argv[1]))
    task = AgentTaskSpec("t-9", "Answer a policy question")
    backend = IterableBackend("demo", stream, start=start)
    choice = SessionChoice(store, "s-1")
    async for event in run_agent_task_stream(task, backend, session=choice):
        if event.type == "text_delta":
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("url", URLS[1:])
async def test_a_session_is_resumed_after_its_process_was_killed(url: str, tmp_path: Path) -> None:
    address = url.format(tmp_path)
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", CRASHING, address], env={**os.environ}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    resumed: list[Any] = []

    def resume(session: Any, *_: Any) -> Any:
        resumed.append(session)
        return touched(session, status="active")

    backend = Played(*said("answer"), kind="demo", resume=resume)
    async with opened(address) as store:
        before = await store.list_events("s-1")
        assert types(before) == "session_created backend_start text_delta"
        choice = SessionChoice(store, "s-1", resume=True)
        events = await read(run_agent_task_stream(TASK, backend, session=choice))
        assert types(events[3:4]) == "session_resumed"
        assert final_of(events).status == "completed"
        [session] = resumed
        assert (session.status, session.resume_token) == ("active", Secret("tok-1"))
        kept = await store.list_events("s-1")
        assert types(kept) == types([*before, *events[3:]])
        assert "tok-1" not in str([event_to_wire(event) for event in kept])


@pytest.mark.parametrize("url", URLS[1:])
async def test_one_of_two_takes_up_a_session_within_one_millisecond(
    url: str, tmp_path: Path
) -> None:
    address = url.format(tmp_path)
    both_have_read = asyncio.Barrier(2)
    backends: list[Played] = []

    async def resume(session: Any, *_: Any) -> Any:
        await both_have_read.wait()
        return session

    async def take_up(store: Any) -> list[Any]:
        backend = Played(*said("answer"), kind="demo", resume=resume)
        backends.append(backend)
        choice = SessionChoice(store, "s-1", resume=True)
        return await read(run_agent_task_stream(TASK, backend, session=choice))

    async with opened(address) as first, opened(address) as second:
        await first.put(new_session("demo", session_id="s-1"))
        told = await asyncio.gather(take_up(first), take_up(second))
        statuses = sorted(final_of(events).status for events in told)
        assert statuses == ["completed", "failed"]
        [lost] = [final_of(each) for each in told if final_of(each).status == "failed"]
        assert "somebody else has just taken the session" in str(lost.reason)
        # What both have is the winner's: the other one neither ends it nor stops its backend.
        assert [backend.stopped for backend in backends] == [[], []]
        session = await first.get("s-1")
        assert session is not None
        assert session.status == "completed"


def test_8_r2_to_touch_a_session_changes_when_it_was_updated_and_nothing_else() -> None:
    first = new_session(
        "demo", session_id="s", resume_token="t", metadata={"a": 1}, clock=lambda: 5
    )
    later = touched(first, clock=lambda: 1_000)
    assert later.updated_at == "1970-01-01T00:00:01.000Z"
    assert replace(later, updated_at=first.updated_at) == first


def test_8_r1_a_new_session_has_the_id_asked_for_or_a_random_one() -> None:
    assert new_session("demo", session_id="s").id == "s"
    made = [new_session("demo", session_id=given) for given in (None, "")]
    assert [UUID(each.id).version for each in made] == [4, 4]
    assert made[0].id != made[1].id
    assert {each.status for each in made} == {"active"}
    assert all(each.created_at == each.updated_at for each in made)
