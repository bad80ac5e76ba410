"""ChatTurnEngine: submits, reads and stops chat turns, and sees to it that each of them ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from perdure.core import identity as ids
from perdure.core.limits import (
    DRAIN_MS,
    IDLE_TIMEOUT_MS,
    LEASE_MS,
    PERSIST_WAIT_MS,
    STRIKES_MAX_TURN,
)
from perdure.core.records import Claim, DeliveryRecord, RunManifest, RunRecord
from perdure.durable.live import LiveRun
from perdure.durable.outbox import Outbox
from perdure.durable.worker import Worker
from perdure.errors import (
    LeaseHeldError,
    RunInputMismatchError,
    StoreUnavailableError,
    UsageError,
)
from perdure.store.protocol import RunStore
from perdure.turn.closing import Produce, TurnSettings
from perdure.turn.ending import finished_turn
from perdure.turn.hooks import ChatTurnHooks, call_hook
from perdure.turn.identity import (
    ChatTurnIdentity,
    chat_manifest,
    check_identity,
    run_id_of,
    session_key,
)
from perdure.turn.live import LiveTurn
from perdure.turn.reading import Reading, Replay, known_turn, lines, open_reading
from perdure.turn.recovery import Policy
from perdure.turn.reference import TurnBody, durable_chat_turn_engine
from perdure.turn.registry import live_turns, ring_of
from perdure.turn.wire.codecs import codec_for
from perdure.turn.wire.events import Dialect

logger = logging.getLogger("perdure.turn")


class SubmittedTurn(NamedTuple):
    """An accepted turn. `created`: this call began it; else it was attached to, or is replayed.

    `lines(after=None, wire="ndjson", dialect="perdure")` reads it.
    """

    created: bool
    run: RunRecord
    lines: Callable[..., AsyncIterator[bytes]]


class ChatTurnEngine:
    """Runs chat turns as detached, leased jobs.

    `produce(turn)` answers a turn from what the store knows, so any process with an engine of the
    same `name` on the same database goes on with a turn that lost its worker. A response is only
    a reader: that a client leaves ends nothing, `stop` ends a turn, `aclose` gives turns away.

    `on_interrupted` says what becomes of a turn whose readers have seen some of a lost attempt:
    "rerun" (they are told to forget it), "fail", or a coroutine function that decides by an
    InterruptedTurn. `recover`: from its first use on, the engine looks for turns that nobody
    works on. `expose_errors` shows readers the message of any exception.
    """

    def __init__(
        self,
        store: RunStore,
        *,
        produce: Produce,
        hooks: ChatTurnHooks | None = None,
        name: str = "chat",
        project_id: str = "perdure",
        domain: str = "chat",
        on_interrupted: Policy = "rerun",
        busy: Literal["reject"] = "reject",
        replay: Replay = "frames",
        lease_ms: int = LEASE_MS,
        strikes_max: int = STRIKES_MAX_TURN,
        idle_timeout_ms: int = IDLE_TIMEOUT_MS,
        recover: bool = True,
        expose_errors: bool = False,
    ) -> None:
        if busy != "reject":
            raise UsageError(f"busy must be 'reject', it is {busy!r}")
        if not callable(on_interrupted) and on_interrupted not in ("rerun", "fail"):
            raise UsageError(
                f"on_interrupted must be 'rerun', 'fail' or a callable, it is {on_interrupted!r}"
            )
        self.name = ids.check_id(name, name="name")
        self._store = store
        self._project_id = project_id
        self._domain = domain
        self._replay: Replay = replay
        self._recover = recover
        self._hooks = hooks or ChatTurnHooks()
        self._outbox = Outbox(store, {name: self.deliver})
        self._settings = TurnSettings(
            name=name,
            produce=produce,
            hooks=self._hooks,
            on_interrupted=on_interrupted,
            lease_ms=lease_ms,
            strikes_max=strikes_max,
            idle_timeout_ms=idle_timeout_ms,
            expose_errors=expose_errors,
            follow_up=partial(self._outbox.follow_up, wait_ms=PERSIST_WAIT_MS),
        )
        self._worker_id = ids.derive_worker_id()
        self._turns: set[LiveTurn] = set()
        self._recovery: asyncio.Task[None] | None = None
        self._worker: Worker | None = None
        self._closed = False

    # For users.

    async def submit(
        self,
        identity: ChatTurnIdentity,
        user_message: str,
        *,
        model: str | None = None,
        retry: bool = False,
    ) -> SubmittedTurn:
        """Accept a turn, durably, and begin to answer it; idempotent.

        The same turn with the same message and model is attached to, or replayed when it is over;
        a failed or parked one runs again with `retry`. Raises UsageError,
        RunInputMismatchError (the turn has another message), SessionBusyError (another turn of
        the session is in flight), RunNotFoundError (the session is somebody else's), StoreError.
        """
        self._start()
        manifest = chat_manifest(
            check_identity(identity),
            user_message,
            project_id=self._project_id,
            domain=self._domain,
            model=model,
        )
        store = self._store.for_tenant(identity.tenant_id)
        stored_id = ids.stored_id(identity.tenant_id, run_id_of(identity))
        manifest_hash = ids.manifest_hash(manifest)
        live = live_turns.find(store.handle, stored_id)
        if live is not None:
            return await self._attach(store, identity, live, manifest_hash)
        live = live_turns.enter(store.handle, stored_id, manifest_hash)
        try:
            claim = await self._claim(store, identity, manifest, retry=retry)
        except LeaseHeldError:
            if live.work is None:
                live_turns.leave(store.handle, stored_id)
            return self._submitted(store, await known_turn(store, identity), created=False)
        except BaseException:
            live_turns.leave(store.handle, stored_id)
            raise
        if claim.lease is None:
            live_turns.leave(store.handle, stored_id)
            return self._submitted(store, claim.run, created=False)
        self._begin(live, LiveTurn(self._settings, self._store, claim), stored_id)
        return self._submitted(store, claim.run, created=claim.lease.epoch == 1)

    def read(
        self,
        identity: ChatTurnIdentity,
        *,
        after: str | None = None,
        wire: str = "ndjson",
        dialect: Dialect = "perdure",
    ) -> AsyncIterator[bytes]:
        """Yield a turn's stream behind the cursor `after`, to its end, whoever works on it.

        `wire` is "ndjson", "envelope" or "sse". Raises, at the first pull, RunNotFoundError,
        CursorError, FramesExpiredError.
        """
        return self._read(identity, after, wire, dialect)

    async def open(
        self,
        identity: ChatTurnIdentity,
        *,
        after: str | None = None,
        dialect: Dialect = "perdure",
    ) -> Reading:
        """Return a checked reading, for whoever has to answer before the first line."""
        self._start()
        store = self._store.for_tenant(identity.tenant_id)
        run = await known_turn(store, identity)
        return await self._open(store, run, after, dialect)

    async def stop(self, identity: ChatTurnIdentity) -> RunRecord:
        """Stop a turn durably, wherever it runs; its partial answer is kept.

        One that is over is returned as it is. Raises RunNotFoundError.
        """
        self._start()
        store = self._store.for_tenant(identity.tenant_id)
        run = await known_turn(store, identity)
        run = await store.request_stop(run.run_id)
        stored_id = ids.stored_id(run.tenant, run.run_id)
        live = live_turns.find(store.handle, stored_id)
        if live is not None and live.work is not None:
            live.work.stop()
            await live.gone.wait()
        elif run.state in ("running", "queued", "sleeping", "waiting", "parked"):
            await self._stop_abandoned(store, run, stored_id)
        return await store.read_run(run.run_id) or run

    def run_turn(self, **arguments: Any) -> TurnBody:
        """Run a turn the reference's way: `durable_chat_turn_engine.run_turn` on this store.

        `store`, `hooks`, `project_id` and `domain` are those of the engine where they are not
        given; the hooks must have a `produce`.
        """
        own = {
            "store": self._store,
            "hooks": self._hooks,
            "project_id": self._project_id,
            "domain": self._domain,
        }
        return durable_chat_turn_engine.run_turn(**{**own, **arguments})

    async def aclose(self, *, drain_ms: int = DRAIN_MS) -> None:
        """End the ownership of turns: let them finish for a while, then give them back.

        Readers of turns that were given back are cut off; any engine of the same name goes on.
        """
        self._closed = True
        if self._worker is not None:
            await self._worker.drain(timeout_ms=drain_ms)
        working = [turn.task for turn in self._turns if turn.task is not None]
        if working:
            await asyncio.wait(working, timeout=drain_ms / 1_000)
        for turn in list(self._turns):
            turn.drain()
        working = [turn.task for turn in self._turns if turn.task is not None]
        if working:
            await asyncio.wait(working)
        await self._outbox.settle(timeout_ms=PERSIST_WAIT_MS)
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)

    def start(self) -> None:
        """Look for turns that nobody works on, without waiting for the first call."""
        self._start()

    # For a worker.

    async def work(self, claim: Claim) -> int | None:
        """Go on with a turn that a worker has claimed."""
        assert claim.lease is not None
        stored_id = claim.lease.run_id
        handle = self._store.handle
        live = live_turns.find(handle, stored_id) or live_turns.enter(
            handle, stored_id, claim.run.manifest_hash
        )
        turn = LiveTurn(self._settings, self._store, claim)
        task = self._begin(live, turn, stored_id)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            turn.drain()
            await asyncio.wait([task])
            raise
        return None

    async def deliver(self, delivery: DeliveryRecord) -> None:
        """Call the hook that a delivery is for."""
        finished = await finished_turn(self._store, delivery)
        if finished is not None:
            await call_hook(getattr(self._hooks, delivery.topic), finished)

    # Parts of the above.

    def _start(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the engine was closed")
        if self._recover and self._recovery is None:
            self._worker = Worker(self._store, engines=(self,), lease_ms=self._settings.lease_ms)
            self._recovery = asyncio.get_running_loop().create_task(self._worker.run())

    def _begin(self, live: LiveRun[LiveTurn], turn: LiveTurn, stored_id: str) -> asyncio.Task[None]:
        live.work = turn
        self._turns.add(turn)
        handle = self._store.handle

        def over(_task: asyncio.Task[None]) -> None:
            self._turns.discard(turn)
            live_turns.leave(handle, stored_id)

        task = turn.start()
        task.add_done_callback(over)
        return task

    async def _claim(
        self, store: RunStore, identity: ChatTurnIdentity, manifest: RunManifest, *, retry: bool
    ) -> Claim:
        return await store.start_or_resume(
            run_id_of(identity),
            manifest,
            worker_id=self._worker_id,
            lease_ms=self._settings.lease_ms,
            handler=self.name,
            session=session_key(identity),
            retry=retry,
        )

    async def _attach(
        self,
        store: RunStore,
        identity: ChatTurnIdentity,
        live: LiveRun[LiveTurn],
        manifest_hash: str,
    ) -> SubmittedTurn:
        if live.manifest_hash != manifest_hash:
            raise RunInputMismatchError(
                f"turn {identity.turn_index} of session {identity.session_id!r} has another message"
            )
        await live.opened.wait()
        return self._submitted(store, await known_turn(store, identity), created=False)

    def _submitted(self, store: RunStore, run: RunRecord, *, created: bool) -> SubmittedTurn:
        def read(
            *, after: str | None = None, wire: str = "ndjson", dialect: Dialect = "perdure"
        ) -> AsyncIterator[bytes]:
            return self._lines(store, run, after, wire, dialect)

        return SubmittedTurn(created, run, read)

    async def _read(
        self, identity: ChatTurnIdentity, after: str | None, wire: str, dialect: Dialect
    ) -> AsyncIterator[bytes]:
        self._start()
        store = self._store.for_tenant(identity.tenant_id)
        run = await known_turn(store, identity)
        async for line in self._lines(store, run, after, wire, dialect):
            yield line

    async def _lines(
        self, store: RunStore, run: RunRecord, after: str | None, wire: str, dialect: Dialect
    ) -> AsyncIterator[bytes]:
        codec = codec_for(wire)
        async for line in lines(await self._open(store, run, after, dialect), codec):
            yield line

    async def _open(
        self, store: RunStore, run: RunRecord, after: str | None, dialect: Dialect
    ) -> Reading:
        stored_id = ids.stored_id(run.tenant, run.run_id)

        find_ring = partial(ring_of, store.handle, stored_id)
        return await open_reading(
            store, run, after=after, find_ring=find_ring, dialect=dialect, replay=self._replay
        )

    async def _stop_abandoned(self, store: RunStore, run: RunRecord, stored_id: str) -> None:
        """End a turn that nobody works on as stopped; a live holder elsewhere does it himself."""
        if run.manifest is None:
            return
        try:
            claim = await store.start_or_resume(
                run.run_id,
                run.manifest,
                worker_id=self._worker_id,
                lease_ms=self._settings.lease_ms,
                handler=self.name,
                retry=run.state == "parked",
            )
        except LeaseHeldError:
            return
        if claim.lease is None:
            return
        live = live_turns.find(store.handle, stored_id) or live_turns.enter(
            store.handle, stored_id, run.manifest_hash
        )
        await self._begin(live, LiveTurn(self._settings, self._store, claim, stop=True), stored_id)
