"""Sessions in the database of the runs: a log of entries for each session, in any RunStore."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, cast

from perdure.agent.kept_runs import has_ended, keep_run, run_for
from perdure.agent.sessions import RuntimeSession, session_from_stored, session_to_stored
from perdure.agent.stream_events import (
    ReasoningDeltaEvent,
    RuntimeStreamEvent,
    TextDeltaEvent,
    UnknownEvent,
    event_from_wire,
    event_to_wire,
)
from perdure.core.identity import canonical_hash
from perdure.core.records import AgentTaskSpec, JsonValue, RunManifest, SessionKey
from perdure.durable.erasing import erase_session, stop_for_good
from perdure.durable.traces import kept_name
from perdure.errors import RunNotFoundError, SessionBusyError, UsageError
from perdure.store.protocol import RunStore

RUN_PREFIX: Final = "agent-session:"
"""How the id of the run begins that keeps a session."""
USE_PREFIX: Final = "agent-session-use:"
"""How the id of a run begins that stands for a later use of a session: no session's begins so."""

LOGS_MAX: Final = 1_024
"""So many sessions are remembered as they stand; others are read before they are written to."""

_INTENT: Final = "Keep what happens in this session of an agent"
_SHARED: Final[tuple[str, ...]] = ("task", "session")
"""What events of a session have in common; it is written again when it has changed."""

Entry = dict[str, Any]


class _Place(NamedTuple):
    """Where the log of a session is: a run, and how the keys of its events begin.

    One that is not `is_ready` has a run of its own that is not there yet, or not ended.
    """

    run_id: str
    keys: str
    is_ready: bool


