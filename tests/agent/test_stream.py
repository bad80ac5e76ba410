"""A streamed task keeps to its grammar, from the first event to the final one."""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

import pytest

from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.session_life import RESUME_MISSED, SessionChoice
from perdure.agent.sessions import (
    InMemoryRuntimeSessionStore,
    RuntimeSession,
    new_session,
)
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream import COMPLETED, run_agent_task_stream
from perdure.agent.stream_events import (
    ArtifactEvent,
    LlmCallEvent,
    ReadinessEndEvent,
    RuntimeStreamEvent,
    ToolCallEvent,
    ToolResultEvent,
    event_to_wire,
)
from perdure.agent.task import run_agent_task
from perdure.core.effects import iso_time
from perdure.core.records import AgentTaskSpec
from perdure.errors import (
    SessionBusyError,
    SessionMismatchError,
)
from perdure.observe.trace import create_trace_bridge
from perdure.store.memory import MemoryStore
from tests.agent.robots import Climber, Librarian
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


def needing(*requirements: KnowledgeRequirement) -> AgentTaskSpec:
    return TASK._replace(required_knowledge=requirements)


async def test_7_3_r10_a_ready_task_ends_completed_with_the_whole_text() -> None:
    events = await read(run_agent_task_stream(TASK, Played(*said("Ye", "s."))))
    assert types(events) == f"{BEGUN} text_delta text_delta backend_end task_end final"
    final = final_of(events)
    assert (final.status, final.reason, final.text) == ("completed", COMPLETED, "Yes.")
    assert COMPLETED == "backend completed"
    assert final.session is not None
    assert final.session.status == "completed"


async def test_7_3_r10_without_text_the_final_event_has_none() -> None:
    assert final_of(await read(run_agent_task_stream(TASK, Played()))).text is None


async def test_7_3_r5_a_blocked_task_never_touches_session_or_backend() -> None:
    backend, store = Played(*said("no")), InMemoryRuntimeSessionStore()
    choice = SessionChoice(store, "s-1")
    events = await read(run_agent_task_stream(needing(COLOUR), backend, session=choice))
    assert types(events) == f"{READY} task_end final"
    final = final_of(events)
    assert final.status == "blocked"
    assert final.reason.startswith("knowledge readiness blocked: ")
    assert (final.session, final.text, backend.inputs) == (None, None, [])
    assert await store.get("s-1") is None


async def test_7_3_r6_a_caveat_goes_on_and_is_seen_unless_the_policy_blocks_it() -> None:
    events = await read(run_agent_task_stream(needing(WIND), Played()))
    [end] = [event for event in events if isinstance(event, ReadinessEndEvent)]
    assert (end.decision.status, final_of(events).status) == ("caveat", "completed")
    policy = ReadinessPolicy(on_caveat="block")
    events = await read(run_agent_task_stream(needing(WIND), Played(), readiness=policy))
    assert final_of(events).status == "blocked"


async def test_7_3_r3_r4_answers_lead_to_a_second_start_and_one_report() -> None:
    class Answering:
        answer_questions = Librarian().answer_questions

    stream = run_agent_task_stream(needing(COLOUR), Played(), knowledge=Answering())
    events = await read(stream)
    assert types(events) == (
        "task_start readiness_start questions_start questions_end readiness_start readiness_end "
        "session_created backend_start backend_end task_end final"
    )


async def test_7_3_r2_bb_9_questions_are_told_while_the_user_is_asked() -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    class Slow:
        async def answer_questions(self, questions: Any, task: AgentTaskSpec) -> dict[str, str]:
            asked.set()
            await answered.wait()
            return {question.id: "blue" for question in questions}

    stream = run_agent_task_stream(needing(COLOUR), Played(), knowledge=Slow())
    seen = [await anext(stream) for _ in range(3)]
    assert types(seen) == "task_start readiness_start questions_start"
    answered.set()
    assert final_of([*seen, *await read(stream)]).status == "completed"
    assert asked.is_set()


