"""The life of one session within a stream: begun or resumed, told event by event, and ended."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar, cast, get_args

from perdure.agent.adapter import optional_method, resolve
from perdure.agent.backend import (
    AgentBackendInput,
    AgentExecutionBackend,
    AgentStartContext,
)
from perdure.agent.calls import Calls
from perdure.agent.sessions import (
    ComparingSessionStore,
    InMemoryRuntimeSessionStore,
    RuntimeSession,
    RuntimeSessionStore,
    SessionStatus,
    new_session,
    touched,
)
from perdure.agent.stream_events import RuntimeStreamEvent
from perdure.core.effects import Clock, epoch_ms, iso_time, system_clock
from perdure.core.wire import to_wire
from perdure.core.wording import error_text
from perdure.durable.calls import is_cancelled
from perdure.durable.failures import CANCELLED_WITHIN
from perdure.errors import (
    AgentRuntimeError,
    SessionBusyError,
    SessionMismatchError,
    ValidationError,
)
from perdure.observe.credentials import mask_text

logger = logging.getLogger("perdure.agent")

RESUME_MISSED: Final = "resume_missed"
"""The key in a session's metadata that says: it was to be resumed, but nothing was found."""

STOP_MS: Final = 10_000
"""How long a backend may take to clean up, or a store to keep the end, before the stream ends."""

OnExisting = Literal["raise", "replace"]
E = TypeVar("E", bound=RuntimeStreamEvent)


@dataclass(frozen=True, slots=True)
class SessionChoice:
    """Which session a stream works in. Without an id it gets a new one.

    `resume`: take up the session of this id, if the store has it. Else `on_existing` says whether
    a session that has the id already is an error or is replaced. A store without `append_event`
    keeps the session alone. Raises ValidationError for what cannot be chosen.
    """

    store: RuntimeSessionStore | None = None
    session_id: str | None = None
    resume: bool = False
    on_existing: OnExisting = "raise"

    def __post_init__(self) -> None:
        if not isinstance(cast("object", self.session_id), str | None):
            raise ValidationError(f"session_id must be a str or None, not {self.session_id!r:.40}")
        lacks = [name for name in ("get", "put") if optional_method(self.store, name) is None]
        if self.store is not None and lacks:
            raise ValidationError(
                f"{type(self.store).__qualname__!r:.60} is no store of sessions: it has no method "
                f"{', '.join(lacks)}; `DurableSessionStore(store)` keeps them in one of runs"
            )
        if self.on_existing not in get_args(OnExisting):
            choices = " or ".join(map(repr, get_args(OnExisting)))
            raise ValidationError(f"on_existing must be {choices}, not {self.on_existing!r:.40}")


