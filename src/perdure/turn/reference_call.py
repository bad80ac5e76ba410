"""One call of run_turn: the turn that it begins or joins, the lines of its body, its hooks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from perdure.core import identity as ids
from perdure.core.effects import jittered
from perdure.core.lengths import check_length
from perdure.core.limits import (
    DELIVERY_BACKOFF_MAX_MS,
    DELIVERY_BACKOFF_MS,
    DELIVERY_TRIES_MAX,
    IDLE_TIMEOUT_MS,
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
from perdure.core.transitions import RESTING_STATES
from perdure.durable.claiming import Claiming
from perdure.durable.outbox import Outbox
from perdure.durable.ring import Ring
from perdure.errors import (
    LeaseHeldError,
    RunInputMismatchError,
    StoreError,
    StoreUnavailableError,
)
from perdure.store.closing import before_close
from perdure.store.protocol import RunStore
from perdure.turn import ending
from perdure.turn.closing import TurnSettings
from perdure.turn.handout import Turn
from perdure.turn.hooks import ChatTurnHooks, EventFollower, call_hook, flush_trace
from perdure.turn.identity import ChatTurnIdentity, run_id_of
from perdure.turn.live import LiveTurn
from perdure.turn.owning import GIVE_BACK_MS
from perdure.turn.reading import lines, open_reading
from perdure.turn.registry import live_turns, ring_of
from perdure.turn.wire import events
from perdure.turn.wire.events import Addressee, Event
from perdure.turn.wire.ndjson import NDJSON

logger = logging.getLogger("perdure.turn")

HANDLER: Final = "run_turn"
"""The name under which the deliveries of such turns wait; no worker knows how to make them."""

T = TypeVar("T")
Log = Callable[[str, Mapping[str, JsonValue]], None]

_jobs: Final[set[asyncio.Task[Any]]] = set()
"""The loop holds tasks weakly: what outlives its caller is held here."""

_doors: Final[WeakValueDictionary[tuple[Hashable, str], asyncio.Lock]] = WeakValueDictionary()
"""The calls for one turn open it one after the other: each finds what the one before has begun."""


def _background(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    job = asyncio.get_running_loop().create_task(work)
    _jobs.add(job)
    job.add_done_callback(_ended)
    return job


def _ended(job: asyncio.Task[Any]) -> None:
    _jobs.discard(job)
    if not job.cancelled() and job.exception() is not None:
        logger.debug("a call of run_turn came to nothing: %r", job.exception())


class TurnRequest(NamedTuple):
    """The arguments of one call of run_turn."""

    store: RunStore
    identity: ChatTurnIdentity
    hooks: ChatTurnHooks
    make_manifest: Callable[[], RunManifest]
    worker_id: str
    lease_ms: int
    log: Log


class ReferenceCall:
    """One call of run_turn, which works whether its body is read or not."""

    def __init__(self, request: TurnRequest, *, is_refused: bool) -> None:
        self._request = request
        self._is_refused = is_refused
        self._drained = asyncio.Event()
        self._store = request.store
        self._identity = identity = request.identity
        self._hooks = request.hooks
        self._log = request.log
        self._to = Addressee(identity.tenant_id, identity.session_id, identity.turn_index)
        self._outbox = Outbox(self._store, {HANDLER: self._deliver})
        self._opening: asyncio.Task[RunRecord]
        self._turn: LiveTurn | None = None
        """The turn that this call has begun."""
        self._joined: LiveTurn | None = None
        """The turn of another call that this one reads along."""
        self._refused: tuple[Event, ...] | None = None
        self._telling: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin to open the turn; the task ends when it is over, or given back."""
        self._opening = _background(self._open())
        return _background(self._over())

    async def _over(self) -> None:
        await asyncio.wait([self._opening])
        if self._turn is not None and self._turn.task is not None:
            await asyncio.wait([self._turn.task])
        if self._telling is not None:
            await asyncio.wait([self._telling])

    async def done(self) -> None:
        """Return when the turn is over and its hooks were called."""
        await self._over()
        await self._outbox.settle(timeout_ms=PERSIST_WAIT_MS)

    async def give_back(self, *, drain_ms: int) -> None:
        """Let the turn finish for a while, then give it back, and see its hooks called."""
        over = asyncio.get_running_loop().create_task(self.done())
        await asyncio.wait([over], timeout=drain_ms / 1_000)
        self.drain()
        await asyncio.wait([over], timeout=GIVE_BACK_MS / 1_000)
        if not over.done():
            logger.error("the turn %r does not come to rest: its lease will lapse", self._stored_id)
            over.cancel()

    def drain(self) -> None:
        """Have the turn given back, even one that is just being opened."""
        self._drained.set()
        if self._turn is not None:
            self._turn.drain()

    # The body.

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the lines; whatever happens, the last one says how it ended."""
        codec = NDJSON()
        yield codec.encode(events.started(self._to), None)
        try:
            run = await asyncio.shield(self._opening)
            reading = await open_reading(
                self._store,
                run,
                after=None,
                find_ring=self._find_ring,
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
            for event in self._refused or self._refusal(error):
                yield codec.encode(event, None)

    def _find_ring(self) -> Ring | None:
        ring = ring_of(self._store.handle, self._stored_id)
        turn = self._turn or self._joined
        if turn is not None and turn.was_given_back and ring in (None, turn.ring):
            raise StoreUnavailableError("the turn was given back: the same call goes on with it")
        return ring

    def _refusal(self, error: Exception) -> tuple[Event, ...]:
        if isinstance(error, LeaseHeldError):
            code, message, retryable = error.code, "This turn is already in flight.", True
        else:
            failure = ending.failure_of(error, expose=False)
            code, message, retryable = failure.code, failure.message, failure.retryable
        self._failed("turn", error)
        return events.refused(self._to, code=code, message=message, retryable=retryable)

    # The work.

    @property
    def _stored_id(self) -> str:
        return ids.stored_id(self._store.tenant, run_id_of(self._identity))

    async def _open(self) -> RunRecord:
        """Open the turn; whoever is refused hears of it, whether he reads the body or not."""
        try:
            return await self._opened()
        except Exception as error:
            self._refused = self._refusal(error)
            self._telling = _background(self._tell(events.started(self._to), *self._refused))
            raise

    async def _opened(self) -> RunRecord:
        """Join the turn that is alive here, claim and begin it, or find it finished."""
        if self._is_refused:
            raise StoreUnavailableError("the engine was closed")
        check_length(self._request.lease_ms, name="lease_ms", least=1)
        manifest = self._request.make_manifest()
        manifest_hash = ids.manifest_hash(manifest)
        async with _doors.setdefault((self._store.handle, self._stored_id), asyncio.Lock()):
            run = await self._join(manifest_hash)
            if run is not None:
                return run
            try:
                return await self._claim(manifest, manifest_hash)
            except LeaseHeldError:
                # By an engine in this process, perhaps, which claimed it meanwhile.
                run = await self._join(manifest_hash)
                if run is None:
                    raise
                return run

    async def _join(self, manifest_hash: str) -> RunRecord | None:
        """Return the turn that is worked on here; None if there is none, or its end is recorded.

        What an attempt leaves behind, such as hooks that are still running, is no turn to join.
        """
        while (live := live_turns.find(self._store.handle, self._stored_id)) is not None:
            await live.opened.wait()
            work = live.work
            if work is None:
                continue
            if work.left.is_set():
                return None
            if work.run.manifest_hash != manifest_hash:
                raise RunInputMismatchError("this turn has another message")
            run = await self._store.read_run(run_id_of(self._identity))
            if run is not None and run.state not in RESTING_STATES:
                self._joined = work
                self._telling = _background(self._flush_behind(work))
                return run
            # Its end is recorded, and will be known here in a moment.
            await work.left.wait()
        return None

    async def _claim(self, manifest: RunManifest, manifest_hash: str) -> RunRecord:
        turn, request = self._identity, self._request
        claiming = Claiming(
            self._store,
            run_id_of(turn),
            manifest,
            worker_id=request.worker_id,
            lease_ms=request.lease_ms,
            session=SessionKey(turn.session_id, turn.turn_index, turn.revision),
            retry=True,
        )
        handle, stored_id = self._store.handle, self._stored_id
        live = live_turns.share(handle, stored_id, manifest_hash)
        try:
            claim = await claiming.claim()
            if claim.lease is not None:
                live.work = self._turn = self._begin(claim, asked_ms=claiming.asked_ms)
                return claim.run
        finally:
            if self._turn is None:
                live_turns.leave(handle, stored_id)
        self._telling = _background(self._tell_replay(claim))
        _background(self._deliver_until_settled(claim.run.run_id))
        return claim.run

    def _begin(self, claim: Claim, *, asked_ms: float) -> LiveTurn:
        handle, stored_id = self._store.handle, self._stored_id
        turn = LiveTurn(self._settings(), self._store, claim, asked_ms=asked_ms)
        forget = before_close(handle, partial(self.give_back, drain_ms=0))

        def over(_task: asyncio.Task[None]) -> None:
            forget()
            live_turns.leave(handle, stored_id)

        turn.start().add_done_callback(over)
        if self._drained.is_set():
            turn.drain()
        return turn

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
            on_failure=self._failed,
        )

    # What follows.

    async def _tell(self, *told: Event) -> None:
        """Tell `on_event` of what no live turn tells it, and flush the trace."""
        follower = EventFollower(self._hooks, self._failed)
        follower.tell(told)
        await follower.finish()
        await flush_trace(self._hooks, self._failed)

    async def _flush_behind(self, turn: LiveTurn) -> None:
        """Flush the trace of a call that reads along, once there is nothing more to read."""
        loop = asyncio.get_running_loop()
        ends = [loop.create_task(end.wait()) for end in (turn.left, self._drained)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        await flush_trace(self._hooks, self._failed)

    async def _tell_replay(self, claim: Claim) -> None:
        text = ending.final_text_of(claim.steps[0].result if claim.steps else None)
        to = self._to._replace(replayed=True)
        await self._tell(events.started(to), events.result(text), events.completed(to))

    async def _follow_up(self, stored_id: str) -> None:
        await self._outbox.follow_up(stored_id, wait_ms=PERSIST_WAIT_MS)
        _background(self._deliver_until_settled(run_id_of(self._identity)))

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
            self._failed(delivery.topic, error)
            raise

    def _failed(self, name: str, error: BaseException) -> None:
        """Tell the product's log, which may be broken itself, of a failed turn or hook."""
        try:
            self._log(f"{name} failed", {"error": str(error) or type(error).__name__})
        except Exception:
            logger.exception("the log of run_turn failed")
