"""Runs brought into each phase of their life, with something of everything recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

from perdure.core.changes import IntendUsage, Release, SaveHandle, Suspend
from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease
from perdure.core.transitions import Phase
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab
from perdure.testing.samples import HANDLER, begun, completed, delivery, ended, hold, manifest, row

Scene = Phase | Literal["requeued"]
"""A phase; a queued run may be new, or have been failed before."""

SCENES: Final[tuple[Scene, ...]] = (*get_args(Phase), "requeued")

_LEAVE: Final[Mapping[str, Suspend | Release]] = {
    "released": Release(),
    "sleeping": Suspend("sleeping", wake_in_ms=3_600_000),
    "waiting": Suspend("waiting", wake_key="later"),
    "parked": Suspend("parked", reason="strikes"),
}


class Staged(NamedTuple):
    """A run in a phase, as a case finds it: a handle, its id, and the newest lease it had."""

    store: RunStore
    run_id: str
    lease: Lease


def phase_of_scene(scene: Scene) -> Phase:
    """Return the phase that the table of life knows `scene` by."""
    return "queued" if scene == "requeued" else scene


async def stage(lab: StoreLab, scene: Scene, run_id: str = "run") -> Staged:
    """Bring a run into `scene` and move the clock on a little, so that later marks show."""
    store = await lab.open()
    lease = Lease(run_id, 1, "0" * 32, "ann")
    if scene == "queued":
        await store.enqueue(run_id, manifest(), handler=HANDLER)
    elif scene != "none":
        lease = await _live(lab, store, scene, run_id)
    lab.clock.advance(1)
    return Staged(store, run_id, lease)


async def _live(lab: StoreLab, store: RunStore, scene: Scene, run_id: str) -> Lease:
    lease = await hold(store, run_id)
    await store.write(
        lease,
        completed(0, {"answer": 42}),
        begun(1),
        row(1, "for"),
        row(2, "ty", "."),
        SaveHandle('"call-1"'),
        IntendUsage(0, model="m"),
        delivery(0),
    )
    await store.emit_event(run_id, "fact", {"known": True})
    if scene == "lapsed":
        lab.clock.advance(LEASE_MS)
    elif scene == "requeued":
        await store.write(lease, ended("failed"))
        await store.enqueue(run_id, manifest(), handler=HANDLER, retry=True)
    elif scene in _LEAVE:
        await store.write(lease, _LEAVE[scene])
    elif scene != "held":
        await store.write(lease, ended(scene))
    return lease
