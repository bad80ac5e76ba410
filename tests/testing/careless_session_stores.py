"""More session stores with one planted fault each: in what they keep, compare, and share."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from perdure.agent.sessions import EventKeepingSessionStore, RuntimeSession
from perdure.agent.stream_events import RuntimeStreamEvent, TextDeltaEvent
from tests.testing.broken_session_stores import Fault, SoundStore

# What is kept.


class TakesTruthForNumbers(SoundStore):
    async def put(self, session: RuntimeSession) -> None:
        await super().put(replace(session, metadata=_numbers(session.metadata)))


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return int(value) if isinstance(value, bool) else value


class MatchesIdsAsPatterns(SoundStore):
    """Looks for ids as LIKE does."""

    async def get(self, session_id: str) -> RuntimeSession | None:
        pattern = re.escape(session_id).replace("%", ".*").replace("_", ".")
        found = [id for id in self._sessions if re.fullmatch(pattern, id)]
        return self._sessions[found[0]] if found else None


class CutsIds(SoundStore):
    async def get(self, session_id: str) -> RuntimeSession | None:
        return self._sessions.get(session_id.rstrip())

    async def put(self, session: RuntimeSession) -> None:
        self._sessions[session.id.rstrip()] = session


class SortsByTime(SoundStore):
    async def list_events(self, session_id: str) -> Sequence[RuntimeStreamEvent]:
        events = await super().list_events(session_id)
        return sorted(events, key=lambda event: event.timestamp or "9")


class EndsTextsAtNul(SoundStore):
    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        if isinstance(event, TextDeltaEvent):
            event = replace(event, text=event.text.partition("\x00")[0])
        await super().append_event(session_id, event)


class CutsLongTexts(SoundStore):
    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        if isinstance(event, TextDeltaEvent):
            event = replace(event, text=event.text[:65_535])
        await super().append_event(session_id, event)


class MarksWhatItIsHanded(SoundStore):
    async def put(self, session: RuntimeSession) -> None:
        metadata: Any = session.metadata
        if metadata is not None:
            metadata["stored"] = True
        await super().put(session)


class KeepsWhatItIsHanded(SoundStore):
    async def put(self, session: RuntimeSession) -> None:
        self._sessions[session.id] = session

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        self._events.setdefault(session_id, []).append(event)


class HandsOutWhatItKeeps(SoundStore):
    async def get(self, session_id: str) -> RuntimeSession | None:
        return self._sessions.get(session_id)


class WritesLater(SoundStore):
    """Says that an event is kept when it will be."""

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        self._writing = asyncio.ensure_future(self._later(session_id, event))

    async def _later(self, session_id: str, event: RuntimeStreamEvent) -> None:
        await super().append_event(session_id, event)


class HoldsBackTheLast(SoundStore):
    """Writes an event with the next one."""

    held: tuple[str, RuntimeStreamEvent] | None = None

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        if self.held is not None:
            await super().append_event(*self.held)
        self.held = (session_id, event)

    async def list_events(self, session_id: str) -> Sequence[RuntimeStreamEvent]:
        rest = [self.held[1]] if self.held is not None and self.held[0] == session_id else []
        return [*await super().list_events(session_id), *rest]


# Several at once.


class CountsByItself(SoundStore):
    """Each handle looks once how many events there are, and numbers its own from there."""

    def __init__(self, shared: SoundStore | None = None) -> None:
        super().__init__(shared)
        self._next: dict[str, int] = {}

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        events = self._events.setdefault(session_id, [])
        number = self._next.setdefault(session_id, len(events))
        events[number : number + 1] = [event]
        self._next[session_id] = number + 1


class WritesTheWholeSession(SoundStore):
    """Reads a session with its events, and writes back both."""

    async def put(self, session: RuntimeSession) -> None:
        events = list(self._events.get(session.id, ()))
        await asyncio.sleep(0)
        self._events[session.id] = events
        await super().put(session)

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        await asyncio.sleep(0)
        await super().append_event(session_id, event)


class WritesAllSessions(SoundStore):
    """Reads all sessions, and writes back all of them."""

    async def put(self, session: RuntimeSession) -> None:
        sessions = {**self._sessions, session.id: session}
        await asyncio.sleep(0)
        self._sessions.clear()
        self._sessions.update(sessions)


class KeepsItsLockWhenCancelled(SoundStore):
    def __init__(self, shared: SoundStore | None = None) -> None:
        super().__init__(shared)
        self._lock = asyncio.Lock()

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        await self._lock.acquire()
        await asyncio.sleep(0)
        await super().append_event(session_id, event)
        self._lock.release()


class WritesAgainWhenCancelled(SoundStore):
    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        await super().append_event(session_id, event)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await super().append_event(session_id, event)
            raise


class ForgetsAtARestart(SoundStore):
    async def restart(self) -> None:
        self._sessions.clear()
        self._events.clear()


class ForgetsEventsAtARestart(SoundStore):
    async def restart(self) -> None:
        self._events.clear()


class NumbersAnewAtARestart(CountsByItself):
    async def open(self) -> EventKeepingSessionStore:
        opened = type(self)(self)
        opened._next = self._next
        return opened

    async def restart(self) -> None:
        for session_id in self._next:
            self._next[session_id] = 0


class LetsTenantsIn(SoundStore):
    @classmethod
    def elsewhere(cls, shared: SoundStore) -> SoundStore:
        return cls(shared)


class SharesEventsWithAllTenants(SoundStore):
    @classmethod
    def elsewhere(cls, shared: SoundStore) -> SoundStore:
        other = cls()
        other._events = shared._events
        return other


# What is compared.


class ComparesOnlyStatus(SoundStore):
    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        kept = self._sessions.get(session.id)
        if (kept and kept.status) != (expected and expected.status):
            return False
        await self.put(session)
        return True


class ComparesOnlyTimes(SoundStore):
    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        kept = self._sessions.get(session.id)
        if (kept and kept.updated_at) != (expected and expected.updated_at):
            return False
        await self.put(session)
        return True


class ComparesNoTokens(SoundStore):
    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        kept = self._sessions.get(session.id)
        if expected is not None and kept is not None:
            expected = replace(expected, resume_token=kept.resume_token)
        return await super().put_if(session, expected)


WHOLE = "a_session_comes_back_whole"
TEXTS = "odd_and_long_texts_come_back_as_they_were"
HANDED = "what_was_handed_in_or_out_cannot_change_what_is_kept"
CANCELLED = "a_write_that_was_cancelled_is_whole_or_absent_and_holds_up_nobody"
RESTART = "what_is_kept_is_there_after_a_restart"
TENANTS = "another_tenant_sees_nothing_of_it"
COMPARED = "every_part_of_a_session_is_compared"
TURNS = "handles_that_take_turns_keep_the_order"

MORE_FAULTS: list[Fault] = [
    (TakesTruthForNumbers, WHOLE, "its metadata as JSON"),
    (MatchesIdsAsPatterns, "ids_are_taken_as_they_are", "the session 'a_1'"),
    (CutsIds, "ids_are_taken_as_they_are", "the session 'a'"),
    (
        SortsByTime,
        "events_are_in_the_order_in_which_they_came_whatever_their_times",
        "a clock that was set back",
    ),
    (EndsTextsAtNul, TEXTS, r"the length of the text '\\x00'"),
    (CutsLongTexts, TEXTS, "expected 100000, found 65535"),
    (MarksWhatItIsHanded, HANDED, "what was handed to the store"),
    (KeepsWhatItIsHanded, HANDED, "the metadata of the session: .*2"),
    (HandsOutWhatItKeeps, HANDED, "the metadata of the session: .*3"),
    (WritesLater, "another_handle_sees_what_is_kept", r"its events: expected \['a'\], found \[\]"),
    (HoldsBackTheLast, "another_handle_sees_what_is_kept", r"expected \['a'\], found \[\]"),
    (CountsByItself, TURNS, "the events, as handle 0 sees them"),
    (
        WritesTheWholeSession,
        "to_put_a_session_while_events_come_loses_neither",
        "its events: expected",
    ),
    (
        WritesAllSessions,
        "writers_of_several_sessions_leave_each_other_alone",
        "the (status of|session 's-)",
    ),
    (KeepsItsLockWhenCancelled, CANCELLED, "a write behind one that was cut off is not over"),
    (WritesAgainWhenCancelled, CANCELLED, "each counted once"),
    (ForgetsAtARestart, RESTART, "the session after a restart"),
    (ForgetsEventsAtARestart, RESTART, "its events after a restart"),
    (NumbersAnewAtARestart, RESTART, "its events after a restart"),
    (LetsTenantsIn, TENANTS, "the session, for another tenant"),
    (SharesEventsWithAllTenants, TENANTS, "its events, for another tenant"),
    (ComparesOnlyStatus, COMPARED, "where the backend is another"),
    (ComparesOnlyTimes, COMPARED, "where the backend is another"),
    (ComparesNoTokens, COMPARED, "where the resume_token is another"),
]
