"""Traces that are kept beside the runs of which they tell: their names, and how they go."""

from __future__ import annotations

from typing import Final

from perdure.core.changes import EndRun
from perdure.core.identity import canonical_hash
from perdure.core.limits import ID_BYTES_MAX
from perdure.core.records import RunRecord
from perdure.core.transitions import RESTING_STATES
from perdure.durable.retrying import claim_as_stored
from perdure.errors import LeaseHeldError, LeaseLostError
from perdure.store.erasure import erasure_of
from perdure.store.protocol import RunStore

TRACE_PREFIX: Final = "agent-trace:"
"""How the id of the run begins that keeps a trace."""


TRACE_HANDLER: Final = "agent-traces"
"""By this handler the runs that keep traces are found; no worker serves it."""
KEPT_HANDLER: Final = "agent-kept"
"""The handler of other runs that keep something, and have nothing to do; no worker serves it."""


def kept_name(prefix: str, name: str) -> str:
    """Return the id of the run that keeps what is called `name`: the hash of a long name."""
    whole = prefix + name
    return whole if len(whole.encode()) <= ID_BYTES_MAX else prefix + canonical_hash(name)


def trace_id(run_id: str, number: int) -> str:
    """Return the id of the trace of a run's first loop, or of a further one."""
    return run_id if number == 1 else f"{run_id}#{number}"


async def remove_traces(store: RunStore, run_id: str) -> int:
    """Delete the traces of all loops of a run of the store's tenant; return how many there were.

    Whoever is to do it must have the right to delete the run. Raises StoreError.
    """
    number = 0
    while True:
        name = kept_name(TRACE_PREFIX, trace_id(run_id, number + 1))
        run = await store.read_run(name)
        if run is None:
            return number
        if run.state not in RESTING_STATES:
            await _end_lost(store, run)
        # One that belongs to somebody is a session, too, of its own name.
        if await erasure_of(store).remove_session(name, queued=True) is None:
            await store.delete(name)
        number += 1


async def _end_lost(store: RunStore, run: RunRecord) -> None:
    """End the run of a trace that a lost process has begun, and not ended."""
    if run.manifest is None:
        return
    try:
        claim = await claim_as_stored(store, run)
        if claim.lease is not None:
            await store.write(claim.lease, EndRun("completed"))
    except (LeaseHeldError, LeaseLostError):
        await store.wait_for_change(run.run_id, timeout_ms=250)
