"""run_durable_turn: a durable turn around any producer, with the caller's own kind of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Protocol, TypeVar

from perdure.core import identity
from perdure.core.lengths import check_length
from perdure.core.limits import LEASE_MS
from perdure.core.records import RunManifest, RunRecord
from perdure.store.protocol import RunStore
from perdure.turn.produced import ProducedTurn, TurnCall

EventT = TypeVar("EventT", covariant=True)


class DurableTurn(Protocol[EventT]):
    """The handle of a durable turn. All but `stream` is valid once the stream has drained."""

    @property
    def stream(self) -> AsyncIterator[EventT]: ...
    def final_text(self) -> str:
        """Return the turn's text. Raises UsageError before the stream has drained."""
        ...

    def replayed(self) -> bool:
        """Return whether the turn was finished before, so that nothing was produced."""
        ...

    def record(self) -> RunRecord:
        """Return the final run. Raises UsageError before the stream has drained."""
        ...


def run_durable_turn(
    store: RunStore,
    *,
    run_id: str,
    manifest: RunManifest,
    produce: Callable[[], Any],
    replay_event: Callable[[str], Any] | None = None,
    accumulate: Callable[[Any, str], str | None] | None = None,
    intent: str = "turn",
    worker_id: str | None = None,
    lease_ms: int = LEASE_MS,
) -> DurableTurn[Any]:
    """Return the handle of a turn whose answer is recorded once and then replayed for nothing.

    `produce()` returns a producer: an async iterator of events of any type, or an object with
    such a `stream` and a `final_text()`. Each event is given to `accumulate(event, text)`, whose
    str becomes the running text; the producer's own final text, when not empty, overrides it.
    A finished turn yields one event, `replay_event(final_text)`.

    Nothing happens before the stream is first pulled (but the input is hashed, which may raise
    NotSerializableError). From then on the turn is detached: a consumer that leaves does not end
    it, `store.close()` gives it back. Events are of any type, so they are not journaled: an
    interrupted turn is produced again from its start, and **only by the same call**. A second
    call in this process waits for the first, and gets the one event of the replay.

    The stream raises what the producer raises; LeaseHeldError (in flight in another process),
    RunInputMismatchError, DivergenceError (the run's step 0 is another one), RunStoppedError,
    RunParkedError (three attempts crashed), LeaseLostError, StoreError.
    """
    check_length(lease_ms, name="lease_ms", least=1)
    call = TurnCall(
        store,
        run_id=identity.check_run_id(run_id),
        manifest=manifest,
        produce=produce,
        replay_event=replay_event or _result_event,
        accumulate=accumulate,
        intent=intent,
        worker_id=worker_id or identity.derive_worker_id(),
        lease_ms=lease_ms,
    )
    return _Handle(ProducedTurn(call))


def _result_event(final_text: str) -> dict[str, Any]:
    return {"type": "result", "data": {"finalText": final_text}}


class _Handle:
    def __init__(self, turn: ProducedTurn) -> None:
        self._turn = turn
        self._stream: AsyncGenerator[Any, None] = turn.events()

    @property
    def stream(self) -> AsyncIterator[Any]:
        return self._stream

    def final_text(self) -> str:
        return self._turn.outcome()[0]

    def replayed(self) -> bool:
        return self._turn.was_replayed

    def record(self) -> RunRecord:
        return self._turn.outcome()[1]
