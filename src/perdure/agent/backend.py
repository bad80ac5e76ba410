"""What streams a task's work: the protocol of execution backends, and the plainest of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from perdure.agent.adapter import check_methods
from perdure.agent.cancel import CancelSignal
from perdure.agent.knowledge import KnowledgeReadinessReport
from perdure.agent.sessions import RuntimeSession
from perdure.agent.stream_events import BackendStreamEvent
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.errors import ValidationError


class UpstreamAnswer(Protocol):
    """Where the handle of an answer is kept that goes on upstream although nobody listens."""

    @property
    def handle(self) -> JsonValue:
        """The answer that is to be joined; None: a new one is to be asked for."""
        ...

    async def save(self, handle: JsonValue) -> None:
        """Keep the handle of the answer that has begun, or was joined, before any of it is told."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBackendInput:
    """What a backend is asked: a message, a whole conversation, or (neither) the task itself.

    `idempotency_key` is equal whenever the same is asked again after a crash. `upstream` is there
    where somebody will join an answer again that nobody listens to; without it such an answer is
    to be ended.
    """

    task: AgentTaskSpec
    message: str | None = None
    messages: tuple[Mapping[str, JsonValue], ...] = ()
    inputs: Mapping[str, JsonValue] | None = None
    idempotency_key: str | None = None
    upstream: UpstreamAnswer | None = None

    @property
    def last_message(self) -> str:
        """The message, else the text of the last one of the conversation, else the intent."""
        if self.message is not None:
            return self.message
        said = _text_of(self.messages[-1].get("content")) if self.messages else None
        return self.task.intent if said is None else said

    @property
    def conversation(self) -> tuple[Mapping[str, JsonValue], ...]:
        """The conversation, else the message or the task's intent as one of the user."""
        return self.messages or ({"role": "user", "content": self.last_message},)


def _text_of(content: JsonValue) -> str | None:
    """Return the text of a message's content, which may have parts; None if it has none."""
    if not isinstance(content, list | tuple):
        return content if isinstance(content, str) else None
    parts = cast("Sequence[object]", content)
    objects = [cast("Mapping[str, JsonValue]", each) for each in parts if isinstance(each, Mapping)]
    texts = [part.get("text") for part in objects]
    return "".join(each for each in texts if isinstance(each, str)) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStartContext:
    """What a backend knows when a session is to be begun or resumed.

    The ids and headers are those of the request that a task serves. They are reserved: a runner
    of your own may set them, and `run_agent_task_stream` leaves them empty.
    """

    task: AgentTaskSpec
    knowledge: KnowledgeReadinessReport
    signal: CancelSignal
    requested_session_id: str | None = None
    run_id: str | None = None
    turn_id: str | None = None
    parent_turn_id: str | None = None
    propagated_headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBackendContext(AgentStartContext):
    """What a backend knows when it streams."""

    session: RuntimeSession


class AgentExecutionBackend(Protocol):
    """Who does the work of a streamed task. Its methods may also be, plain or async,

    - `start(input, context)` -> the RuntimeSession that is begun (else a new one of this kind)
    - `resume(session, input, context)` -> the session as it goes on (else active again)
    - `stop(session, reason)`: clean up after a failure, or because nobody listens any more
    - `cancel(handle)`: end an answer that goes on upstream. A backend that has it saves the handle
      of its answer in `input.upstream`, if there is one, and joins the answer that stands there,
      telling it from its beginning: it never asks anew instead
    """

    @property
    def kind(self) -> str:
        """The identity by which sessions are matched with their backend."""
        ...

    def stream(
        self, input: AgentBackendInput, context: AgentBackendContext, /
    ) -> AsyncIterator[BackendStreamEvent]:
        """Yield what happens. To raise is to fail; the signal of the context asks to end early."""
        ...


class IterableBackend:
    """A backend made of functions: `stream` is any that returns an async iterator of events."""

    def __init__(
        self,
        kind: str,
        stream: Callable[
            [AgentBackendInput, AgentBackendContext], AsyncIterator[BackendStreamEvent]
        ],
        *,
        start: Callable[[AgentBackendInput, AgentStartContext], Any] | None = None,
        resume: Callable[[RuntimeSession, AgentBackendInput, AgentStartContext], Any] | None = None,
        stop: Callable[[RuntimeSession, str], Any] | None = None,
        cancel: Callable[[JsonValue], Any] | None = None,
    ) -> None:
        if not kind:
            raise ValidationError("the kind of a backend must not be empty")
        self.kind = kind
        self.stream = stream
        self.start = start
        self.resume = resume
        self.stop = stop
        self.cancel = cancel


create_iterable_backend = IterableBackend


def check_backend(backend: AgentExecutionBackend) -> None:
    """Raise ValidationError for what cannot do a streamed task, a model for instance."""
    check_methods(backend, "AgentExecutionBackend", ("stream",))
    if not isinstance(cast("object", getattr(backend, "kind", None)), str):
        raise ValidationError(
            f"the backend {type(backend).__qualname__!r:.60} has no kind, a text: "
            "`ModelBackend(…)` makes a backend of tasks of a model"
        )
