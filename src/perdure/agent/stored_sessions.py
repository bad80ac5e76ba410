"""Sessions in the database of the runs: a log of entries for each session, in any RunStore."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, cast

from perdure.agent.sessions import RuntimeSession
from perdure.agent.stream_events import RuntimeStreamEvent, event_from_wire, event_to_wire
from perdure.core.records import AgentTaskSpec, JsonValue, RunManifest
from perdure.core.secret import Secret
from perdure.core.wire import from_wire, to_wire
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.errors import LeaseHeldError, RunNotFoundError
from perdure.store.protocol import RunStore

RUN_PREFIX: Final = "agent-session:"
"""How the id of the run begins that keeps a session."""

_ENTRY: Final = "entry:{:010d}"
_SHARED: Final[tuple[str, ...]] = ("task", "session")
"""What events of a session have in common; it is written again when it has changed."""

Entry = dict[str, Any]


class DurableSessionStore:
    """Keeps sessions in a RunStore: with its durability, tenant, protection and erasure.

    Each session is a run of its own (`agent-session:<id>`), whose events are the entries of a
    log. An entry is written under the next number, which only one writer can have: `put_if`
    settles races between processes, and no event is ever lost or overwritten. The resume token
    is stored as it is (`protect` the store to have it sealed); other Secrets are redacted.

    Reading costs as much as the session is long. `delete` forgets a session.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._logs: dict[str, _Log] = {}

    async def get(self, session_id: str) -> RuntimeSession | None:
        return (await self._read(session_id)).session

    async def put(self, session: RuntimeSession) -> None:
        log = await self._log(session.id)
        while not await self._try_append(log, _session_entry(session)):
            log.skip()
        log.session = session

    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        log = await self._read(session.id)
        while log.session == expected:
            if await self._try_append(log, _session_entry(session)):
                log.session = session
                return True
            log = await self._read(session.id)
        return False

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        log = await self._log(session_id)
        wire = event_to_wire(event)
        while not await self._try_append(log, _event_entry(wire, log.shared)):
            # Another process has written: what its events share is not what ours do.
            log.skip()
        log.shared.update({name: wire[name] for name in _SHARED if name in wire})

    async def list_events(self, session_id: str) -> Sequence[RuntimeStreamEvent]:
        """Return the events that are kept; those of a type that is not known any more are not."""
        shared: dict[str, JsonValue] = {}
        events: list[RuntimeStreamEvent] = []
        for _, entry in await self._entries(session_id):
            if "event" not in entry:
                continue
            news = cast("Entry", entry["event"])
            shared.update({name: news[name] for name in _SHARED if name in news})
            without = entry.get("without", ())
            kept = {name: value for name, value in shared.items() if name not in without}
            events.append(cast("RuntimeStreamEvent", event_from_wire({**kept, **news})))
        return events

    async def delete(self, session_id: str) -> bool:
        """Delete the session and its events; return whether there was one."""
        self._logs.pop(session_id, None)
        return await self._store.delete(RUN_PREFIX + session_id)

    async def _log(self, session_id: str) -> _Log:
        return self._logs.get(session_id) or await self._read(session_id)

    async def _read(self, session_id: str) -> _Log:
        """Read how the log stands; what events share is written anew behind that."""
        log = _Log(session_id)
        for number, entry in await self._entries(session_id):
            log.next = number + 1
            if "session" in entry:
                log.session = from_wire(RuntimeSession, entry["session"])
        self._logs[session_id] = log
        return log

    async def _entries(self, session_id: str) -> list[tuple[int, Entry]]:
        try:
            details = await self._store.read_details(RUN_PREFIX + session_id)
        except RunNotFoundError:
            return []
        found = {event.key: event.payload for event in details.events}
        return [(int(key.rpartition(":")[2]), cast("Entry", found[key])) for key in sorted(found)]

    async def _try_append(self, log: _Log, entry: Entry) -> bool:
        """Write an entry under the next number; return whether nobody else has it."""
        run_id, key = RUN_PREFIX + log.session_id, _ENTRY.format(log.next)
        try:
            is_ours, _ = await self._store.emit_event(run_id, key, entry)
        except RunNotFoundError:
            await self._create(log.session_id)
            is_ours, _ = await self._store.emit_event(run_id, key, entry)
        if is_ours:
            log.next += 1
        return is_ours

    async def _create(self, session_id: str) -> None:
        task = AgentTaskSpec(session_id, "Keep what happens in this session of an agent")
        # Who else begins it just now holds its lease: then it is there, and takes events.
        with suppress(LeaseHeldError):
            await run_durable(
                self._store,
                run_id=RUN_PREFIX + session_id,
                manifest=RunManifest("agent-sessions", task),
                task=_nothing,
            )


class _Log:
    """How a session's log stands, as far as this process knows."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.next = 1
        self.session: RuntimeSession | None = None
        self.shared: dict[str, JsonValue] = {}

    def skip(self) -> None:
        """Go behind an entry that somebody else has written."""
        self.next += 1
        self.shared.clear()


def _event_entry(wire: Entry, shared: Entry) -> Entry:
    """Return the entry of an event behind events that have `shared` in common."""
    news = {name: each for name, each in wire.items() if not _is_known(name, each, shared)}
    absent = [name for name in _SHARED if name not in wire]
    return {"event": news, "without": absent} if absent else {"event": news}


def _is_known(name: str, value: JsonValue, shared: Entry) -> bool:
    return name in _SHARED and name in shared and bool(shared[name] == value)


def _session_entry(session: RuntimeSession) -> Entry:
    wire = cast("Entry", to_wire(session))
    if isinstance(session.resume_token, Secret):
        wire["resumeToken"] = session.resume_token.reveal()
    return {"session": wire}


async def _nothing(context: DurableContext) -> None:
    """A run that keeps a session has nothing to do."""
