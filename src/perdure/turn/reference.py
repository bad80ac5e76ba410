"""run_turn: the reference's call, with the producer as a closure of one request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final, NamedTuple

from perdure.core import identity as ids
from perdure.core.effects import jittered
from perdure.core.limits import (
    DELIVERY_BACKOFF_MAX_MS,
    DELIVERY_BACKOFF_MS,
    DELIVERY_TRIES_MAX,
    IDLE_TIMEOUT_MS,
    LEASE_MS,
    PERSIST_WAIT_MS,
    STRIKES_MAX_TURN,
)
from perdure.core.records import (
    Claim,
    DeliveryRecord,
    JsonValue,
    RunManifest,
    RunRecord,
    SessionKey,
)
from perdure.durable.live import LiveRun
from perdure.durable.outbox import Outbox
from perdure.errors import LeaseHeldError, RunInputMismatchError, StoreError
from perdure.store.protocol import RunStore
from perdure.turn import ending
from perdure.turn.closing import TurnSettings
from perdure.turn.handout import Turn
from perdure.turn.hooks import ChatTurnHooks, EventFollower, call_hook, flush_trace
from perdure.turn.identity import ChatTurnIdentity, chat_manifest, check_identity, run_id_of
from perdure.turn.live import LiveTurn
from perdure.turn.reading import lines, open_reading
from perdure.turn.registry import live_turns, ring_of
from perdure.turn.wire import events
from perdure.turn.wire.events import Addressee, Event
from perdure.turn.wire.ndjson import CONTENT_TYPE, NDJSON

logger = logging.getLogger("perdure.turn")

HANDLER: Final = "run_turn"
"""The name under which the deliveries of such turns wait; no worker knows how to make them."""

Log = Callable[[str, Mapping[str, JsonValue]], None]


class TurnBody(NamedTuple):
    """The response to a turn: bytes of NDJSON, and their content type."""

    body: AsyncIterator[bytes]
    content_type: str


class ReferenceChatTurnEngine:
    """Runs turns whose producer, hooks and store come with each call; it keeps no state."""

    def run_turn(
        self,
        *,
        store: RunStore,
        identity: ChatTurnIdentity,
        user_message: str,
        project_id: str,
        hooks: ChatTurnHooks,
        domain: str = "chat",
        model: str | None = None,
        wait_until: Callable[[Awaitable[None]], None] | None = None,
        worker_id: str | None = None,
        lease_ms: int = LEASE_MS,
        log: Log | None = None,
    ) -> TurnBody:
        """Answer a turn with `hooks.produce()` and return its body at once; never raises.

        The work starts with this call, read or not, on the store as it is given (no tenant is
        added). A turn that is live in this process is joined. A finished one replays as a single
        `result` event. Every failure is an `error` and a `session.run.failed` line.
        **A turn that loses its worker is continued only by the same call**, since nobody else
        has its producer: use `ChatTurnEngine.submit` where that matters. Hooks that fail are
        tried again while this process lives, and by the next call for the same turn.

        `wait_until` is handed everything that outlives the body, for hosts that end a request
        with its response. `log(message, meta)` hears of failures.
        """
        request = _Request(
            store,
            identity,
            hooks,
            make_manifest=lambda: chat_manifest(
                check_identity(identity),
                user_message,
                project_id=project_id,
                domain=domain,
                model=model,
            ),
            worker_id=worker_id or ids.derive_worker_id(),
            lease_ms=lease_ms,
            log=log or _no_log,
        )
        call = _Call(request)
        opening = asyncio.get_running_loop().create_task(call.open())
        _opening.add(opening)
        opening.add_done_callback(_opening.discard)
        if wait_until is not None:
            _hand_over(wait_until, call.done(opening))
        return TurnBody(call.body(opening), CONTENT_TYPE)


durable_chat_turn_engine: Final = ReferenceChatTurnEngine()
"""The reference's ready instance."""

_opening: Final[set[asyncio.Task[Any]]] = set()
"""The loop holds tasks weakly: what outlives its caller is held here."""


def _no_log(message: str, meta: Mapping[str, JsonValue]) -> None:
    """The reference's default: silence (our own logger speaks anyway)."""


def _hand_over(wait_until: Callable[[Awaitable[None]], None], done: Awaitable[None]) -> None:
    try:
        wait_until(done)
    except Exception:
        logger.exception("wait_until failed")


class _Request(NamedTuple):
    store: RunStore
    identity: ChatTurnIdentity
    hooks: ChatTurnHooks
    make_manifest: Callable[[], RunManifest]
    worker_id: str
    lease_ms: int
    log: Log


