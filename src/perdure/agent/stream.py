"""run_agent_task_stream: one task, gated by what it knows, streamed by a backend, to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from typing import Any, Final, cast

from perdure.agent.adapter import AgentKnowledgeProvider, KnowledgeHooks
from perdure.agent.backend import (
    AgentBackendContext,
    AgentBackendInput,
    AgentExecutionBackend,
    AgentStartContext,
    check_backend,
)
from perdure.agent.calls import Calls, CutShort, Recording
from perdure.agent.cancel import CancelSignal
from perdure.agent.events import AgentTaskStatus
from perdure.agent.preflight import Preflight, ReadinessPolicy
from perdure.agent.pumping import pumped
from perdure.agent.session_life import SessionChoice, SessionLife
from perdure.agent.spec import check_task, requirements_of
from perdure.agent.stream_events import (
    BACKEND_EVENTS,
    STREAM_EVENTS,
    BackendEndEvent,
    BackendErrorEvent,
    BackendStartEvent,
    BackendStreamEvent,
    FinalEvent,
    ReadinessEndEvent,
    RuntimeStreamEvent,
    SessionCreatedEvent,
    SessionResumedEvent,
    StreamError,
    TaskEndEvent,
    TaskStartEvent,
    TextDeltaEvent,
    fault_of,
)
from perdure.agent.task import BLOCKED_PREFIX
from perdure.core.effects import iso_time
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.core.wording import cut_body, error_text
from perdure.errors import (
    AgentRuntimeError,
    BackendTransportError,
    PerdureError,
    ValidationError,
)

COMPLETED: Final = "backend completed"
"""The reason of a task that a backend has done."""
STORE_ERROR: Final = "store_error"
"""The key in the metadata of `final` that says: the end of the session could not be stored."""

Events = AsyncGenerator[RuntimeStreamEvent, None]


def run_agent_task_stream(
    task: AgentTaskSpec,
    backend: AgentExecutionBackend,
    *,
    input: AgentBackendInput | None = None,
    knowledge: AgentKnowledgeProvider | None = None,
    session: SessionChoice | None = None,
    signal: CancelSignal | None = None,
    readiness: ReadinessPolicy | None = None,
    raise_errors: bool = False,
) -> Events:
    """Yield the events of `task`, streamed by `backend` once what it needs to know is known.

    The first event is `task_start`. The last one is `final`, and there is exactly one, whatever
    fails: a provider, a store, the backend. With `raise_errors` what failed is raised behind it.
    From the session on each event is stored before it is yielded. When `signal` fires the task
    ends as `aborted`, also if the backend hangs: in its start, its stream or its stop. Closing
    the generator ends the session as `aborted` in the store, and so does cancelling its reader.

    Raises ValidationError, at once, for a bad task, backend or input.
    """
    asked = AgentBackendInput(task=task) if input is None else input
    if not isinstance(cast("object", asked), AgentBackendInput):
        raise ValidationError(f"input must be an AgentBackendInput, not {input!r:.60}")
    return stream_of(
        replace(asked, task=task),
        backend,
        knowledge=KnowledgeHooks.of(knowledge),
        session=session or SessionChoice(),
        signal=signal,
        policy=readiness or ReadinessPolicy(),
        raise_errors=raise_errors,
    )


def stream_of(
    input: AgentBackendInput,
    backend: AgentExecutionBackend,
    *,
    knowledge: KnowledgeHooks,
    session: SessionChoice,
    policy: ReadinessPolicy,
    signal: CancelSignal | None = None,
    raise_errors: bool = False,
    recording: Recording | None = None,
) -> Events:
    """Stream a task as `run_agent_task_stream` does.

    With a `recording` what the provider answers, and what is waited for, are steps of it: asked
    once, and the same in every attempt. The session and the backend are each attempt's own.
    """
    task = input.task
    check_task(task)
    requirements_of(task)
    check_backend(backend)
    calls = Calls(None, signal, clock=policy.clock)
    recorded = Calls(None, calls.signal, recording=recording, clock=policy.clock)
    return _TaskStream(
        input,
        backend,
        calls=calls,
        preflight=Preflight(task, knowledge, policy, recorded),
        life=SessionLife(backend, session, clock=policy.clock),
        raise_errors=raise_errors,
    ).events()


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a stream ends: what it says, and what is raised behind it if that is wanted."""

    status: AgentTaskStatus
    reason: str
    error: StreamError | None = None
    raised: Exception | None = None


