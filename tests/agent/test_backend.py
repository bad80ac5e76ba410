"""A backend made of functions is these functions, and nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.agent.backend import (
    AgentBackendContext,
    AgentBackendInput,
    IterableBackend,
    create_iterable_backend,
)
from perdure.agent.cancel import CancelSignal
from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import (
    InMemoryRuntimeSessionStore,
    RuntimeSession,
    new_session,
    touched,
)
from perdure.agent.stream import run_agent_task_stream
from perdure.agent.stream_events import TextDeltaEvent
from perdure.core.records import AgentTaskSpec
from perdure.errors import ValidationError
from tests.agent.streaming import final_of, read

TASK = AgentTaskSpec("t-9", "Answer a policy question")


async def stream(
    input: AgentBackendInput, context: AgentBackendContext
) -> AsyncIterator[TextDeltaEvent]:
    yield TextDeltaEvent(text=f"{context.session.id}: {input.last_message}")


def test_9_2_functions_become_a_backend_and_nothing_is_added() -> None:
    def hook(*_: object) -> Any: ...

    backend = create_iterable_backend("mine", stream, start=hook, resume=hook, stop=hook)
    assert isinstance(backend, IterableBackend)
    assert (backend.kind, backend.stream) == ("mine", stream)
    assert (backend.start, backend.resume, backend.stop, backend.cancel) == (hook, hook, hook, None)
    bare = create_iterable_backend("mine", stream)
    assert (bare.start, bare.resume, bare.stop) == (None, None, None)
    with pytest.raises(ValidationError, match="kind"):
        create_iterable_backend("", stream)


@pytest.mark.parametrize("resumes", [False, True])
async def test_9_2_its_hooks_begin_and_resume_the_session(resumes: bool) -> None:
    async def start(input: AgentBackendInput, context: object) -> RuntimeSession:
        return new_session("mine", session_id="begun")

    def resume(session: RuntimeSession, *_: object) -> RuntimeSession:
        return new_session("mine", session_id=f"{session.id} again")

    store = InMemoryRuntimeSessionStore()
    await store.put(new_session("mine", session_id="known"))
    backend = create_iterable_backend("mine", stream, start=start, resume=resume)
    choice = SessionChoice(store, "known" if resumes else None, resume=resumes)
    final = final_of(await read(run_agent_task_stream(TASK, backend, session=choice)))
    name = "known again" if resumes else "begun"
    assert final.text == f"{name}: Answer a policy question"


async def test_9_1_a_backend_knows_task_knowledge_signal_and_the_session_that_is_wanted() -> None:
    contexts: list[Any] = []

    def start(input: AgentBackendInput, context: Any) -> RuntimeSession:
        contexts.append(context)
        return new_session("mine", session_id=context.requested_session_id)

    def resume(session: RuntimeSession, input: AgentBackendInput, context: Any) -> RuntimeSession:
        contexts.append(context)
        return touched(session, status="active")

    async def streamed(input: AgentBackendInput, context: Any) -> AsyncIterator[TextDeltaEvent]:
        contexts.append(context)
        yield TextDeltaEvent(text="a")

    task = TASK._replace(required_knowledge=[KnowledgeRequirement("k", "it", importance="low")])
    backend = create_iterable_backend("mine", streamed, start=start, resume=resume)
    store, signal = InMemoryRuntimeSessionStore(), CancelSignal()
    for resumes in (False, True):
        choice = SessionChoice(store, "wanted", resume=resumes)
        readiness = ReadinessPolicy(minimum_score=0)
        await read(
            run_agent_task_stream(task, backend, session=choice, signal=signal, readiness=readiness)
        )
    assert len(contexts) == 4
    for context in contexts:
        assert (context.task, context.requested_session_id) == (task, "wanted")
        assert context.signal is signal
        assert [gap.id for gap in context.knowledge.non_blocking_gaps] == ["k"]
    for context in contexts[1::2]:
        assert (context.session.id, context.session.status) == ("wanted", "active")
    reserved = ("run_id", "turn_id", "parent_turn_id")
    assert [getattr(contexts[0], name) for name in reserved] == [None] * 3
    assert contexts[0].propagated_headers == {}


async def test_9_1_without_hooks_a_session_has_the_wanted_id_and_goes_on_as_active() -> None:
    store = InMemoryRuntimeSessionStore()
    backend = create_iterable_backend("mine", stream)
    await read(run_agent_task_stream(TASK, backend, session=SessionChoice(store, "wanted")))
    ended = await store.get("wanted")
    assert ended is not None
    seen: list[RuntimeSession] = []

    async def streamed(input: AgentBackendInput, context: Any) -> AsyncIterator[TextDeltaEvent]:
        seen.append(context.session)
        yield TextDeltaEvent(text="a")

    again = create_iterable_backend("mine", streamed)
    choice = SessionChoice(store, "wanted", resume=True)
    await read(run_agent_task_stream(TASK, again, session=choice))
    [session] = seen
    assert (ended.status, session.status) == ("completed", "active")
    assert (session.id, session.created_at) == ("wanted", ended.created_at)
    assert session.updated_at >= ended.updated_at
