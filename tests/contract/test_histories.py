"""Each store ends a random history as the memory store does, told by two handles in turn."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.store.sql.d1.binding import D1Binding
from perdure.testing.clock import ManualClock
from tests.contract.histories import Histories, Place
from tests.store.d1_server import D1Server
from tests.testing.broken_stores import (
    BrokenStore,
    CountsNoStrikes,
    FencesByTheNameOfTheWorker,
    GivesALiveLeaseToItsNamesake,
    IgnoresTheFence,
    OverwritesCompletedSteps,
    RefusesLateWrites,
    TakesTheClosedForDead,
    WritesChangeByChange,
)

COMMANDS = 60
ALWAYS = settings(stateful_step_count=COMMANDS, derandomize=True, phases=(Phase.generate,))
FAULTS = [
    IgnoresTheFence,
    FencesByTheNameOfTheWorker,
    RefusesLateWrites,
    OverwritesCompletedSteps,
    WritesChangeByChange,
    CountsNoStrikes,
    GivesALiveLeaseToItsNamesake,
    TakesTheClosedForDead,
]


def place_of(url: str, *, looks_every: int = 1) -> Place:
    async def open_handle(clock: ManualClock) -> RunStore:
        return await open_store(url, migrate=True, clock=clock, durability="normal")

    return Place(open_handle, looks_every=looks_every)


def place_on(d1: D1Server) -> Place:
    """Return a database whose handles go through its binding and over HTTP, in turn."""
    database = d1.clean()
    ways: cycle[Callable[[str], D1Binding]] = cycle((d1.binding, d1.api))

    async def open_handle(clock: ManualClock) -> RunStore:
        return d1.store(next(ways)(database), clock)

    return Place(open_handle, d1.let_go, looks_every=10)


def place_with(fault: type[BrokenStore]) -> Place:
    data = MemoryData()

    async def open_handle(clock: ManualClock) -> RunStore:
        return fault(data, clock=clock)

    return Place(open_handle)


NewPlace = Callable[[str], Place]


@pytest.fixture
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> NewPlace:
    """Return what makes a place without data for a store of this name."""
    numbers = count()

    def fresh(name: str) -> Place:
        server: Any = request.getfixturevalue(name) if name in ("d1", "postgres") else None
        if name == "d1":
            return place_on(server)
        if name == "postgres":
            return place_of(f"{server.url}?schema={server.clean_schema()}", looks_every=10)
        return place_of(f"{name}:{tmp_path / str(next(numbers))}")

    return fresh


def tell(new_place: NewPlace, name: str, histories: int) -> None:
    run_state_machine_as_test(
        lambda: Histories(new_place(name)),  # type: ignore[arg-type]  # A factory will do.
        settings=settings(max_examples=histories, stateful_step_count=COMMANDS),
    )


@pytest.mark.parametrize(
    ("name", "histories"),
    [
        ("sqlite", 25),
        ("file", 25),
        ("postgres", 5),
        pytest.param("d1", 5, marks=pytest.mark.node),
    ],
)
def test_every_store_tells_the_same_history(name: str, histories: int, new_place: NewPlace) -> None:
    tell(new_place, name, histories)


@pytest.mark.campaign
@pytest.mark.timeout(1_500)
@pytest.mark.parametrize(
    ("name", "histories"),
    [
        ("sqlite", 500),
        ("file", 500),
        ("postgres", 200),
        pytest.param("d1", 100, marks=pytest.mark.node),
    ],
)
def test_every_store_tells_many_histories_the_same(
    name: str, histories: int, new_place: NewPlace
) -> None:
    tell(new_place, name, histories)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_differs_is_found_by_its_histories(fault: type[BrokenStore]) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            lambda: Histories(place_with(fault)),  # type: ignore[arg-type]  # A factory will do.
            settings=settings(ALWAYS, max_examples=100),
        )
