"""The turns that an engine owns: opened once, worked on to their end, or given back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from perdure.core import identity as ids
from perdure.core.effects import monotonic_ms
from perdure.core.records import Claim, RunManifest, RunRecord, RunState
from perdure.core.transitions import ENDED_STATES, RESTING_STATES, queue_order
from perdure.durable.claiming import Claiming
from perdure.durable.live import LiveRun
from perdure.errors import (
    LeaseHeldError,
    RunInputMismatchError,
    RunNotFoundError,
    SessionBusyError,
)
from perdure.store.closing import before_close
from perdure.store.protocol import RunStore
from perdure.turn.closing import TurnSettings
from perdure.turn.identity import ChatTurnIdentity, run_id_of, session_key
from perdure.turn.live import LiveTurn
from perdure.turn.reading import known_turn
from perdure.turn.registry import live_turns
from perdure.turn.sleeping import Sleepers

logger = logging.getLogger("perdure.turn")

Busy = Literal["reject", "queue", "replace"]
"""What becomes of a turn whose session is busy: it is refused, waits its turn, or makes way."""

_UNFINISHED: Final[Sequence[RunState]] = ("queued", "running", "sleeping", "waiting")
_LINE_MAX: Final = 1_000
"""Turns of one session in line that are stopped for the one that replaces them."""
_LOOK_MS: Final = 100
"""How often a drain looks for turns that have fallen asleep."""
GIVE_BACK_MS: Final = 10_000
"""How long turns that were drained may take to clean up and to give their leases back."""


class Opened(NamedTuple):
    """A turn that was accepted; `created`: by this call."""

    created: bool
    run: RunRecord


class Wish(NamedTuple):
    """How a caller wants a turn: again if it failed, whatever its session is busy with, and where.

    `parent` is the run behind which it is to stand; '': it has no parent; None: the newest answer
    before it.
    """

    retry: bool = False
    busy: Busy = "reject"
    parent: str | None = None


class OwnedTurns:
    """Claims turns for one engine and works on them, whoever reads them.

    `is_swept`: a worker of this process looks for turns that may go on.
    """

    def __init__(self, store: RunStore, settings: TurnSettings, *, is_swept: bool = False) -> None:
        self._store = store
        self._settings = settings
        self._worker_id = ids.derive_worker_id()
        self._turns: set[LiveTurn] = set()
        self._sleepers = Sleepers(is_swept=is_swept)
        self._openings: set[asyncio.Task[Any]] = set()
        self._draining = False

    async def open(self, turn: ChatTurnIdentity, manifest: RunManifest, wish: Wish) -> Opened:
        """Claim the turn and begin it, attach to the live one, queue it, or find it at rest.

        A caller that is cancelled tears nothing: what was claimed is worked on. Raises what
        `RunStore.start_or_resume` raises, but LeaseHeldError only for a turn that another
        runtime works on, which has no stream to attach to.
        """
        opening = asyncio.get_running_loop().create_task(self._open(turn, manifest, wish))
        self._openings.add(opening)
        opening.add_done_callback(self._opened)
        return await asyncio.shield(opening)

    def work(self, claim: Claim, *, asked_ms: float) -> Awaitable[None]:
        """Go on with a turn that a worker has claimed, until it is over or waits for an event.

        Cancelling the waiting drains it.
        """
        assert claim.lease is not None
        self._sleepers.is_swept = True
        handle, stored_id = self._store.handle, claim.lease.run_id
        sleeping = live_turns.find(handle, stored_id)
        turn = None if sleeping is None else sleeping.work
        if turn is None or not turn.take(claim, asked_ms=asked_ms):
            live = live_turns.share(handle, stored_id, claim.run.manifest_hash)
            turn = self._begin(live, claim, asked_ms=asked_ms)
        return self._sleepers.attend(turn)

    async def stop(self, turn: ChatTurnIdentity) -> RunRecord:
        """Stop a turn wherever it runs; return it as it is then.

        A live holder in another process ends it soon. Raises RunNotFoundError.
        """
        store = self._store.for_tenant(turn.tenant_id)
        run = await known_turn(store, turn)
        run = await store.request_stop(run.run_id)
        work = await self._working_on(turn)
        if work is not None:
            work.stop()
            await work.left.wait()
            run = await store.read_run(run.run_id) or run
        if run.state not in ENDED_STATES:
            await self._stop_abandoned(store, run)
            run = await store.read_run(run.run_id) or run
        return run

    async def give_back(self, *, drain_ms: int) -> None:
        """Let the turns finish for `drain_ms`; then give back what is not finished.

        What sleeps is held by nobody, and gets no time.
        """
        try:
            await self._finished(within_ms=drain_ms)
        finally:
            self.drain()
        await self._finished(within_ms=GIVE_BACK_MS)
        for task in self._unfinished():
            logger.error("a turn does not come to rest: its lease will lapse")
            task.cancel()

    def drain(self) -> None:
        """Have every turn given back, those that are being opened too; do not wait for that."""
        self._draining = True
        for turn in self._turns:
            turn.drain()

    # Parts of the above.

    async def _finished(self, *, within_ms: int) -> None:
        deadline_ms = monotonic_ms() + within_ms
        while (work := self._unfinished()) and (left_ms := deadline_ms - monotonic_ms()) > 0:
            for turn in self._turns:
                if turn.is_asleep:
                    turn.drain()
            await asyncio.wait(work, timeout=min(left_ms, _LOOK_MS) / 1_000)

    def _unfinished(self) -> set[asyncio.Task[Any]]:
        return self._openings | {turn.task for turn in self._turns if turn.task is not None}

    def _opened(self, opening: asyncio.Task[Any]) -> None:
        self._openings.discard(opening)
        if not opening.cancelled() and opening.exception() is not None:
            logger.debug("a turn was not opened: %r", opening.exception())

    def _stored_id(self, turn: ChatTurnIdentity) -> str:
        return ids.stored_id(turn.tenant_id, run_id_of(turn))

    async def _open(self, turn: ChatTurnIdentity, manifest: RunManifest, wish: Wish) -> Opened:
        store = self._store.for_tenant(turn.tenant_id)
        try:
            return await self._begun(store, turn, manifest, wish)
        except SessionBusyError:
            queued = await self._queued(store, turn, manifest, wish)
            if queued is None:
                raise
        if wish.busy == "replace" and queued.run.state == "queued":
            await self._make_way(store, turn, queued.run)
        try:
            # The session may have become free before the turn was in line.
            begun = await self._begun(store, turn, manifest, wish)
        except SessionBusyError:
            return queued
        return begun._replace(created=queued.created)

    async def _begun(
        self, store: RunStore, turn: ChatTurnIdentity, manifest: RunManifest, wish: Wish
    ) -> Opened:
        """Attach to the turn if it is alive here, claim and begin it, or find it at rest."""
        handle, stored_id = store.handle, self._stored_id(turn)
        manifest_hash = ids.manifest_hash(manifest)
        while (work := await self._working_on(turn)) is not None:
            run = await known_turn(store, turn)
            if work.run.manifest_hash != manifest_hash:
                raise _other_message(turn)
            if run.state not in RESTING_STATES:
                return Opened(False, run)
            # Its end is recorded, and will be known here in a moment.
            await work.left.wait()
        live = live_turns.share(handle, stored_id, manifest_hash)
        claim: Claim | None = None
        claiming = self._claiming(store, turn, manifest, wish)
        try:
            claim = await self._claim(claiming, store, turn)
        finally:
            if claim is None or claim.lease is None:
                live_turns.leave(handle, stored_id)
        if claim is None:
            return Opened(False, _attachable(await known_turn(store, turn)))
        if claim.lease is not None:
            self._begin(live, claim, asked_ms=claiming.asked_ms)
        return Opened(claim.lease is not None and claim.lease.epoch == 1, claim.run)

    async def _queued(
        self, store: RunStore, turn: ChatTurnIdentity, manifest: RunManifest, wish: Wish
    ) -> Opened | None:
        """Return the turn as it waits for its busy session; None if it is not to wait."""
        run = await store.read_run(run_id_of(turn))
        if run is not None and run.state not in ("failed", "parked"):
            return Opened(False, run)
        if wish.busy == "reject":
            return None
        queued = await store.enqueue(
            run_id_of(turn),
            manifest,
            handler=self._settings.name,
            session=session_key(turn, parent=wish.parent),
            retry=wish.retry,
        )
        return Opened(run is None, queued)

    async def _make_way(self, store: RunStore, turn: ChatTurnIdentity, mine: RunRecord) -> None:
        """Stop what is in flight in the session, and what is queued before the turn.

        The line goes first, so that nothing of it begins meanwhile. What came later stays, also
        where it has begun by now: else turns that replace each other could all be stopped.
        """
        for state in _UNFINISHED:
            runs = await store.list_runs(session_id=turn.session_id, state=state, limit=_LINE_MAX)
            for run in runs:
                # A retry is older than what it replaces.
                has_order = state == "queued" or mine.epoch == 0
                is_behind = has_order and queue_order(run) > queue_order(mine)
                if run.run_id == mine.run_id or is_behind:
                    continue
                other = turn._replace(turn_index=run.turn_index or 0, revision=run.revision)
                with suppress(RunNotFoundError):
                    await self.stop(other)

    async def _working_on(self, turn: ChatTurnIdentity) -> LiveTurn | None:
        """Return the attempt at the turn that goes on in this process, if there is one.

        One whose end is recorded is over, though its hooks may still be running.
        """
        handle, stored_id = self._store.handle, self._stored_id(turn)
        while (live := live_turns.find(handle, stored_id)) is not None:
            await live.opened.wait()
            if live.work is not None:
                return None if live.work.left.is_set() else live.work
        return None

    def _claiming(
        self,
        store: RunStore,
        turn: ChatTurnIdentity,
        manifest: RunManifest,
        wish: Wish,
    ) -> Claiming:
        return Claiming(
            store,
            run_id_of(turn),
            manifest,
            worker_id=self._worker_id,
            lease_ms=self._settings.lease_ms,
            handler=self._settings.name,
            session=session_key(turn, parent=wish.parent),
            retry=wish.retry,
        )

    async def _claim(
        self, claiming: Claiming, store: RunStore, turn: ChatTurnIdentity
    ) -> Claim | None:
        """Return the claim; None if somebody else works on the turn."""
        try:
            return await claiming.claim()
        except LeaseHeldError:
            return None
        except RunNotFoundError as error:
            raise RunNotFoundError(f"there is no session {turn.session_id!r}") from error
        except RunInputMismatchError as error:
            # Whoever does not own the session must not even learn that the turn is there.
            await known_turn(store, turn)
            raise _other_message(turn) from error

    def _begin(
        self,
        live: LiveRun[LiveTurn],
        claim: Claim,
        *,
        asked_ms: float,
        stop: bool = False,
    ) -> LiveTurn:
        assert claim.lease is not None
        handle, stored_id = self._store.handle, claim.lease.run_id
        turn = LiveTurn(self._settings, self._store, claim, stop=stop, asked_ms=asked_ms)
        live.work = turn
        self._turns.add(turn)

        forget = before_close(handle, turn.rest)

        def over(_task: asyncio.Task[None]) -> None:
            forget()
            self._turns.discard(turn)
            self._sleepers.discard(turn)
            live_turns.leave(handle, stored_id)

        on_sleep = partial(self._sleepers.add, turn)
        turn.start(on_sleep=on_sleep).add_done_callback(over)
        if self._draining:
            turn.drain()
        return turn

    async def _stop_abandoned(self, store: RunStore, run: RunRecord) -> None:
        """End a turn that nobody works on as stopped.

        A live holder elsewhere does it himself, and whoever has the turn's hooks where we do not.
        """
        if run.manifest is None or run.handler not in (None, self._settings.name):
            return
        claiming = Claiming(
            store,
            run.run_id,
            run.manifest,
            worker_id=self._worker_id,
            lease_ms=self._settings.lease_ms,
            handler=self._settings.name,
            session=None,
            retry=run.state == "parked",
        )
        try:
            claim = await claiming.claim()
        except LeaseHeldError:
            return
        if claim.lease is not None:
            live = live_turns.share(store.handle, claim.lease.run_id, run.manifest_hash)
            turn = self._begin(live, claim, asked_ms=claiming.asked_ms, stop=True)
            await turn.left.wait()


def _attachable(run: RunRecord) -> RunRecord:
    """Return a turn that somebody else works on; LeaseHeldError if he journals nothing of it."""
    if run.epoch == 0 and run.state == "running":
        raise LeaseHeldError(
            f"turn {run.turn_index} of session {run.session_id!r} is being answered by a worker "
            f"of another runtime, which holds it until {run.lease_expires_at}: read it, or submit "
            "it again once it has ended"
        )
    return run


def _other_message(turn: ChatTurnIdentity) -> RunInputMismatchError:
    return RunInputMismatchError(
        f"turn {turn.turn_index} of session {turn.session_id!r} has another message or model"
    )
