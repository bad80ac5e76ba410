"""What a backend does with its sessions: each is its own, is resumed as itself, and answers."""

from __future__ import annotations

from perdure.agent.backend import AgentExecutionBackend
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import InMemoryRuntimeSessionStore
from perdure.testing.asking import (
    HELLO,
    TASK,
    WHOLE,
    awaited,
    begun,
    grammatical,
    session_of,
    start_context,
    told,
)
from perdure.testing.backend_lab import BackendLab
from perdure.testing.conforming import in_time
from perdure.testing.lab import check, same


async def a_session_is_of_its_backend(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        session = await begun(backend)
        same((session.backend, session.status), (backend.kind, "active"), "a new session")
        check(session.id, "a session has an id")


async def two_sessions_are_two(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        first, second = await begun(backend), await begun(backend)
        check(first.id != second.id, f"two sessions have the id {first.id!r}")


async def an_event_is_of_the_session_that_it_is_told_in(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        for _ in range(2):
            events = await told(backend)
            session = session_of(events)
            for event in events:
                same(event.task.id, TASK.id, f"the task of {event.type}")
                if (of := getattr(event, "session", None)) is not None:
                    same(of.id, session.id, f"the session of {event.type}")


async def a_session_is_resumed_as_itself(lab: BackendLab) -> None:
    async with lab.backend() as backend:
        session = await begun(backend)
        resume = getattr(backend, "resume", None)
        if resume is None:
            return
        resuming = awaited(resume(session, HELLO, start_context()))
        resumed = await in_time(resuming, "to resume a session")
        found = (resumed.id, resumed.backend, resumed.status, resumed.created_at)
        expected = (session.id, backend.kind, "active", session.created_at)
        same(found, expected, "id, kind, status and begin of the session that was resumed")
        kept = session.resume_token is None or resumed.resume_token is not None
        check(kept, "the session has lost its resume token: it cannot be resumed once more")


async def a_resumed_session_answers(lab: BackendLab) -> None:
    store = InMemoryRuntimeSessionStore()
    async with lab.backend() as backend:
        id = session_of(await told(backend, session=SessionChoice(store))).id
    for _ in range(2):
        async with lab.backend() as backend:
            await _answers(backend, SessionChoice(store, id, resume=True))


async def a_session_that_failed_is_resumed_and_answers(lab: BackendLab) -> None:
    store = InMemoryRuntimeSessionStore()
    async with lab.backend("fails") as backend:
        session = session_of(await told(backend, session=SessionChoice(store)))
        same(session.status, "failed", "the status of the session of a failure")
    async with lab.backend() as backend:
        await _answers(backend, SessionChoice(store, session.id, resume=True))


async def _answers(backend: AgentExecutionBackend, resuming: SessionChoice) -> None:
    events = await told(backend, session=resuming)
    grammatical(events, WHOLE)
    check("session_resumed" in [event.type for event in events], "it was begun anew")
