"""Claiming a run by name, so that a lost answer or a cancelled caller leaves no lease behind."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from perdure.core.changes import Release
from perdure.core.effects import monotonic_ms, new_token
from perdure.core.records import Claim, RunManifest, SessionKey
from perdure.durable.untorn import finish_even_if_cancelled
from perdure.errors import LeaseLostError, PerdureError, RunParkedError, RunStoppedError
from perdure.store.closing import asking_again, keeping_open
from perdure.store.protocol import RunStore

logger = logging.getLogger("perdure.claiming")


class Claiming:
    """A claim by name that is asked for until it is answered; cancelled, it holds nothing.

    A store that is closed meanwhile waits for the answer, and for what is begun with it.
    """

    def __init__(
        self,
        store: RunStore,
        run_id: str,
        manifest: RunManifest,
        *,
        worker_id: str,
        lease_ms: int,
        handler: str | None = None,
        session: SessionKey | None = None,
        retry: bool = False,
    ) -> None:
        self.asked_ms = monotonic_ms()
        """The monotonic moment of the last question."""
        self._store = store
        # The same token makes every further question one about the same claim.
        self._ask = partial(
            store.start_or_resume,
            run_id,
            manifest,
            worker_id=worker_id,
            lease_ms=lease_ms,
            handler=handler,
            session=session,
            retry=retry,
            token=new_token(),
        )

    async def claim(self) -> Claim:
        """Ask once; begin with what is granted before the next `await`.

        Raises what `RunStore.start_or_resume` raises.
        """
        self.asked_ms = monotonic_ms()
        with keeping_open(self._store.handle):
            try:
                return await self._ask()
            except asyncio.CancelledError:
                await finish_even_if_cancelled(self._give_back())
                raise

    async def _give_back(self) -> None:
        """Ask again for the answer that nobody waited for, and give back what was granted."""
        try:
            with asking_again(self._store.handle):
                claim = await self._ask()
            if claim.lease is not None:
                await self._store.write(claim.lease, Release("drained"))
        except PerdureError as error:
            logger.debug("a claim that was not waited for is not given back: %s", error)


def gone(claim: Claim) -> Exception:
    """Return what the owner of a run is told who finds that it ended without him."""
    run = claim.run
    if run.state == "stopped":
        return RunStoppedError(f"the run {run.run_id!r} was stopped")
    if run.state == "parked":
        return RunParkedError(f"the run {run.run_id!r} is parked: {run.reason}")
    return LeaseLostError(f"the run {run.run_id!r} was ended by another worker")
