"""Session stores with one planted fault each, and the case of the contract that must find it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import Any

from perdure.agent.sessions import (
    EventKeepingSessionStore,
    InMemoryRuntimeSessionStore,
    RuntimeSession,
)
from perdure.agent.stream_events import QuestionsEndEvent, RuntimeStreamEvent
from perdure.core.secret import Secret
from perdure.testing import SessionStoreLab


class SoundStore(InMemoryRuntimeSessionStore):
    """Keeps its data in what all handles share; the faults below change one thing."""

    def __init__(self, shared: SoundStore | None = None) -> None:
        super().__init__()
        if shared is not None:
            self._sessions, self._events = shared._sessions, shared._events

    async def open(self) -> EventKeepingSessionStore:
        return type(self)(self)

    @classmethod
    def elsewhere(cls, shared: SoundStore) -> SoundStore:
        """Return the store of another tenant."""
        return cls()

    async def restart(self) -> None:
        """End every process that has a handle."""


class FindsWhatIsNotThere(SoundStore):
    async def get(self, session_id: str) -> RuntimeSession | None:
        return self._sessions.get(session_id, RuntimeSession(session_id, "", "active", "", ""))


class KeepsTheFirst(SoundStore):
    async def put(self, session: RuntimeSession) -> None:
        self._sessions.setdefault(session.id, session)


class ForgetsMetadata(SoundStore):
    async def get(self, session_id: str) -> RuntimeSession | None:
        session = self._sessions.get(session_id)
        return session and replace(session, metadata=None)


class RedactsTokens(SoundStore):
    async def put(self, session: RuntimeSession) -> None:
        await super().put(replace(session, resume_token=None))


class ForgetsTheCaseOfIds(SoundStore):
    async def get(self, session_id: str) -> RuntimeSession | None:
        return await super().get(session_id.lower())

    async def put(self, session: RuntimeSession) -> None:
        self._sessions[session.id.lower()] = session


class SortsEvents(SoundStore):
    async def list_events(self, session_id: str) -> Sequence[RuntimeStreamEvent]:
        return sorted(await super().list_events(session_id), key=str)


class ForgetsResults(SoundStore):
    async def append_event(self, session_id: str, event: Any) -> None:
        kept = replace(event, result=None) if event.type == "tool_result" else event
        await super().append_event(session_id, kept)


class FillsInTheSession(SoundStore):
    async def list_events(self, session_id: str) -> Sequence[RuntimeStreamEvent]:
        events: Any = await super().list_events(session_id)
        return [replace(each, session=self._sessions[session_id]) for each in events]


class HasOneLogForAll(SoundStore):
    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        await super().append_event("all", event)

    async def list_events(self, session_id: str) -> Sequence[RuntimeStreamEvent]:
        return await super().list_events("all")


class BeginsTheLogAnew(SoundStore):
    async def put(self, session: RuntimeSession) -> None:
        self._events.pop(session.id, None)
        await super().put(session)


class HandsOutItsOwnList(SoundStore):
    async def list_events(self, session_id: str) -> Sequence[RuntimeStreamEvent]:
        return self._events.get(session_id, [])


class RemembersWhatItRead(SoundStore):
    def __init__(self, shared: SoundStore | None = None) -> None:
        super().__init__(shared)
        self._seen: dict[str, RuntimeSession | None] = {}

    async def get(self, session_id: str) -> RuntimeSession | None:
        return self._seen.setdefault(session_id, await super().get(session_id))

    async def put(self, session: RuntimeSession) -> None:
        await super().put(session)
        self._seen[session.id] = session


class LosesWhatIsWrittenAtOnce(SoundStore):
    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        events = list(self._events.get(session_id, ()))
        await asyncio.sleep(0)
        self._events[session_id] = [*events, event]


class StoresSecretsAsTexts(SoundStore):
    async def append_event(self, session_id: str, event: Any) -> None:
        if isinstance(event, QuestionsEndEvent):
            answers = {
                key: each.reveal() if isinstance(each, Secret) else each
                for key, each in event.user_answers.items()
            }
            event = replace(event, user_answers=answers)
        await super().append_event(session_id, event)


class LosesTheEnd(SoundStore):
    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        if event.type != "final":
            await super().append_event(session_id, event)


class KeepsSessionsToEachHandle(SoundStore):
    async def open(self) -> EventKeepingSessionStore:
        return type(self)()


class TakesWhatIsTaken(SoundStore):
    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        if expected is None:
            await self.put(session)
            return True
        return await super().put_if(session, expected)


class ComparesOnlyIds(SoundStore):
    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        kept = self._sessions.get(session.id)
        return await super().put_if(session, expected and kept)


class ReplacesNothing(SoundStore):
    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        if session.id not in self._sessions:
            expected = None
        return await super().put_if(session, expected)


class ComparesWithWhatItRemembers(RemembersWhatItRead):
    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        if await self.get(session.id) != expected:
            return False
        await self.put(session)
        return True


class DropsTheLogOfWhatItReplaces(SoundStore):
    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        self._events.pop(session.id, None)
        return await super().put_if(session, expected)


class LooksThenWrites(SoundStore):
    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        kept = self._sessions.get(session.id)
        await asyncio.sleep(0)
        if kept != expected:
            return False
        await self.put(session)
        return True


Fault = tuple[type[SoundStore], str, str]
"""A store, the case that finds what is wrong with it, and words in which it says so."""

FAULTS: list[Fault] = [
    (FindsWhatIsNotThere, "what_was_never_put_is_not_there", "nobody has put: expected None"),
    (KeepsTheFirst, "what_was_put_last_is_got", "the session that was put again"),
    (ForgetsMetadata, "a_session_comes_back_whole", "metadata=None"),
    (RedactsTokens, "a_resume_token_comes_back_as_a_secret", "the token: .* found None"),
    (ForgetsTheCaseOfIds, "ids_are_taken_as_they_are", "the session 'a'"),
    (SortsEvents, "events_come_back_in_order", "the events: expected"),
    (ForgetsResults, "events_come_back_whole", "tool_result as JSON"),
    (FillsInTheSession, "an_event_without_task_or_session_comes_back_without", "events: expected"),
    (HasOneLogForAll, "sessions_do_not_share_events", "the events: expected"),
    (BeginsTheLogAnew, "to_put_a_session_again_keeps_its_events", "'kept'"),
    (HandsOutItsOwnList, "a_list_of_events_is_the_readers_own", "before another one came"),
    (RemembersWhatItRead, "another_handle_sees_what_is_kept", "the session: .* found None"),
    (LosesWhatIsWrittenAtOnce, "events_of_many_writers_are_all_kept", "number of events"),
    (StoresSecretsAsTexts, "the_secrets_of_events_are_not_shown", "a secret is shown"),
    (LosesTheEnd, "a_stream_is_kept_as_it_was_told", "from the session on"),
    (KeepsSessionsToEachHandle, "a_session_is_resumed_by_another_handle", "begun anew"),
    (TakesWhatIsTaken, "a_free_id_is_taken_once", "of one that is taken"),
    (ComparesOnlyIds, "only_what_was_expected_is_replaced", "of what has changed"),
    (ReplacesNothing, "what_is_not_there_is_not_replaced", "of an unknown session"),
    (ComparesWithWhatItRemembers, "another_handle_sees_who_has_won", "one that comes late"),
    (DropsTheLogOfWhatItReplaces, "to_replace_a_session_keeps_its_events", "number of events"),
    (LooksThenWrites, "of_all_who_begin_a_session_at_once_one_wins", "number of winners"),
    (LooksThenWrites, "of_all_who_resume_a_session_at_once_one_wins", "number of winners"),
]


def lab_of(kind: type[SoundStore]) -> AbstractAsyncContextManager[SessionStoreLab]:
    shared = kind()
    elsewhere = kind.elsewhere(shared)
    lab = SessionStoreLab(shared.open, restart=shared.restart, open_elsewhere=elsewhere.open)
    return nullcontext(lab)
