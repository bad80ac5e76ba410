"""A streamed task as the producer of durable turns: one table makes frames of its events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any, Final, Protocol

from perdure.agent.adapter import (
    AgentKnowledgeProvider,
    KnowledgeHooks,
    optional_method,
    resolve,
)
from perdure.agent.backend import AgentBackendInput, AgentExecutionBackend, check_backend
from perdure.agent.calls import Recording
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.session_life import SessionChoice
from perdure.agent.sessions import RuntimeSessionStore
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream import Events, stream_of
from perdure.agent.stream_events import RuntimeStreamEvent
from perdure.agent.tool_history import Asking, asked_in
from perdure.backends.joining import join
from perdure.core import frames, identity
from perdure.core.frames import Frame
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.durable.scope import may_begin_steps
from perdure.errors import BackendTransportError
from perdure.observe.sanitize import sanitize_event
from perdure.observe.telemetry import RuntimeTelemetryOptions, telemetry_client

logger = logging.getLogger("perdure.agent")

DATA_PREFIX: Final = "agent."
"""How the name of a `data` frame begins that tells an event of a task."""
BLOCKED_FINISH: Final = "blocked"
"""The finish reason of a turn whose task does not know enough to begin."""


class _Identity(Protocol):
    @property
    def tenant_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def user_id(self) -> str | None: ...


class _Partial(Protocol):
    @property
    def parts(self) -> Sequence[Mapping[str, JsonValue]]: ...


class _Addressed(Protocol):
    @property
    def identity(self) -> _Identity: ...


class TaskTurn(_Addressed, Recording, Asking, Protocol):
    """What this producer reads of a turn."""

    @property
    def idempotency_key(self) -> str: ...
    @property
    def partial(self) -> _Partial: ...
    @property
    def upstream(self) -> JsonValue: ...
    def save_handle(self, handle: JsonValue, /) -> Awaitable[None]: ...


class _Kept:
    """The handle of an answer that a turn keeps; `joined` is set once that answer is there."""

    def __init__(self, turn: TaskTurn, handle: JsonValue) -> None:
        self.handle = handle
        self.joined = asyncio.Event()
        self._turn = turn

    async def save(self, handle: JsonValue) -> None:
        if handle != self.handle:
            await self._turn.save_handle(handle)
        self.joined.set()


class FrameMaker:
    """Makes frames of the events of one stream; `options` say what leaves of those told as data."""

    def __init__(self, options: RuntimeTelemetryOptions) -> None:
        self._options = options
        self._numbers = count(1)
        self._calls: dict[str, str] = {}

    def frames(self, event: RuntimeStreamEvent) -> list[Frame]:
        """Return the frames that stand for the event, in order; mostly one, for some none."""
        return FRAMES[event.type](self, event)

    def told(self, event: Any) -> list[Frame]:
        value = sanitize_event(event, self._options)
        said = {name: each for name, each in value.items() if name not in ("type", "task")}
        return [frames.data(DATA_PREFIX + event.type, said)]

    def text(self, event: Any) -> list[Frame]:
        return [frames.text(event.text)]

    def reasoning(self, event: Any) -> list[Frame]:
        return [frames.reasoning(event.text)]

    def tool_call(self, event: Any) -> list[Frame]:
        call = event.tool_call_id or f"call-{next(self._numbers)}"
        self._calls[event.tool_name] = call
        return [frames.tool_call(call, event.tool_name, event.args)]

    def tool_result(self, event: Any) -> list[Frame]:
        """A result without an id belongs to the last call of its tool."""
        call = event.tool_call_id or self._calls.get(event.tool_name)
        return [frames.tool_result(call or f"call-{next(self._numbers)}", event.result)]

    def usage(self, event: Any) -> list[Frame]:
        return [
            frames.usage(
                model=event.model,
                tokens_in=event.tokens_in,
                tokens_out=event.tokens_out,
                tokens_cached=event.tokens_cached,
                tokens_reasoning=event.tokens_reasoning,
                provider=event.provider,
                request_id=event.request_id,
                tokens_cache_written=event.tokens_cache_written,
            )
        ]

    def final(self, event: Any) -> list[Frame]:
        """What has failed is raised by the stream, behind this."""
        if event.status == "blocked":
            return [*self.told(event), frames.upstream_end(BLOCKED_FINISH)]
        return [frames.upstream_end("stop")] if event.status == "completed" else []

    def nothing(self, event: Any) -> list[Frame]:
        return []


FRAMES: Final[Mapping[str, Callable[[FrameMaker, Any], list[Frame]]]] = {
    "task_start": FrameMaker.nothing,
    "readiness_start": FrameMaker.nothing,
    "readiness_end": FrameMaker.told,
    "questions_start": FrameMaker.told,
    "questions_end": FrameMaker.told,
    "acquisition_start": FrameMaker.told,
    "acquisition_end": FrameMaker.told,
    "session_created": FrameMaker.told,
    "session_resumed": FrameMaker.told,
    "backend_start": FrameMaker.nothing,
    "text_delta": FrameMaker.text,
    "reasoning_delta": FrameMaker.reasoning,
    "tool_call": FrameMaker.tool_call,
    "tool_result": FrameMaker.tool_result,
    "llm_call": FrameMaker.usage,
    "artifact": FrameMaker.told,
    "proposal_created": FrameMaker.told,
    "backend_error": FrameMaker.nothing,
    "backend_end": FrameMaker.nothing,
    "task_end": FrameMaker.nothing,
    "final": FrameMaker.final,
}
"""What becomes of each event in a turn."""


class AgentTaskProducer:
    """A producer that answers each turn by a streamed task (`ChatTurnEngine(produce=…)`).

    `task_of` makes the task of a turn; its backend gets the conversation with the user's message.
    All turns of a chat work in one session of the backend, kept in `sessions` (best a
    `DurableSessionStore` on the store of the turns): each begins it or resumes it, and so does an
    attempt after a crash. A `DurableSessionStore` keeps the session within the first turn of its
    chat, so that it is cleaned up and erased with the chat. Text, reasoning, tools and usage
    become frames of their own; the other events are `data` frames named `agent.<type>`, of which
    `telemetry` says what leaves. A blocked task ends its turn with the finish reason `blocked`; a
    failed one fails it with its error.

    What the provider says is asked once: it is recorded as steps of the turn, unless the producer
    is called in the body of another step. With `ReadinessPolicy(answers_event=…)` a human answers
    by an event of the turn's run, for days if need be, and nobody holds the turn meanwhile.

    An answer that goes on upstream, of a backend with `cancel`, is joined by the attempt after a
    crash: readers see no restart, and no model is asked a second time.
    """

    shows_attachments = False

    def __init__(
        self,
        backend: AgentExecutionBackend,
        *,
        task_of: Callable[[Any], AgentTaskSpec],
        sessions: RuntimeSessionStore,
        knowledge: AgentKnowledgeProvider | None = None,
        readiness: ReadinessPolicy | None = None,
        telemetry: RuntimeTelemetryOptions | None = None,
    ) -> None:
        check_backend(backend)
        self.provider = backend.kind
        self._backend = backend
        self._task_of = task_of
        self._sessions = sessions
        self._knowledge = KnowledgeHooks.of(knowledge)
        self._policy = readiness or ReadinessPolicy()
        self._telemetry = telemetry or telemetry_client()

    async def __call__(self, turn: TaskTurn) -> AsyncIterator[Frame]:
        maker = FrameMaker(self._telemetry)
        async with aclosing(self._events(turn, _Kept(turn, None))) as events:
            async for event in events:
                for frame in maker.frames(event):
                    yield frame

    async def attach(self, turn: TaskTurn) -> AsyncIterator[Frame] | None:
        """Join the answer upstream; None where the backend cannot, or has another answer."""
        if optional_method(self._backend, "cancel") is None:
            return None
        try:
            return await join(self._joined(turn), turn.partial.parts)
        except BackendTransportError as error:
            logger.info("the answer of a task cannot be joined again: %s", error)
            return None

    async def cancel(self, handle: JsonValue) -> None:
        """End the answer upstream that nobody waits for."""
        cancel = optional_method(self._backend, "cancel")
        if cancel is not None:
            await resolve(cancel(handle))

    def _events(self, turn: TaskTurn, kept: _Kept) -> Events:
        task = self._task_of(turn)
        way_out = "leave such chats to a producer that can, such as answer_with(attachment_part=…)"
        return stream_of(
            AgentBackendInput(
                task=task,
                message=turn.user_message,
                messages=tuple(asked_in(turn, way_out=way_out)),
                idempotency_key=turn.idempotency_key,
                upstream=kept,
            ),
            self._backend,
            knowledge=self._knowledge,
            session=SessionChoice(self._sessions_of(turn), session_id_of(turn), resume=True),
            policy=self._policy,
            raise_errors=True,
            recording=turn if self._asks_somebody and may_begin_steps() else None,
        )

    @property
    def _asks_somebody(self) -> bool:
        """Whether what a task knows comes from outside, and may be another thing next time."""
        return self._policy.answers_event is not None or self._knowledge != KnowledgeHooks()

    def _sessions_of(self, turn: TaskTurn) -> RuntimeSessionStore:
        """Return the store of the chat's session, which belongs to whom the chat belongs to."""
        sessions, chat = self._sessions, turn.identity
        if not isinstance(sessions, DurableSessionStore):
            return sessions
        first = identity.turn_run_id(chat.session_id, 0)
        return sessions.beside(
            first, tenant=chat.tenant_id, owner_id=chat.user_id, keeps_pieces=False
        )

    async def _joined(self, turn: TaskTurn) -> AsyncGenerator[Frame, None]:
        """Yield the answer that goes on upstream, from its beginning.

        What the task tells before its backend is asked is with the readers already.
        """
        kept, maker = _Kept(turn, turn.upstream), FrameMaker(self._telemetry)
        async with aclosing(self._events(turn, kept)) as events:
            async for event in events:
                if event.type == "backend_start":
                    break
            first = asyncio.ensure_future(_next(events))
            joined = asyncio.ensure_future(kept.joined.wait())
            try:
                # An answer that is still silent upstream is joined as well.
                await asyncio.wait((first, joined), return_when=asyncio.FIRST_COMPLETED)
                if kept.joined.is_set():
                    yield frames.upstream_begin(turn.upstream)
                following = await first
            finally:
                first.cancel()
                joined.cancel()
                await asyncio.gather(first, joined, return_exceptions=True)
            while following is not None:
                for frame in maker.frames(following):
                    yield frame
                following = await _next(events)


async def _next(events: Events) -> RuntimeStreamEvent | None:
    async for event in events:
        return event
    return None


def session_id_of(turn: _Addressed) -> str:
    """Return the id of the session in which the turns of a chat work; no two tenants share one."""
    return identity.stored_id(turn.identity.tenant_id, f"chat:{turn.identity.session_id}")