class _Call:
    def __init__(self, request: _Request) -> None:
        self._request = request
        self._store = request.store
        self._identity = identity = request.identity
        self._hooks = request.hooks
        self._log = request.log
        self._to = Addressee(identity.tenant_id, identity.session_id, identity.turn_index)
        self._outbox = Outbox(self._store, {HANDLER: self._deliver})
        self._turn: LiveTurn | None = None

    # The body.

    async def body(self, opening: asyncio.Task[RunRecord]) -> AsyncIterator[bytes]:
        """Yield the lines; whatever happens, the last one says how it ended."""
        codec = NDJSON()
        yield codec.encode(events.started(self._to), None)
        try:
            run = await asyncio.shield(opening)
            find_ring = partial(ring_of, self._store.handle, self._stored_id)
            reading = await open_reading(
                self._store,
                run,
                after=None,
                find_ring=find_ring,
                turn=self._identity,
                replay="result",
            )
            is_first = True
            async with aclosing(lines(reading, codec)) as found:
                async for line in found:
                    if not is_first:
                        yield line
                    is_first = False
        except Exception as error:
            for event in self._refusal(error):
                yield codec.encode(event, None)

    async def done(self, opening: asyncio.Task[RunRecord]) -> None:
        """Return when the turn is over and its hooks were called."""
        await asyncio.wait([opening])
        if self._turn is not None and self._turn.task is not None:
            await asyncio.wait([self._turn.task])
        await self._outbox.settle(timeout_ms=PERSIST_WAIT_MS)

    def _refusal(self, error: Exception) -> tuple[Event, ...]:
        if isinstance(error, LeaseHeldError):
            code, message, retryable = error.code, "This turn is already in flight.", True
        else:
            failure = ending.failure_of(error, expose=False)
            code, message, retryable = failure.code, failure.message, failure.retryable
        self._log("turn failed", {"error": message})
        return events.refused(self._to, code=code, message=message, retryable=retryable)

    # The work.

    @property
    def _stored_id(self) -> str:
        return ids.stored_id(self._store.tenant, run_id_of(self._identity))

    async def open(self) -> RunRecord:
        """Claim the turn and begin it, join the live one, or find it finished."""
        manifest = self._request.make_manifest()
        manifest_hash = ids.manifest_hash(manifest)
        handle, stored_id = self._store.handle, self._stored_id
        live = live_turns.find(handle, stored_id)
        if live is not None:
            return await self._join(live, manifest_hash)
        live = live_turns.enter(handle, stored_id, manifest_hash)
        try:
            return await self._claim(live, manifest)
        finally:
            if live.work is None:
                live_turns.leave(handle, stored_id)

    async def _join(self, live: LiveRun[LiveTurn], manifest_hash: str) -> RunRecord:
        if live.manifest_hash != manifest_hash:
            raise RunInputMismatchError("this turn has another message")
        await live.opened.wait()
        run = await self._store.read_run(run_id_of(self._identity))
        if run is None:
            raise LeaseHeldError("the turn could not be opened")
        return run

    async def _claim(self, live: LiveRun[LiveTurn], manifest: RunManifest) -> RunRecord:
        turn, request = self._identity, self._request
        claim = await self._store.start_or_resume(
            run_id_of(turn),
            manifest,
            worker_id=request.worker_id,
            lease_ms=request.lease_ms,
            session=SessionKey(turn.session_id, turn.turn_index, turn.revision),
            retry=True,
        )
        if claim.lease is None:
            self._background(self._follow_replay(claim))
            return claim.run
        work = LiveTurn(self._settings(), self._store, claim)
        self._turn = live.work = work
        handle, stored_id = self._store.handle, self._stored_id
        work.start().add_done_callback(lambda _: live_turns.leave(handle, stored_id))
        return claim.run

    def _settings(self) -> TurnSettings:
        def produce(_: Turn) -> Any:
            return self._hooks.produce()

        return TurnSettings(
            name=HANDLER,
            produce=produce,
            hooks=self._hooks,
            on_interrupted="rerun",
            lease_ms=self._request.lease_ms,
            strikes_max=STRIKES_MAX_TURN,
            idle_timeout_ms=IDLE_TIMEOUT_MS,
            expose_errors=False,
            follow_up=self._follow_up,
        )

    # What follows.

    async def _follow_replay(self, claim: Claim) -> None:
        """Tell `on_event` of a replay too, and make what an earlier call left undone."""
        text = ending.final_text_of(claim.steps[0].result if claim.steps else None)
        to = self._to._replace(replayed=True)
        follower = EventFollower(self._hooks)
        follower.tell((events.started(to), events.result(text), events.completed(to)))
        await follower.finish()
        await flush_trace(self._hooks)
        await self._deliver_until_settled(claim.run.run_id)

    async def _follow_up(self, stored_id: str) -> None:
        await self._outbox.follow_up(stored_id, wait_ms=PERSIST_WAIT_MS)
        self._background(self._deliver_until_settled(run_id_of(self._identity)))

    async def _deliver_until_settled(self, run_id: str) -> None:
        """Nobody else has these hooks, so this process tries until they succeed, or are dead."""
        pause_ms = DELIVERY_BACKOFF_MS
        try:
            for _ in range(DELIVERY_TRIES_MAX):
                while await self._outbox.deliver_due(run_id=self._stored_id):
                    continue
                details = await self._store.read_details(run_id)
                if all(delivery.state != "waiting" for delivery in details.deliveries):
                    return
                await asyncio.sleep(jittered(pause_ms) / 1_000)
                pause_ms = min(2 * pause_ms, DELIVERY_BACKOFF_MAX_MS)
        except StoreError as error:
            logger.warning("the deliveries of %r wait for the next call: %s", run_id, error)

    async def _deliver(self, delivery: DeliveryRecord) -> None:
        finished = await ending.finished_turn(self._store, delivery)
        if finished is None:
            return
        try:
            await call_hook(getattr(self._hooks, delivery.topic), finished)
        except Exception as error:
            self._log(f"{delivery.topic} failed", {"error": str(error)})
            raise

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        job = asyncio.get_running_loop().create_task(work)
        _opening.add(job)
        job.add_done_callback(_opening.discard)
