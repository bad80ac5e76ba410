"""A streamed task answers durable turns: its events are frames, a crash resumes its session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream_events import (
    STREAM_EVENTS,
    ArtifactEvent,
    LlmCallEvent,
    ReasoningDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from perdure.agent.stream_frames import FRAMES, AgentTaskProducer, TaskTurn, session_id_of
from perdure.core.records import AgentTaskSpec
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.turn.engine import ChatTurnEngine, SubmittedTurn
from perdure.turn.identity import ChatTurnIdentity
from tests.agent.streaming import Played, said, types

COLOUR = KnowledgeRequirement("colour", "the colour", fallback_policy="block")
IDENTITY = ChatTurnIdentity("", "kitchen", "ada", 0)


@pytest.fixture(params=["memory:", "sqlite:{}/turns.db", "file:{}/turns"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RunStore]:
    store = await open_store(request.param.format(tmp_path))
    yield store
    await store.close()


def task_of(turn: TaskTurn) -> AgentTaskSpec:
    return AgentTaskSpec("t-9", "Answer a question of the kitchen")


def task_that_lacks(turn: TaskTurn) -> AgentTaskSpec:
    return task_of(turn)._replace(required_knowledge=[COLOUR])


def engine_on(store: RunStore, backend: Played, task: Any = task_of) -> ChatTurnEngine:
    producer = AgentTaskProducer(backend, task_of=task, sessions=DurableSessionStore(store))
    return ChatTurnEngine(store, produce=producer)


def kept_in(store: RunStore) -> DurableSessionStore:
    """Return the store of the session of the kitchen's chat."""
    return DurableSessionStore(store).beside("chat:kitchen:0")


async def read(submitted: SubmittedTurn) -> list[dict[str, Any]]:
    body = b"".join([line async for line in submitted.lines()])
    return [json.loads(line) for line in body.splitlines()]


def test_the_table_has_every_event() -> None:
    assert FRAMES.keys() == STREAM_EVENTS.keys()


async def test_events_become_frames_and_usage(store: RunStore) -> None:
    backend = Played(
        ReasoningDeltaEvent(text="hm"),
        ToolCallEvent(tool_name="look", args={"at": 2}),
        ToolResultEvent(tool_name="look", result="an onion"),
        *said("Ye", "s."),
        ArtifactEvent(artifact_id="a-1", uri="secret:place"),
        LlmCallEvent(model="m", tokens_in=9, tokens_out=2, tokens_cached=4, request_id="r-1"),
    )
    engine = engine_on(store, backend)
    lines = await read(await engine.submit(IDENTITY, "what is there?"))
    await engine.aclose()
    told = [line["type"] for line in lines]
    assert told[-1] == "session.run.completed"
    assert {"agent.readiness_end", "agent.session_created", "agent.artifact"} <= set(told)
    assert "secret:place" not in str(lines)
    assert backend.inputs[0].messages[-1] == {"role": "user", "content": "what is there?"}
    [usage] = (await store.read_details("chat:kitchen:0")).usage
    assert (usage.state, usage.tokens_in, usage.tokens_out) == ("settled", 9, 2)
    assert (usage.tokens_cached, usage.request_id) == (4, "r-1")
    assert (
        "".join(
            line["data"]["delta"]
            for line in lines
            if line["data"].get("part", {}).get("type") == "text"
        )
        == "Yes."
    )


async def test_turns_of_a_chat_share_a_session(store: RunStore) -> None:
    engine = engine_on(store, Played(*said("a")))
    await read(await engine.submit(IDENTITY, "one"))
    lines = await read(await engine.submit(IDENTITY._replace(turn_index=1), "two"))
    await engine.aclose()
    assert "agent.session_resumed" in [line["type"] for line in lines]


async def test_a_blocked_task_ends_its_turn_with_its_questions(store: RunStore) -> None:
    backend = Played(*said("no"))
    engine = engine_on(store, backend, task_that_lacks)
    lines = await read(await engine.submit(IDENTITY, "one"))
    await engine.aclose()
    assert lines[-1]["type"] == "session.run.completed"
    [final] = [line for line in lines if line["type"] == "agent.final"]
    assert final["data"]["status"] == "blocked"
    assert backend.inputs == []


async def test_a_failed_task_fails_its_turn(store: RunStore) -> None:
    engine = engine_on(store, Played(*said("a"), ConnectionError("the line is dead")))
    lines = await read(await engine.submit(IDENTITY, "one"))
    await engine.aclose()
    assert lines[-1]["type"] == "session.run.failed"


async def test_an_attempt_after_a_give_back_resumes_the_session(store: RunStore) -> None:
    hangs = asyncio.Event()

    async def hang() -> None:
        hangs.set()
        await asyncio.Event().wait()

    first = engine_on(store, Played(*said("half"), hang))
    await first.submit(IDENTITY, "one")
    await hangs.wait()
    await first.aclose(drain_ms=0)
    backend = Played(*said("whole"))
    second = engine_on(store, backend)
    lines = await read(await second.submit(IDENTITY, "one"))
    await second.aclose()
    assert lines[-1]["type"] == "session.run.completed"
    [context] = backend.contexts
    assert context.session.id == "chat:kitchen"
    kept = types(await kept_in(store).list_events("chat:kitchen"))
    assert "session_created" in kept
    assert kept.endswith("session_resumed backend_start backend_end task_end final")


def test_no_two_tenants_share_a_session() -> None:
    class Asked:
        user_message, history = "", ()

        def __init__(self, tenant: str, session: str) -> None:
            self.identity = ChatTurnIdentity(tenant, session, "ada", 0)

    asked = [Asked("", "@a/chat:b"), Asked("a", "b"), Asked("a/b", ""), Asked("", "b")]
    assert len({session_id_of(turn) for turn in asked}) == len(asked)
