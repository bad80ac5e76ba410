"""run_turn: the reference's call, with the producer as a closure of one request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from perdure.core import identity as ids
from perdure.core.limits import DRAIN_MS, LEASE_MS
from perdure.core.records import JsonValue
from perdure.store.protocol import RunStore
from perdure.turn.hooks import ChatTurnHooks
from perdure.turn.identity import ChatTurnIdentity, chat_manifest, check_identity
from perdure.turn.reference_call import Log, ReferenceCall, TurnRequest
from perdure.turn.wire.ndjson import CONTENT_TYPE

logger = logging.getLogger("perdure.turn")


class TurnBody(NamedTuple):
    """The response to a turn: bytes of NDJSON, and their content type."""

    body: AsyncIterator[bytes]
    content_type: str


class ReferenceChatTurnEngine:
    """Runs turns whose producer, hooks and store come with each call.

    It keeps nothing between calls but which of its turns are alive.
    """

    def __init__(self) -> None:
        self._calls: set[ReferenceCall] = set()
        self._is_closed = False

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
        added). A turn that is live in this process is joined: `on_event` of the call that
        began it hears its events, and each call flushes its own trace. A finished one replays as a
        single `result` event. Every failure is an `error` and a `session.run.failed` line, of which
        `on_event` hears too. Closing the store gives the turn back.
        **A turn that loses its worker is continued only by the same call**, since nobody else
        has its producer: use `ChatTurnEngine.submit` where that matters. Hooks that fail are
        tried again while this process lives, and by the next call for the same turn.

        `wait_until` is handed everything that outlives the body, for hosts that end a request
        with its response. `log(message, meta)` hears of failures.
        """
        request = TurnRequest(
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
        call = ReferenceCall(request, is_refused=self._is_closed)
        self._calls.add(call)
        call.start().add_done_callback(lambda _: self._calls.discard(call))
        if wait_until is not None:
            _hand_over(wait_until, call.done())
        return TurnBody(call.body(), CONTENT_TYPE)

    async def aclose(self, *, drain_ms: int = DRAIN_MS) -> None:
        """Let the turns that were begun here finish for a while, then give them back.

        Their readers are cut off; the same call, anywhere, goes on. A later call is refused.
        """
        self._is_closed = True
        try:
            calls = tuple(self._calls)
            await asyncio.gather(*(call.give_back(drain_ms=drain_ms) for call in calls))
        finally:
            self.drain()

    def drain(self) -> None:
        """Have the turns that were begun here given back; do not wait for that."""
        for call in self._calls:
            call.drain()


durable_chat_turn_engine: Final = ReferenceChatTurnEngine()
"""The reference's ready instance."""


def _no_log(message: str, meta: Mapping[str, JsonValue]) -> None:
    """The reference's default: silence (our own logger speaks anyway)."""


def _hand_over(wait_until: Callable[[Awaitable[None]], None], done: Awaitable[None]) -> None:
    try:
        wait_until(done)
    except Exception:
        logger.exception("wait_until failed")