class DurableSessionStore:
    """Keeps sessions in a RunStore: with its durability, tenant, protection, cleaning and erasure.

    Each session is a run of its own (`agent-session:<id>`), whose events are the entries of a
    log. An entry is written under the next number, which only one writer can have: `put_if`
    settles races between processes, and no event is ever lost or overwritten. The resume token
    is stored as it is (`protect` the store to have it sealed); other Secrets are redacted.

    To the store of runs it is a session of the same name, `agent-session:<id>`, with one turn for
    each time that it was begun or resumed: `collect_garbage` deletes it as a whole once it was
    not used for as long as runs are kept, `erase_session` by its name, and `erase_user` with all
    that belongs to `owner_id`. Whatever is asked of one that belongs to another owner raises
    RunNotFoundError; one without an owner is open to everybody in the tenant.

    Reading costs as much as the session is long. `delete` forgets a session.
    """

    def __init__(self, store: RunStore, *, owner_id: str | None = None) -> None:
        self._store = store
        self._owner_id = owner_id
        self._beside: str | None = None
        self._keeps_pieces = True
        self._logs: OrderedDict[str, _Log] = OrderedDict()

    def beside(
        self,
        run_id: str,
        *,
        tenant: str = "",
        owner_id: str | None = None,
        keeps_pieces: bool = True,
    ) -> DurableSessionStore:
        """Return the store of sessions that live and die with a run of the tenant, within it.

        If there is no such run, a session is kept as a run of its own, which belongs to the owner.
        Without `keeps_pieces` the deltas of text and reasoning are not kept: where a turn is
        answered they are frames of its journal already, before they are shown.
        """
        view = DurableSessionStore(
            self._store.for_tenant(tenant) if tenant else self._store, owner_id=owner_id
        )
        view._beside = run_id
        view._keeps_pieces = keeps_pieces
        return view

    async def get(self, session_id: str) -> RuntimeSession | None:
        return (await self._read(session_id)).session

    async def put(self, session: RuntimeSession) -> None:
        log = await self._log(session.id)
        while not await self._try_append(log, _session_entry(session)):
            log.skip()
        await self._kept(log, session)

    async def put_if(self, session: RuntimeSession, expected: RuntimeSession | None) -> bool:
        log = await self._read(session.id)
        while log.session == expected:
            if await self._try_append(log, _session_entry(session)):
                await self._kept(log, session)
                return True
            log = await self._read(session.id)
        return False

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> None:
        if not self._keeps_pieces and isinstance(event, TextDeltaEvent | ReasoningDeltaEvent):
            return
        log = await self._log(session_id)
        wire = event_to_wire(event)
        while not await self._try_append(log, _event_entry(wire, log.shared)):
            # Another process has written: what its events share is not what ours do.
            log.skip()
        log.shared.update({name: wire[name] for name in _SHARED if name in wire})

    async def list_events(self, session_id: str) -> Sequence[RuntimeStreamEvent | UnknownEvent]:
        """Return the events that are kept, oldest first.

        One that does not fit its type, or is of a newer version, is an UnknownEvent.
        """
        shared: dict[str, JsonValue] = {}
        events: list[RuntimeStreamEvent | UnknownEvent] = []
        for _, entry in await self._entries(await self._place(session_id)):
            if "event" not in entry:
                continue
            news = cast("Entry", entry["event"])
            shared.update({name: news[name] for name in _SHARED if name in news})
            without = entry.get("without", ())
            kept = {name: value for name, value in shared.items() if name not in without}
            events.append(_readable({**kept, **news}))
        return events

    async def delete(self, session_id: str) -> bool:
        """Delete the session and its events; return whether there was one.

        Raises UsageError for one that is kept within another run: it goes with that.
        """
        place = await self._place(session_id)
        if place.run_id == self._beside:
            raise UsageError(f"the session {session_id!r:.60} goes with the run {place.run_id!r}")
        self._logs.pop(session_id, None)
        try:
            await erase_session(
                self._store, stored_name(session_id), stop=partial(stop_for_good, self._store)
            )
        except RunNotFoundError:
            return False
        return True

    async def _log(self, session_id: str) -> _Log:
        log = self._logs.get(session_id)
        if log is None:
            return await self._read(session_id)
        self._logs.move_to_end(session_id)
        return log

    async def _read(self, session_id: str) -> _Log:
        """Read how the log stands; what events share is written anew behind that."""
        log = _Log(session_id, await self._place(session_id))
        for number, entry in await self._entries(log.place):
            log.next = number + 1
            if "session" in entry:
                log.session = session_from_stored(entry["session"])
        self._logs[session_id] = log
        self._logs.move_to_end(session_id)
        while len(self._logs) > LOGS_MAX:
            self._logs.popitem(last=False)
        return log

    async def _place(self, session_id: str) -> _Place:
        beside = self._beside
        # Whoever was given the run by name has it; where an owner is named too, it must be that.
        if beside is not None and await self._has_run(beside):
            return _Place(beside, f"{RUN_PREFIX}{canonical_hash(session_id)[:16]}:", True)
        run_id = stored_name(session_id)
        run = await run_for(self._store, run_id, self._owner_id)
        return _Place(run_id, "entry:", has_ended(run))

    async def _has_run(self, run_id: str) -> bool:
        if self._owner_id is None:
            return await self._store.read_run(run_id) is not None
        return await run_for(self._store, run_id, self._owner_id) is not None

    async def _entries(self, place: _Place) -> list[tuple[int, Entry]]:
        try:
            details = await self._store.read_details(place.run_id)
        except RunNotFoundError:
            return []
        found = {each.key: each.payload for each in details.events}
        keys = sorted(key for key in found if key.startswith(place.keys))
        return [(int(key.removeprefix(place.keys)), cast("Entry", found[key])) for key in keys]

    async def _try_append(self, log: _Log, entry: Entry) -> bool:
        """Write an entry under the next number; return whether nobody else has it."""
        if not log.place.is_ready:
            await self._make_ready(log)
        try:
            is_ours, _ = await self._store.emit_event(log.place.run_id, log.key, entry)
        except RunNotFoundError:  # Somebody deleted it.
            await self._make_ready(log)
            is_ours, _ = await self._store.emit_event(log.place.run_id, log.key, entry)
        if is_ours:
            log.next += 1
        return is_ours

    async def _make_ready(self, log: _Log) -> None:
        """Give the log a run of its own, which has ended or is ended by another process now."""
        is_ready = await self._take_place(log.session_id, 0)
        log.place = _Place(stored_name(log.session_id), "entry:", is_ready)

    async def _kept(self, log: _Log, session: RuntimeSession) -> None:
        """Take note of the session; one that is taken up again is in use again."""
        is_again = log.session is not None and session.status == "active"
        log.session = session
        if is_again and log.place.run_id != self._beside:
            with suppress(SessionBusyError):  # Another use, just now, stands for this one too.
                await self._take_place(session.id, log.next)

    async def _take_place(self, session_id: str, turn_index: int) -> bool:
        """Keep a run that stands for a use of the session, the first one for its log."""
        later = kept_name(f"{USE_PREFIX}{turn_index}:", session_id)
        return await keep_run(
            self._store,
            later if turn_index else stored_name(session_id),
            RunManifest("agent-sessions", AgentTaskSpec(session_id, _INTENT)),
            session=SessionKey(stored_name(session_id), turn_index, owner_id=self._owner_id),
        )


def stored_name(session_id: str) -> str:
    """Return the name of a session of an agent as a session of the store, and as its first run."""
    return kept_name(RUN_PREFIX, session_id)


class _Log:
    """How a session's log stands, as far as this process knows."""

    def __init__(self, session_id: str, place: _Place) -> None:
        self.session_id = session_id
        self.place = place
        self.next = 1
        self.session: RuntimeSession | None = None
        self.shared: dict[str, JsonValue] = {}

    @property
    def key(self) -> str:
        """The key of the next entry."""
        return f"{self.place.keys}{self.next:010d}"

    def skip(self) -> None:
        """Go behind an entry that somebody else has written."""
        self.next += 1
        self.shared.clear()


def _readable(wire: Entry) -> RuntimeStreamEvent | UnknownEvent:
    """Return an event as what it is: one that cannot be read costs a session none of the others."""
    try:
        return event_from_wire(wire, lenient=True)
    except UsageError:
        return UnknownEvent(str(wire.get("type")), wire)


def _event_entry(wire: Entry, shared: Entry) -> Entry:
    """Return the entry of an event behind events that have `shared` in common."""
    news = {name: each for name, each in wire.items() if not _is_known(name, each, shared)}
    absent = [name for name in _SHARED if name not in wire]
    return {"event": news, "without": absent} if absent else {"event": news}


def _is_known(name: str, value: JsonValue, shared: Entry) -> bool:
    return name in _SHARED and name in shared and bool(shared[name] == value)


def _session_entry(session: RuntimeSession) -> Entry:
    return {"session": session_to_stored(session)}