class _TaskStream:
    """One stream of a task: the order of its events, and what is known of it so far."""

    def __init__(
        self,
        input: AgentBackendInput,
        backend: AgentExecutionBackend,
        *,
        calls: Calls,
        preflight: Preflight,
        life: SessionLife,
        raise_errors: bool,
    ) -> None:
        self._input = input
        self._task = input.task
        self._backend = backend
        self._calls = calls
        self._preflight = preflight
        self._life = life
        self._raise_errors = raise_errors
        self._texts: list[str] = []
        self._ending: _Ending | None = None
        self._is_told = False

    async def events(self) -> Events:
        """Yield everything; clean up if nobody listens to the end."""
        try:
            async with aclosing(self._course()) as course:
                async for event in course:
                    yield event
        except (GeneratorExit, asyncio.CancelledError):
            await self._abandon()
            raise
        if self._raise_errors and self._ending is not None and self._ending.raised is not None:
            raise self._ending.raised

    async def _course(self) -> Events:
        yield TaskStartEvent(**self._common())
        for phase in (self._ready, self._opened, self._streamed):
            async with aclosing(phase()) as events:
                async for event in events:
                    yield event
            if self._ending is not None:
                break
        ending = self._ending
        assert ending is not None
        life = self._life
        yield await life.told_last(
            TaskEndEvent(**self._common(), status=ending.status, reason=ending.reason)
        )
        final = await life.told_last(self._final(ending))
        self._is_told = True
        yield final

    # The phases: each ends the stream by setting the ending.

    async def _ready(self) -> Events:
        """Find out whether the task may go on; tell only the report that decides."""
        preflight = self._preflight
        last: ReadinessEndEvent | None = None
        try:
            async with aclosing(preflight.run()) as events:
                async for event in events:
                    told = self._of_preflight(event)
                    if isinstance(told, ReadinessEndEvent):
                        last = told
                    else:
                        yield told
        except CutShort:
            self._ending = self._aborted()
            return
        except Exception as error:
            self._ending = _failed("readiness", error)
            return
        assert last is not None
        yield last
        if preflight.is_blocked:
            self._ending = _Ending("blocked", f"{BLOCKED_PREFIX}{preflight.decision.reason}")
        elif self._signal.cancelled:
            self._ending = self._aborted()

    async def _opened(self) -> Events:
        """Begin or resume the session; the event of it is the first that is stored."""
        life, context = self._life, AgentStartContext(**self._of_context())
        opening = await self._calls.call("session", lambda: life.open(self._input, context))
        if opening.cut is not None:
            self._ending = self._aborted()
        elif isinstance(opening.error, Exception):
            self._ending = _failed("session", opening.error)
        if (ending := self._ending) is not None:
            is_aborted = ending.status == "aborted"
            await life.give_up("aborted" if is_aborted else "failed", ending.reason)
            return
        kind = SessionResumedEvent if life.resumed else SessionCreatedEvent
        try:
            event = await life.told(kind(**self._in_session()))
        except Exception as error:
            self._ending = _failed("session", error)
            await life.end_anyway("failed")
            await life.stop_backend(self._ending.reason)
            return
        yield event

    async def _streamed(self) -> Events:
        """Let the backend speak, and end the session as it ended."""
        life, kind = self._life, self._backend.kind
        try:
            yield await life.told(BackendStartEvent(**self._in_session(), backend=kind))
            async with aclosing(pumped(self._iterate, self._signal)) as events:
                async for event in events:
                    yield await self._told(event)
            await self._calls.value("end", lambda: life.end("completed"))
            told = await life.told(BackendEndEvent(**self._in_session(), backend=kind))
            self._ending = _Ending("completed", COMPLETED)
            yield told
        except CutShort:
            self._ending = self._aborted()
        except Exception as error:
            self._ending = self._aborted() if self._signal.cancelled else _failed("backend", error)
        if self._ending.status != "completed":
            yield await self._backend_failed(self._ending)

    async def _backend_failed(self, ending: _Ending) -> BackendErrorEvent:
        life = self._life
        await life.end_anyway("aborted" if ending.status == "aborted" else "failed")
        message = ending.reason
        if (also := await life.stop_backend(message)) is not None:
            message = f"{message} (and it could not be stopped: {also})"
        return await life.told_last(
            BackendErrorEvent(
                **self._common(),
                session=life.session,
                backend=self._backend.kind,
                message=message,
                recoverable=ending.status != "aborted" and _may_pass(ending.raised),
                error=ending.error,
            )
        )

    def _iterate(self) -> Any:
        session = self._life.session
        assert session is not None
        context = AgentBackendContext(**self._of_context(), session=session)
        return self._backend.stream(self._input, context)

    async def _told(self, event: object) -> BackendStreamEvent:
        """Fill in what a backend left out of its event, and store it."""
        if not isinstance(event, BACKEND_EVENTS):
            named = getattr(event, "type", None) or type(event).__qualname__
            raise AgentRuntimeError(
                f"the backend {self._backend.kind!r} yielded {named!r:.60}, which only the "
                "runtime may tell"
                if named in STREAM_EVENTS
                else f"the backend {self._backend.kind!r} yielded {named!r:.60}, which is no event"
            )
        told = cast("BackendStreamEvent", event)
        if (fault := fault_of(told)) is not None:
            raise AgentRuntimeError(
                f"the backend {self._backend.kind!r} yielded a {told.type} {fault}"
            )
        missing = {
            name: value for name, value in self._in_session().items() if getattr(told, name) is None
        }
        told = replace(told, **missing) if missing else told
        await self._life.told(told)
        if isinstance(told, TextDeltaEvent):
            self._texts.append(told.text)
        return told

    async def _abandon(self) -> None:
        """End the session in the store, since nobody will read that it ended."""
        life, ending = self._life, self._ending
        if self._is_told:
            return
        if ending is None:
            ending = _Ending("aborted", "nobody listens any more")
            if life.session is None:
                await life.give_up("aborted", ending.reason)
            else:
                await life.end_anyway("aborted")
                await life.stop_backend(ending.reason)
        await life.told_last(self._final(ending))

    # What events are made of.

    @property
    def _signal(self) -> CancelSignal:
        return self._calls.signal

    def _aborted(self) -> _Ending:
        why = self._signal.reason
        return _Ending(
            "aborted", f"the task was cancelled: {why}" if why else "the task was cancelled"
        )

    def _common(self) -> dict[str, Any]:
        return {"task": self._task, "timestamp": iso_time(self._calls.clock())}

    def _in_session(self) -> dict[str, Any]:
        return {**self._common(), "session": self._life.session}

    def _of_context(self) -> dict[str, Any]:
        return {
            "task": self._task,
            "knowledge": self._preflight.report,
            "signal": self._signal,
            "requested_session_id": self._life.wanted_id,
        }

    def _of_preflight(self, event: Any) -> RuntimeStreamEvent:
        """Return an event of the preflight as this stream tells it."""
        kind = STREAM_EVENTS[event.type]
        said = {field.name: getattr(event, field.name) for field in fields(event)}
        return cast("RuntimeStreamEvent", kind(**{**said, **self._common()}))

    def _final(self, ending: _Ending) -> FinalEvent:
        store_error = self._life.store_error
        metadata: Mapping[str, JsonValue] | None = (
            None if store_error is None else {STORE_ERROR: store_error}
        )
        return FinalEvent(
            **self._in_session(),
            status=ending.status,
            reason=ending.reason,
            text="".join(self._texts) or None,
            error=ending.error,
            metadata=metadata,
        )


def _failed(kind: Any, error: Exception) -> _Ending:
    reason = error_text(error)
    if isinstance(error, BackendTransportError):
        told = StreamError(
            kind="transport",
            message=reason,
            status=error.status,
            body=cut_body(error.body) or None,
        )
    else:
        told = StreamError(kind=kind, message=reason)
    return _Ending("failed", reason, told, error)


def _may_pass(error: Exception | None) -> bool:
    """Return whether the same may succeed later; what is not known to be final may."""
    return error.retryable if isinstance(error, PerdureError) else True
