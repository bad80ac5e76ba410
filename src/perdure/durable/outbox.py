"""The outbox: what must follow the end of a run is delivered until it succeeds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from perdure.core.limits import DELIVERY_CLAIM_MS
from perdure.core.records import DeliveryRecord
from perdure.core.rundata import delivery_backoff_ms
from perdure.durable.calls import is_cancelled
from perdure.errors import StoreError
from perdure.store.protocol import RunStore

logger = logging.getLogger("perdure.outbox")

Deliver = Callable[[DeliveryRecord], Awaitable[None]]

DELIVERY_TIMEOUT_MS: Final = DELIVERY_CLAIM_MS - 5_000
"""A delivery is given up before its claim lapses, so that it never runs twice at one time."""
_ERROR_CHARS_MAX: Final = 2_000


class Outbox:
    """Delivers the waiting deliveries of some handlers.

    Each is delivered at least once, per run in order. A failed one waits 1 s, 2 s, … up to 1 h;
    after 20 tries it is dead, and stays visible. `on_failure` is called with the ms until a
    failed one is due again.
    """

    def __init__(
        self,
        store: RunStore,
        handlers: Mapping[str, Deliver],
        *,
        on_failure: Callable[[int], None] | None = None,
    ) -> None:
        self._store = store
        self._on_failure = on_failure
        self._handlers = dict(handlers)
        self._jobs: set[asyncio.Task[None]] = set()

    async def claim_due(
        self, *, run_id: str | None = None, limit: int = 16
    ) -> Sequence[DeliveryRecord]:
        """Claim what is due now, of one run (its stored id) or of all; `deliver` each of them.

        A run's later delivery becomes due when its earlier one is settled, so look again while
        there are some.
        """
        return await self._store.claim_deliveries(tuple(self._handlers), limit=limit, run_id=run_id)

    async def deliver_due(self, *, run_id: str | None = None, limit: int = 16) -> int:
        """Claim and deliver what is due; return how many were tried."""
        deliveries = await self.claim_due(run_id=run_id, limit=limit)
        await asyncio.gather(*map(self.deliver, deliveries))
        return len(deliveries)

    async def follow_up(self, run_id: str, *, wait_ms: int) -> None:
        """Deliver what follows a run that has just ended; return after the first try, or soon.

        The rest goes on in the background. What does not succeed is left to any worker.
        """
        first_tried = asyncio.Event()
        job = asyncio.get_running_loop().create_task(self._deliver_all(run_id, first_tried))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        tried = asyncio.get_running_loop().create_task(first_tried.wait())
        await asyncio.wait([tried], timeout=wait_ms / 1_000)
        tried.cancel()

    async def settle(self, *, timeout_ms: int) -> None:
        """Wait for deliveries that are being made; whatever is left, a worker makes again."""
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=timeout_ms / 1_000)

    async def _deliver_all(self, run_id: str, first_tried: asyncio.Event) -> None:
        try:
            while await self.deliver_due(run_id=run_id):
                first_tried.set()
        except StoreError as error:
            logger.warning("the deliveries of %r wait for a worker: %s", run_id, error)
        finally:
            first_tried.set()

    async def deliver(self, delivery: DeliveryRecord) -> None:
        """Try a claimed delivery once and settle it; only a StoreError is raised.

        If the caller is cancelled, the claim is left to lapse: whoever finds it tries again.
        """
        error: str | None = None
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT_MS / 1_000):
                await self._handlers[delivery.handler](delivery)
        except (Exception, asyncio.CancelledError) as failure:
            # Whatever a product's hook raises, its delivery is tried again.
            if isinstance(failure, asyncio.CancelledError) and is_cancelled():
                raise
            logger.warning(
                "delivery %r of run %r failed (try %d)",
                delivery.topic,
                delivery.run_id,
                delivery.tries,
                exc_info=failure,
            )
            error = _text_of(failure)[:_ERROR_CHARS_MAX]
        await self._store.settle_delivery(delivery, error=error)
        if error is not None and self._on_failure is not None:
            self._on_failure(delivery_backoff_ms(delivery.tries))


def _text_of(failure: BaseException) -> str:
    if isinstance(failure, asyncio.CancelledError):
        return "CancelledError: the hook was cancelled from within"
    return f"{type(failure).__name__}: {failure}"