async def test_7_3_r7_a_session_is_resumed_only_if_wanted_and_found() -> None:
    store = InMemoryRuntimeSessionStore()
    choice = SessionChoice(store, "s-1", resume=True)
    first = await read(run_agent_task_stream(TASK, Played(), session=choice))
    assert types(first).startswith(f"{READY} session_created")
    session = final_of(first).session
    assert session is not None
    assert session.metadata == {RESUME_MISSED: True}
    second = await read(run_agent_task_stream(TASK, Played(), session=choice))
    assert types(second).startswith(f"{READY} session_resumed backend_start")
    third = await read(
        run_agent_task_stream(
            TASK, Played(), session=SessionChoice(store, "s-1", on_existing="replace")
        )
    )
    assert types(third).startswith(f"{READY} session_created")


async def test_7_3_r7_another_kind_of_backend_cannot_resume() -> None:
    store = InMemoryRuntimeSessionStore()
    await store.put(new_session("other", session_id="s-1"))
    choice = SessionChoice(store, "s-1", resume=True)
    stream = run_agent_task_stream(TASK, Played(), session=choice, raise_errors=True)
    events: list[Any] = []
    with pytest.raises(SessionMismatchError) as caught:
        await read(stream, events)
    assert types(events) == f"{READY} task_end final"
    assert (caught.value.session_backend, caught.value.requested_backend) == ("other", "played")


async def test_bb_10_an_id_that_is_taken_is_refused() -> None:
    store = InMemoryRuntimeSessionStore()
    kept = new_session("played", session_id="s-1")
    await store.put(kept)
    events = await read(run_agent_task_stream(TASK, Played(), session=SessionChoice(store, "s-1")))
    assert final_of(events).status == "failed"
    assert "already" in final_of(events).reason
    assert await store.get("s-1") == kept


async def test_bb_10_of_two_who_resume_a_session_at_once_one_is_refused() -> None:
    store = InMemoryRuntimeSessionStore()
    await store.put(new_session("played", session_id="s-1"))
    both_in = asyncio.Barrier(2)

    async def resume(session: RuntimeSession, *_: Any) -> RuntimeSession:
        await both_in.wait()
        return new_session("played", session_id=session.id, metadata={"by": str(id(_))})

    choice = SessionChoice(store, "s-1", resume=True)
    both = await asyncio.gather(
        *(
            read(run_agent_task_stream(TASK, Played(resume=resume), session=choice))
            for _ in range(2)
        )
    )
    finals = sorted((final_of(events) for events in both), key=lambda final: final.status)
    assert [final.status for final in finals] == ["completed", "failed"]
    assert "somebody else" in finals[1].reason
    assert SessionBusyError.retryable


async def test_7_3_r8_every_event_from_the_session_on_is_stored_before_it_is_told() -> None:
    store = InMemoryRuntimeSessionStore()
    told: list[Any] = []
    choice = SessionChoice(store, "s-1")
    async for event in run_agent_task_stream(TASK, Played(*said("a")), session=choice):
        told.append(event)
        kept = await store.list_events("s-1")
        assert list(kept) == told[3:]


async def test_7_3_r9_only_what_is_missing_is_filled_in() -> None:
    own = ToolCallEvent(tool_name="look", timestamp="2026-05-10T00:00:00.000Z")
    events = await read(run_agent_task_stream(TASK, Played(own)))
    [told] = [event for event in events if event.type == "tool_call"]
    assert (told.timestamp, told.task) == (own.timestamp, TASK)
    assert told.session is not None
    assert told.session.status == "active"


async def test_7_3_r9_a_bare_event_gets_task_session_and_time_and_a_whole_one_nothing() -> None:
    moment_ms = 1_778_371_200_000
    policy = ReadinessPolicy(clock=lambda: moment_ms)
    bare = ToolCallEvent(tool_name="look")
    whole = ToolCallEvent(
        tool_name="see",
        task=TASK._replace(intent="Another"),
        session=new_session("other"),
        timestamp="2020-01-01T00:00:00.000Z",
    )
    events = await read(run_agent_task_stream(TASK, Played(bare, whole), readiness=policy))
    filled, passed = [event for event in events if event.type == "tool_call"]
    assert (filled.task, filled.timestamp) == (TASK, iso_time(moment_ms))
    final = final_of(events)
    assert final.session is not None
    assert filled.session.id == final.session.id
    assert passed is whole


