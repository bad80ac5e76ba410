"""A chat turn that another engine works on: it brings the attempts, we keep the stream."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Final, NamedTuple

from perdure.core import identity as ids
from perdure.core.changes import Release
from perdure.core.effects import new_token
from perdure.core.records import Claim, Lease, RunManifest, RunRecord
from perdure.core.transitions import RESTING_STATES
from perdure.durable.claiming import Claiming
from perdure.engines.hosted_steps import HostedSteps
from perdure.engines.hosting import TurnHost
from perdure.errors import LeaseLostError, RunInputMismatchError
from perdure.store.protocol import RunStore
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import Asked, ChatTurnIdentity, check_identity, run_id_of, session_key
from perdure.turn.owning import OwnedTurns
from perdure.turn.reading import known_turn
from perdure.turn.registry import live_turns

logger = logging.getLogger("perdure.engines")

_LOOK_MS: Final = 1_000
"""Hints may be lost, so whoever waits looks by himself at least this often."""


class HostedTurns:
    """The turns of `engine` that another engine, the host, works on.

    A turn is claimed in the engine's store with the host's call as its holder, and worked on as
    the engine would: the same producer, hooks, ladder of recovery, and one write for its end. Its
    steps and events are the host's. No worker of ours ever goes on with it: the host does. It is
    read and stopped through the engine, in any process.
    """

    def __init__(self, engine: ChatTurnEngine) -> None:
        self._engine = engine

    async def attend(
        self, turn: ChatTurnIdentity, asked: Asked, host: TurnHost, *, retry: bool = False
    ) -> RunRecord:
        """Answer the turn, or go on with it, and return its run as it ended; idempotent.

        It is the newest attempt of its call, which the host vouches for: an earlier one that
        still runs loses the turn at once. `retry` answers a failed or parked turn again.
        Cancelled, it gives the turn back for the next attempt.

        Raises RunInputMismatchError (the turn has another message), SessionBusyError (an earlier
        turn of the session has not ended), LeaseHeldError (another call works on the turn),
        LeaseLostError (it does now), UsageError, StoreError.
        """
        engine = self._engine
        engine.start()
        store = engine.store.for_tenant(check_identity(turn).tenant_id)
        manifest = engine.manifest_of(turn, asked)
        taken = await self._take_over(store, turn, manifest, host, retry=retry)
        if taken.claim.lease is None:
            return taken.claim.run
        settings = engine.settings._replace(steps=partial(HostedSteps, host))
        await OwnedTurns(engine.store, settings).work(taken.claim, asked_ms=taken.asked_ms)
        run = await store.read_run(run_id_of(turn))
        if run is None or run.state not in RESTING_STATES:
            raise LeaseLostError(f"this attempt at the turn {run_id_of(turn)!r} is over")
        return run

    async def ended(self, turn: ChatTurnIdentity, asked: Asked) -> RunRecord:
        """Return the run of a turn that another call answers, once it has ended.

        Raises RunNotFoundError, RunInputMismatchError (the turn has another message).
        """
        store = self._engine.store.for_tenant(check_identity(turn).tenant_id)
        wanted = ids.manifest_hash(self._engine.manifest_of(turn, asked))
        while True:
            run = await known_turn(store, turn)
            if run.manifest_hash != wanted:
                raise RunInputMismatchError(f"the turn {run.run_id!r} has another message or model")
            if run.state in RESTING_STATES:
                return run
            await store.wait_for_change(run.run_id, timeout_ms=_LOOK_MS)

    async def _take_over(
        self,
        store: RunStore,
        turn: ChatTurnIdentity,
        manifest: RunManifest,
        host: TurnHost,
        *,
        retry: bool,
    ) -> _Taken:
        """Claim the turn, after ending an earlier attempt of the same call that still holds it."""
        run_id = run_id_of(turn)
        holder = f"{_holders(host)}{new_token()}"
        run = await store.read_run(run_id)
        if run is not None and (run.lease_holder_id or "").startswith(_holders(host)):
            live = live_turns.find(store.handle, ids.stored_id(store.tenant, run_id))
            if live is not None and live.work is not None:
                live.work.drain()
            await self._supersede(store, run)
        claiming = _HostedClaiming(
            store,
            run_id,
            manifest,
            worker_id=holder,
            lease_ms=self._engine.settings.lease_ms,
            session=session_key(turn),
            retry=retry,
        )
        return _Taken(await claiming.claim(), claiming.asked_ms)

    async def _supersede(self, store: RunStore, run: RunRecord) -> None:
        """Give back the lease of an earlier attempt in its place, which fences it."""
        holder = run.lease_holder_id
        assert holder is not None
        stored_id = ids.stored_id(run.tenant, run.run_id)
        lease = Lease(stored_id, run.epoch, _token_of(holder), holder)
        try:
            await store.write(lease, Release("superseded"))
        except LeaseLostError:
            logger.debug("the earlier attempt at %r has just ended by itself", run.run_id)


class _HostedClaiming(Claiming):
    """A claim whose lease the next attempt of the same call can end."""

    def __init__(self, *run: Any, worker_id: str, **options: Any) -> None:
        super().__init__(*run, worker_id=worker_id, **options)
        self._ask = partial(self._ask, token=_token_of(worker_id))


class _Taken(NamedTuple):
    claim: Claim
    asked_ms: float


def _holders(host: TurnHost) -> str:
    """Return how the names of all attempts at the host's call begin, and no other holder's."""
    return f"{host.name}:{host.invocation}:"


def _token_of(holder: str) -> str:
    """Return the token of a lease that the next attempt of the same call must be able to end.

    It keeps accidents apart, as every token does; whoever may write to the store needs none.
    """
    return ids.canonical_hash(["hosted", holder])[:32]
