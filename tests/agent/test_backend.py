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
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import InMemoryRuntimeSessionStore, RuntimeSession, new_session
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
