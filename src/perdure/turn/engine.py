"""ChatTurnEngine: submits, reads and stops chat turns, and sees to it that each of them ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple, get_args

from perdure.core import identity as ids
from perdure.core.lengths import check_length
from perdure.core.limits import (
    DRAIN_MS,
    HISTORY_TURNS_MAX,
    IDLE_TIMEOUT_MS,
    LEASE_MS,
    PERSIST_WAIT_MS,
    STRIKES_MAX_TURN,
)
from perdure.core.records import Claim, DeliveryRecord, RunManifest, RunRecord
from perdure.durable.outbox import Outbox
from perdure.durable.ring import Ring
from perdure.durable.worker import Worker
from perdure.errors import (
    AttachmentsNotShownError,
    RunInputMismatchError,
    StoreUnavailableError,
    UsageError,
)
from perdure.store.closing import before_close
from perdure.store.protocol import RunStore, checked_store
from perdure.turn.attachments import Attachment, check_urls, checked_schemes
from perdure.turn.closing import Produce, TurnSettings
from perdure.turn.ending import finished_turn
from perdure.turn.hooks import ChatTurnHooks, call_hook
from perdure.turn.identity import Asked, ChatTurnIdentity, chat_manifest, check_identity
from perdure.turn.owning import Busy, OwnedTurns, Wish
from perdure.turn.reading import Reading, Replay, known_turn, lines, open_reading
from perdure.turn.recovery import Policy
from perdure.turn.reference import ReferenceChatTurnEngine, TurnBody
from perdure.turn.registry import ring_of
from perdure.turn.revising import check_revision, next_revision
from perdure.turn.upstream import check_policy
from perdure.turn.wire.codecs import codec_for
from perdure.turn.wire.events import Dialect

logger = logging.getLogger("perdure.turn")


class SubmittedTurn(NamedTuple):
    """An accepted turn. `created`: this call began it; else it was attached to, or is replayed.

    `lines(after=None, wire="ndjson", dialect="perdure")` reads it; `identity` names it, with the
    revision that it has. A turn that is queued has its `run` in the state "queued".
    """

    created: bool
    run: RunRecord
    lines: Callable[..., AsyncGenerator[bytes, None]]
    identity: ChatTurnIdentity


class ChatTurnEngine:
    """Runs chat turns as detached, leased jobs.

    `produce(turn)` answers a turn from what the store knows, so any process with an engine of the
    same `name` on the same database goes on with a turn that lost its worker. A response is only
    a reader: that a client leaves ends nothing, `stop` ends a turn, `aclose` gives turns away.

    `on_interrupted` says what becomes of a turn whose readers have seen some of a lost attempt:
    "rerun" (they are told to forget it), "continue" (the model is asked to go on where its text
    ends; the producer needs a method for it, as that of `answer_with` has), "fail", or a coroutine
    function that decides by an InterruptedTurn. `busy` says what becomes of a turn whose session
    has another one in flight: "reject" (SessionBusyError), "queue" (it begins in its order, on any
    worker) or "replace" (what is in flight or in line is stopped, and keeps what there is of it).
    A producer is given the messages of at most `history_turns_max` turns before its own, the
    nearest (None: all). `attachment_schemes` are those that addresses of attachments may have
    beside http and https. `recover`: from its first use on, the engine looks for turns that nobody
    works on. A turn of which nothing comes for `idle_timeout_ms` fails; while a step runs that asks
    no model, that time stands still. `expose_errors` shows readers the message of any exception.
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
        busy: Busy = "reject",
        replay: Replay = "frames",
        lease_ms: int = LEASE_MS,
        strikes_max: int = STRIKES_MAX_TURN,
        idle_timeout_ms: int = IDLE_TIMEOUT_MS,
        history_turns_max: int | None = HISTORY_TURNS_MAX,
        attachment_schemes: Sequence[str] = (),
        recover: bool = True,
        expose_errors: bool = False,
    ) -> None:
        check_policy(on_interrupted, produce)
        self.name = ids.check_id(name, name="name")
        check_length(lease_ms, name="lease_ms", least=1)
        check_length(idle_timeout_ms, name="idle_timeout_ms", least=1)
        if ids.check_index(strikes_max, name="strikes_max") < 1:
            raise UsageError("strikes_max is 0, but must be 1 or more")
        if replay not in get_args(Replay):
            raise UsageError(f"replay must be 'frames' or 'result', it is {replay!r:.40}")
        if history_turns_max is not None:
            ids.check_index(history_turns_max, name="history_turns_max")
        self._attachment_schemes = checked_schemes(attachment_schemes)
        self._store = checked_store(store)
        self._project_id = project_id
        self._domain = domain
        self._replay: Replay = replay
        self._recover = recover
        self._busy: Busy = _checked_busy(busy)
        self._hooks = hooks or ChatTurnHooks()
        self._outbox = Outbox(store, {name: self.deliver}, on_failure=self._look_in)
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
            history_turns_max=history_turns_max,
        )
        self._turns = OwnedTurns(store, self._settings, is_swept=recover)
        self._reference = ReferenceChatTurnEngine()
        self._recovery: asyncio.Task[None] | None = None
        self._worker: Worker | None = None
        self._forget: Callable[[], None] | None = None
        self._closed = False
        self._cut_off = False

    # For users.

    @property
    def store(self) -> RunStore:
        """The store that its turns are kept in."""
        return self._store

    async def submit(
        self,
        identity: ChatTurnIdentity,
        user_message: str | None,
        *,
        model: str | None = None,
        attachments: Sequence[Attachment] | None = None,
        retry: bool = False,
        regenerate: bool = False,
        busy: Busy | None = None,
    ) -> SubmittedTurn:
        """Accept a turn, durably, and begin to answer it; idempotent.

        The same turn with the same message and model is attached to, or replayed when it is over;
        a failed or parked one runs again with `retry`. A `revision` in the identity is another
        answer, or (with another message) an edit, which stands behind the newest answer before it.

        `regenerate` makes the next revision of a turn, whichever that is, behind the same parent
        as the newest one, whose message, model and attachments it has where none are given: each
        such call asks anew. `attachments` are references to files that the product keeps; they are
        part of the message, and others make another one. `busy` stands in for the engine's own.

        Raises UsageError, AttachmentsNotShownError (the producer says by `shows_attachments` that
        it shows none), RunInputMismatchError (the turn has another message),
        SessionBusyError (another turn of the session is in flight or in line),
        LeaseHeldError (a worker of another runtime is at it, so there is no stream yet),
        RunNotFoundError (the session is somebody else's), StoreError.
        """
        self._start()
        wish = Wish(retry, _checked_busy(self._busy if busy is None else busy))
        store = self._store.for_tenant(check_identity(identity).tenant_id)
        asked = Asked(user_message, model, attachments)
        if regenerate:
            return await self._regenerate(store, identity, asked, wish)
        await check_revision(store, identity)
        return await self._submit(identity, asked, wish)

    def read(
        self,
        identity: ChatTurnIdentity,
        *,
        after: str | None = None,
        wire: str = "ndjson",
        dialect: Dialect = "perdure",
    ) -> AsyncGenerator[bytes, None]:
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
        return await self._open(identity, await known_turn(store, identity), after, dialect)

    async def stop(self, identity: ChatTurnIdentity) -> RunRecord:
        """Stop a turn durably, wherever it runs; its partial answer is kept.

        One that is over is returned as it is. Raises RunNotFoundError.
        """
        self._start()
        return await self._turns.stop(identity)

    def run_turn(self, **arguments: Any) -> TurnBody:
        """Run a turn the reference's way: `durable_chat_turn_engine.run_turn` on this store.

        `store`, `hooks`, `project_id` and `domain` are those of the engine where they are not
        given; the hooks must have a `produce`.
        """
        own: dict[str, Any] = {
            "store": self._store,
            "hooks": self._hooks,
            "project_id": self._project_id,
            "domain": self._domain,
        }
        return self._reference.run_turn(**{**own, **arguments})

    async def aclose(self, *, drain_ms: int = DRAIN_MS) -> None:
        """End the ownership of turns: let them finish for a while, then give them back.

        Readers of turns that were given back are cut off; any engine of the same name goes on.
        """
        self._closed = True
        if self._forget is not None:
            self._forget()
        resting = [
            self._turns.give_back(drain_ms=drain_ms),
            self._reference.aclose(drain_ms=drain_ms),
        ]
        if self._worker is not None:
            resting.append(self._worker.drain(timeout_ms=drain_ms))
        try:
            await asyncio.gather(*resting)
            await self._outbox.settle(timeout_ms=PERSIST_WAIT_MS)
        finally:
            # Whoever has no time to wait gives back all the same.
            self._turns.drain()
            self._reference.drain()
            self._cut_off = True
            if self._recovery is not None:
                self._recovery.cancel()
        if self._recovery is not None:
            await asyncio.gather(self._recovery, return_exceptions=True)

    def _look_in(self, pause_ms: int) -> None:
        if self._worker is not None:
            self._worker.wake_in(pause_ms)

    def start(self) -> None:
        """Look for turns that nobody works on, without waiting for the first call."""
        self._start()

    # For a worker, or another engine that works on its turns.

    @property
    def settings(self) -> TurnSettings:
        return self._settings

    def manifest_of(self, identity: ChatTurnIdentity, asked: Asked) -> RunManifest:
        """Return what is stored of a question. Raises UsageError, AttachmentsNotShownError."""
        message: Any = asked.message
        attachments = asked.attachments or ()
        self._check_attachments(attachments)
        return chat_manifest(
            identity,
            message,
            project_id=self._project_id,
            domain=self._domain,
            model=asked.model,
            attachments=attachments,
        )

    def work(self, claim: Claim, *, asked_ms: float) -> Awaitable[None]:
        """Go on with a turn that a worker has claimed; its lease counts from `asked_ms`."""
        return self._turns.work(claim, asked_ms=asked_ms)

    async def deliver(self, delivery: DeliveryRecord) -> None:
        """Call the hook that a delivery is for."""
        finished = await finished_turn(self._store, delivery)
        if finished is not None:
            await call_hook(getattr(self._hooks, delivery.topic), finished)

    # Parts of the above.

    def _start(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the engine was closed")
        if self._forget is None:
            self._forget = before_close(self._store.handle, partial(self.aclose, drain_ms=0))
        if self._recover and self._recovery is None:
            self._worker = Worker(self._store, engines=(self,), lease_ms=self._settings.lease_ms)
            self._recovery = asyncio.get_running_loop().create_task(self._worker.run())
            self._recovery.add_done_callback(_note_end)

    async def _regenerate(
        self, store: RunStore, identity: ChatTurnIdentity, asked: Asked, wish: Wish
    ) -> SubmittedTurn:
        tried: int | None = None
        while True:
            new = await next_revision(store, identity, asked)
            wish = wish._replace(parent=new.parent)
            try:
                return await self._submit(new.identity, new.asked, wish)
            except RunInputMismatchError:
                # Somebody was faster to revise it, with another message.
                if tried == new.identity.revision:
                    raise
                tried = new.identity.revision

    async def _submit(self, identity: ChatTurnIdentity, asked: Asked, wish: Wish) -> SubmittedTurn:
        created, run = await self._turns.open(identity, self.manifest_of(identity, asked), wish)

        def read(
            *, after: str | None = None, wire: str = "ndjson", dialect: Dialect = "perdure"
        ) -> AsyncGenerator[bytes, None]:
            return self._lines(identity, run, after, wire, dialect)

        return SubmittedTurn(created, run, read, identity)

    def _check_attachments(self, attachments: Sequence[Attachment]) -> None:
        if not attachments:
            return
        check_urls(attachments, schemes=self._attachment_schemes)
        if not getattr(self._settings.produce, "shows_attachments", True):
            raise AttachmentsNotShownError(
                "the message has attachments, and the producer shows none to its model: give "
                "answer_with an `attachment_part` (perdure serve: --attachments text or images)"
            )

    async def _read(
        self, identity: ChatTurnIdentity, after: str | None, wire: str, dialect: Dialect
    ) -> AsyncGenerator[bytes, None]:
        self._start()
        run = await known_turn(self._store.for_tenant(identity.tenant_id), identity)
        async with aclosing(self._lines(identity, run, after, wire, dialect)) as found:
            async for line in found:
                yield line

    async def _lines(
        self,
        identity: ChatTurnIdentity,
        run: RunRecord,
        after: str | None,
        wire: str,
        dialect: Dialect,
    ) -> AsyncGenerator[bytes, None]:
        codec = codec_for(wire)
        reading = await self._open(identity, run, after, dialect)
        async with aclosing(lines(reading, codec)) as found:
            async for line in found:
                yield line

    async def _open(
        self, identity: ChatTurnIdentity, run: RunRecord, after: str | None, dialect: Dialect
    ) -> Reading:
        return await open_reading(
            self._store.for_tenant(identity.tenant_id),
            run,
            after=after,
            find_ring=partial(self._find_ring, ids.stored_id(run.tenant, run.run_id)),
            turn=identity,
            dialect=dialect,
            replay=self._replay,
        )

    def _find_ring(self, stored_id: str) -> Ring | None:
        if self._cut_off:
            raise StoreUnavailableError("the engine was closed: read on where another one runs")
        return ring_of(self._store.handle, stored_id)


def _checked_busy(busy: Busy) -> Busy:
    if busy not in get_args(Busy):
        raise UsageError(f"busy must be 'reject', 'queue' or 'replace', it is {busy!r:.40}")
    return busy


def _note_end(recovery: asyncio.Task[None]) -> None:
    if not recovery.cancelled() and recovery.exception() is not None:
        logger.error("recovery of turns has ended", exc_info=recovery.exception())