async def test_1_2_r5_a_clock_dates_what_happens_and_says_what_is_stale() -> None:
    fresh = KnowledgeRequirement(
        "wind",
        "the wind",
        current_confidence=1,
        fallback_policy="block",
        valid_until="2026-05-10T00:00:00.000Z",
    )
    task = TASK._replace(required_knowledge=[fresh])
    before_ms = 1_778_371_199_999
    policy = ReadinessPolicy(clock=lambda: before_ms)
    late_policy = ReadinessPolicy(clock=lambda: before_ms + 1)
    events = await read(run_agent_task_stream(task, Played(*said("a")), readiness=policy))
    assert {event.timestamp for event in events} == {"2026-05-09T23:59:59.999Z"}
    session = final_of(events).session
    assert session is not None
    assert session.created_at == session.updated_at == "2026-05-09T23:59:59.999Z"
    late = await read(run_agent_task_stream(task, Played(), readiness=late_policy))
    assert final_of(late).status == "blocked"
    done = await run_agent_task(task, Climber(), readiness=policy)
    assert (done.status, done.control.steps[0].started_at) == (
        "completed",
        "2026-05-09T23:59:59.999Z",
    )
    stale = await run_agent_task(task, Climber(), readiness=late_policy)
    assert stale.status == "blocked"


MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")


async def test_1_2_r4_moments_are_texts_in_utc_and_those_of_a_trace_are_milliseconds() -> None:
    events = await read(run_agent_task_stream(needing(WIND), Played(*said("Yes."))))
    told = [event_to_wire(event) for event in events]
    assert all(MOMENT.fullmatch(str(each["timestamp"])) for each in told)
    [session] = [each["session"] for each in told if each["type"] == "session_created"]
    assert MOMENT.fullmatch(session["createdAt"])
    traced = list(create_trace_bridge(run_id="r").drain(events))
    moments = [event_to_wire(each)["timestamp"] for each in events if each.type != "text_delta"]
    assert [type(each.timestamp) for each in traced] == [int] * len(moments)
    assert [iso_time(each.timestamp) for each in traced] == moments


async def test_7_3_r1_the_task_is_told_before_anybody_is_asked() -> None:
    asked = asyncio.Event()

    class Silent:
        async def build_readiness(self, task: AgentTaskSpec) -> Any:
            asked.set()
            await asyncio.Event().wait()

    stream = run_agent_task_stream(TASK, Played(), knowledge=Silent())
    assert [(await anext(stream)).type for _ in range(2)] == ["task_start", "readiness_start"]
    assert not asked.is_set()
    await stream.aclose()


@pytest.mark.parametrize(
    ("event", "place"),
    [
        (ToolCallEvent(tool_name="look", args={"at": {1, 2}}), "tool_call.args.at"),
        (ToolCallEvent(tool_name="look", args={"at": float("nan")}), "tool_call.args.at"),
        (ToolResultEvent(tool_name="look", result=object()), "tool_result.result"),
        (LlmCallEvent(model="m", cost_usd=float("nan")), "llm_call.costUsd"),
        (LlmCallEvent(model="m", tokens_in=cast("Any", "9")), "LlmCallEvent.tokensIn"),
        (ArtifactEvent(artifact_id="a", metadata={"when": float("inf")}), "artifact.metadata"),
    ],
)
@pytest.mark.parametrize("kind", ["none", "memory", "durable"])
async def test_8_r4_what_cannot_be_written_down_is_a_failure_of_the_backend_on_every_store(
    kind: str, event: RuntimeStreamEvent, place: str
) -> None:
    stores: dict[str, Any] = {
        "none": None,
        "memory": InMemoryRuntimeSessionStore(),
        "durable": DurableSessionStore(MemoryStore()),
    }
    store, backend = stores[kind], Played(*said("a"), event)
    events = await read(run_agent_task_stream(TASK, backend, session=SessionChoice(store, "s-1")))
    assert types(events) == f"{BEGUN} text_delta {FAILED}"
    assert place in final_of(events).reason
    assert "'played'" in final_of(events).reason