class SessionLife:
    """One session of one stream. `session` is None until it was opened; `resumed` says how."""

    def __init__(
        self,
        backend: AgentExecutionBackend,
        choice: SessionChoice,
        *,
        clock: Clock = system_clock,
    ) -> None:
        self.session: RuntimeSession | None = None
        self.resumed = False
        self.store_error: str | None = None
        self._begun: RuntimeSession | None = None
        self._is_taken = False
        """Somebody else has taken the session up since: it is theirs, and so is its backend."""
        self._backend = backend
        self._choice = choice
        self._clock = clock
        self._store = choice.store or InMemoryRuntimeSessionStore()
        self._append = optional_method(self._store, "append_event")

    @property
    def wanted_id(self) -> str | None:
        """The id that the session was asked for by."""
        return self._choice.session_id

    async def open(self, input: AgentBackendInput, context: AgentStartContext) -> None:
        """Resume the session, or begin and store it.

        Raises SessionMismatchError, ValidationError for an id that is taken, SessionBusyError if
        somebody else was faster, and what the backend and the store raise.
        """
        wanted = self._choice
        found = await resolve(self._store.get(wanted.session_id)) if wanted.session_id else None
        if found is not None and wanted.resume:
            session, self.resumed = await self._resume(found, input, context), True
        elif found is not None and wanted.on_existing == "raise":
            raise ValidationError(
                f"there is a session {found.id!r} already: resume it, or have it replaced"
            )
        else:
            session = await self._start(input, context)
            if wanted.resume:
                metadata = {**(session.metadata or {}), RESUME_MISSED: True}
                session = replace(session, metadata=metadata)
        self._begun = session
        await self._put_first(session, found)
        self.session = session

    async def told(self, event: E) -> E:
        """Append the event to the session, then return it."""
        assert self.session is not None
        if self._append is not None and not self._is_taken:
            await _asked(self._append(self.session.id, event))
        return event

    async def told_last(self, event: E) -> E:
        """Append an event of the end, which is told even if the store fails."""
        if self.session is not None:
            await self._despite_failure(self.told(event))
        return event

    async def end(self, status: SessionStatus) -> None:
        """Give the session its last status and store it.

        Raises SessionBusyError if somebody else has taken it up meanwhile, and what the store
        raises.
        """
        before = self.session
        if before is not None and not self._is_taken:
            self.session = touched(before, status=status, clock=self._clock)
            await self._put_last(self.session, before)

    async def end_anyway(self, status: SessionStatus) -> None:
        """End the session although something has failed, or is about to."""
        await self._despite_failure(self.end(status))

    async def give_up(self, status: SessionStatus, reason: str) -> None:
        """End a session that was begun but not opened: the backend may work for it already.

        The store may have kept it before it failed, or before nobody waited any more. One that
        somebody else has under this id is left alone.
        """
        begun = self._begun
        if begun is None or self._is_taken:
            return
        kept = await Calls().call("session", lambda: self._store.get(begun.id), timeout_ms=STOP_MS)
        if kept.value not in (None, begun):
            return
        if kept.value is not None:
            self.session = begun
            await self.end_anyway(status)
        await self.stop_backend(reason)

    async def stop_backend(self, reason: str) -> str | None:
        """Have the backend clean up, within STOP_MS; return what of that failed."""
        stop, session = optional_method(self._backend, "stop"), self.session or self._begun
        if stop is None or session is None or self._is_taken:
            return None
        called = await Calls().call("stop", lambda: stop(session, reason), timeout_ms=STOP_MS)
        if called.error is None and called.cut is None:
            return None
        why = f"it took more than {STOP_MS} ms" if called.error is None else called.message
        kind = self._backend.kind
        logger.warning("the backend %s could not be stopped: %s", kind, mask_text(why))
        return why

    async def _resume(
        self, found: RuntimeSession, input: AgentBackendInput, context: AgentStartContext
    ) -> RuntimeSession:
        kind = self._backend.kind
        if found.backend != kind:
            raise SessionMismatchError(
                f"the session {found.id!r} belongs to the backend {found.backend!r}, not {kind!r}",
                session_backend=found.backend,
                requested_backend=kind,
            )
        resume = optional_method(self._backend, "resume")
        if resume is None:
            resumed = touched(found, status="active", clock=self._clock)
        else:
            resumed = self._checked(await resolve(resume(found, input, context)), "resume")
        if resumed != found:
            return resumed
        # Of two who take it up, in one millisecond too, the second must see that it has changed.
        return replace(resumed, updated_at=iso_time(epoch_ms(found.updated_at) + 1))

    async def _start(self, input: AgentBackendInput, context: AgentStartContext) -> RuntimeSession:
        start = optional_method(self._backend, "start")
        if start is None:
            wanted = self._choice.session_id
            return new_session(self._backend.kind, session_id=wanted, clock=self._clock)
        return self._checked(await resolve(start(input, context)), "start")

    def _checked(self, session: Any, method: str) -> RuntimeSession:
        kind = self._backend.kind
        if not isinstance(session, RuntimeSession) or session.backend != kind:
            raise ValidationError(f"{method} of the backend {kind!r} must return its session")
        return session

    async def _put_first(self, session: RuntimeSession, found: RuntimeSession | None) -> None:
        store = self._store
        # A backend may have its own id for a session that was asked for by another.
        if not isinstance(store, ComparingSessionStore) or (
            self._choice.session_id and session.id != self._choice.session_id
        ):
            await resolve(store.put(session))
        elif not await resolve(store.put_if(session, found)):
            self._is_taken = True
            raise SessionBusyError(f"somebody else has just taken the session {session.id!r}")

    async def _put_last(self, session: RuntimeSession, before: RuntimeSession) -> None:
        """Store the end of the session, unless it is not the one any more that was stored."""
        store = self._store
        if not isinstance(store, ComparingSessionStore):
            await _asked(store.put(session))
            return
        if await _asked(store.put_if(session, before)):
            return
        # What a store has written down may be read back as other types than it was given.
        found = await _asked(store.get(session.id))
        is_ours = found is None or _are_alike(found, before)
        if not is_ours or not await _asked(store.put_if(session, found)):
            self._is_taken = True
            raise SessionBusyError(f"somebody else has taken up the session {session.id!r} since")

    async def _despite_failure(self, writing: Any) -> None:
        """Write what the end of the stream does not wait for longer than STOP_MS."""
        limit = asyncio.timeout(STOP_MS / 1_000)
        try:
            async with limit:
                await writing
        except Exception as error:
            is_late = isinstance(error, TimeoutError) and limit.expired()
            self.store_error = f"it took more than {STOP_MS} ms" if is_late else error_text(error)
            why = mask_text(self.store_error)
            logger.warning("the end of a session could not be stored: %s", why)


def _are_alike(first: RuntimeSession, second: RuntimeSession) -> bool:
    return to_wire(first) == to_wire(second) and first.resume_token == second.resume_token


async def _asked(answer: Any) -> Any:
    """Return what a store answers; one that cancels itself has failed."""
    try:
        return await resolve(answer)
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        raise AgentRuntimeError(f"the session store failed: {CANCELLED_WITHIN}") from error
