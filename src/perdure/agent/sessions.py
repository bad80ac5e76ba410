"""Sessions of streamed tasks: the record, what a store of them does, and the store in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar, cast, runtime_checkable

from perdure.core.effects import Clock, iso_time, new_uuid, system_clock
from perdure.core.records import JsonValue
from perdure.core.secret import REDACTED, Secret
from perdure.core.wire import from_wire, to_wire
from perdure.errors import ValidationError

if TYPE_CHECKING:
    from perdure.agent.stream_events import RuntimeStreamEvent, UnknownEvent

R = TypeVar("R")

SessionStatus = Literal["active", "completed", "failed", "aborted"]


@dataclass(frozen=True, slots=True)
class RuntimeSession:
    """One session of a backend, which `backend` (its kind) names.

    `resume_token` is what the backend needs to resume it; a text becomes a Secret, and one that
    was redacted on its way is none. Times are ISO-8601 texts.
    """

    id: str
    backend: str
    status: SessionStatus
    created_at: str
    updated_at: str
    resume_token: str | Secret | None = None
    metadata: Mapping[str, JsonValue] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.resume_token, str):
            token = None if self.resume_token == REDACTED else Secret(self.resume_token)
            object.__setattr__(self, "resume_token", token)


def new_session(
    backend: str,
    *,
    session_id: str | None = None,
    resume_token: str | Secret | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    clock: Clock = system_clock,
) -> RuntimeSession:
    """Return an active session of this backend; without an id it gets a random one."""
    now = iso_time(clock())
    return RuntimeSession(
        session_id or new_uuid(), backend, "active", now, now, resume_token, metadata
    )


def touched(
    session: RuntimeSession, *, status: SessionStatus | None = None, clock: Clock = system_clock
) -> RuntimeSession:
    """Return the session as of now, with another status if one is given."""
    return replace(session, status=status or session.status, updated_at=iso_time(clock()))


def session_to_stored(session: RuntimeSession) -> dict[str, JsonValue]:
    """Return the session as plain JSON for a store: with its resume token, in the open."""
    stored = cast("dict[str, JsonValue]", to_wire(session))
    if isinstance(session.resume_token, Secret):
        stored["resumeToken"] = session.resume_token.reveal()
    return stored


def session_from_stored(stored: JsonValue) -> RuntimeSession:
    """Return the session that `session_to_stored` made plain JSON of. Raises UsageError."""
    return from_wire(RuntimeSession, stored)


class RuntimeSessionStore(Protocol):
    """Keeps sessions. One that keeps events too is an `EventKeepingSessionStore`.

    Nothing that was handed in or out changes what is kept.
    """

    async def get(self, session_id: str) -> RuntimeSession | None:
        """Return the session, or None."""
        ...

    async def put(self, session: RuntimeSession) -> None:
        """Keep the session, in place of what was kept under its id."""
        ...


class EventKeepingSessionStore(RuntimeSessionStore, Protocol):
    """Keeps sessions, and the events of each in the order in which they were appended."""

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        """Keep an event; it must be there when this returns."""
        ...

    async def list_events(self, session_id: str) -> Sequence[RuntimeStreamEvent | UnknownEvent]:
        """Return the events that are kept, oldest first; none for an unknown id.

        What a store that writes them out cannot read back as their type is an UnknownEvent.
        """
        ...


@runtime_checkable
class ComparingSessionStore(Protocol):
    """A session store that settles races: of two who begin or resume a session one wins."""

    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        """Keep the session if `expected` (None: nothing) is kept under its id; return whether."""
        ...


class InMemoryRuntimeSessionStore:
    """Keeps sessions and their events, as they were when they came, while this object lives.

    `sessions_max` and `events_max` (of each session) bound what is kept: the oldest goes first,
    and with a session its events, those to come included. Raises ValidationError for a bound
    that is not an int from 1.
    """

    def __init__(self, *, sessions_max: int | None = None, events_max: int | None = None) -> None:
        for name, most in (("sessions_max", sessions_max), ("events_max", events_max)):
            if most is not None and (type(most) is not int or most < 1):
                raise ValidationError(f"{name} must be an int from 1, or None, not {most!r:.40}")
        self._sessions: OrderedDict[str, RuntimeSession] = OrderedDict()
        self._events: dict[str, list[RuntimeStreamEvent]] = {}
        self._sessions_max = sessions_max
        self._events_max = events_max

    async def get(self, session_id: str) -> RuntimeSession | None:
        session = self._sessions.get(session_id)
        return None if session is None else _own(session)

    async def put(self, session: RuntimeSession) -> None:
        self._sessions[session.id] = _own(session)
        while self._sessions_max is not None and len(self._sessions) > self._sessions_max:
            oldest, _ = self._sessions.popitem(last=False)
            self._events.pop(oldest, None)

    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        if self._sessions.get(session.id) != expected:
            return False
        await self.put(session)
        return True

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        if self._sessions_max is not None and session_id not in self._sessions:
            return
        events = self._events.setdefault(session_id, [])
        events.append(_own(event))
        if self._events_max is not None:
            del events[: -self._events_max]

    async def list_events(self, session_id: str) -> Sequence[RuntimeStreamEvent]:
        return [_own(event) for event in self._events.get(session_id, ())]


_VALUES: Final = ("metadata", "args", "result", "content")
"""The fields of sessions and events that hold values which whoever made them may change later."""


def _own(record: R) -> R:
    """Return the record with values of its own."""
    values = {
        name: _copied(value)
        for name in _VALUES
        if isinstance(value := getattr(record, name, None), Mapping | list)
    }
    return replace(cast("Any", record), **values) if values else record


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, Any]", value)
        return {key: _copied(item) for key, item in entries.items()}
    if isinstance(value, list):
        return [_copied(item) for item in cast("list[object]", value)]
    return value
