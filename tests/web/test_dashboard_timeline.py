"""Where attempts, leases, waits and steps stand on the line of a run."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from perdure.core.changes import Release, Suspend
from perdure.testing.samples import begun, completed, ended, hold, manifest
from perdure.web.dashboard.timeline import Bar, Timeline, timeline_of
from tests.web.dashboards import Desk, desk


async def line_of(there: Desk, run_id: str = "run") -> Timeline:
    run = await there.store.read_run(run_id)
    assert run is not None
    details = await there.store.read_details(run_id)
    steps = await there.store.read_steps(run_id)
    return timeline_of(run, details.attempts, steps, there.clock.iso())


class Piece(NamedTuple):
    """A bar, in whole percent."""

    begin: int
    end: int
    kind: str


def pieces(bars: list[Bar]) -> list[Piece]:
    placed = [Piece(round(bar.x), round(bar.x + bar.width), bar.kind) for bar in bars]
    return sorted(placed)


async def test_a_run_is_drawn_from_its_creation_to_its_end() -> None:
    there = desk()
    await there.store.enqueue("run", manifest(), handler="letters")
    there.clock.advance(10_000)
    lease = await hold(there.store)
    there.clock.advance(20_000)
    await there.store.write(lease, completed(0), Suspend("waiting", wake_key="go"))
    there.clock.advance(50_000)
    lease = await hold(there.store, worker_id="bob")
    there.clock.advance(20_000)
    await there.store.write(lease, ended())
    there.clock.advance(1_000_000)
    line = await line_of(there)
    assert pieces(list(line.run)) == [
        (0, 10, "wait"),
        (10, 30, "left"),
        (30, 80, "wait"),
        (80, 100, "completed"),
    ]
    assert pieces(list(line.leases)) == [(10, 30, "holder-0"), (80, 100, "holder-1")]
    assert [bar.label for bar in line.run][:2] == ["queued for 10s", "waiting for 50s"]
    assert line.length_ms == 100_000


async def test_what_a_crash_has_cost_belongs_to_the_lost_attempt() -> None:
    there = desk()
    lease = await hold(there.store)
    await there.store.write(lease, begun(0))
    there.clock.advance(30_000)
    lease = await hold(there.store)
    there.clock.advance(10_000)
    await there.store.write(lease, Release("drained"))
    there.clock.advance(10_000)
    line = await line_of(there)
    assert pieces(list(line.run)) == [(0, 60, "lost"), (60, 80, "left"), (80, 100, "wait")]
    # The step has not ended, but nobody has worked on it since its attempt was lost.
    (lane,) = line.lanes
    assert lane.bar is not None
    assert pieces([lane.bar]) == [(0, 60, "running")]


async def test_a_lease_that_lasts_on_is_drawn_behind_now_and_stays_short() -> None:
    there = desk()
    await hold(there.store, lease_ms=1_000_000)
    there.clock.advance(85_000)
    line = await line_of(there)
    assert pieces(list(line.run)) == [(0, 87, "running")]
    assert pieces(list(line.leases)) == [(0, 87, "holder-0"), (87, 100, "lease")]


@pytest.mark.parametrize("length_ms", [0, 1, 999, 5_000, 61_000, 86_400_000, 10**11])
async def test_the_marks_are_few_and_in_order(length_ms: int) -> None:
    there = desk()
    lease = await hold(there.store)
    there.clock.advance(length_ms)
    await there.store.write(lease, ended())
    line = await line_of(there)
    places = [tick.x for tick in line.ticks]
    assert places == sorted(set(places))
    assert places[0] == 0
    assert 1 <= len(places) <= 6
    assert places[-1] < 95
    for bar in (*line.run, *line.leases):
        assert 0 <= bar.x <= bar.x + bar.width <= 100.01
