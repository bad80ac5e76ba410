"""Fixtures for users of pytest: a lab with fresh data and a clock, and a crash at every write.

They are there as soon as `perdure` is installed. `--perdure-store` (or `perdure_store` in the
settings of pytest) chooses the stores that each test which asks for one is run on: `memory`,
`sqlite`, `file`, or several of them with commas between; memory and SQLite by default.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import pytest

if TYPE_CHECKING:
    from perdure.store.protocol import RunStore
    from perdure.testing.clock import ManualClock
    from perdure.testing.faults import CrashReport
    from perdure.testing.lab import OpenHandle, StoreLab

T = TypeVar("T")

STORES: Final = ("memory", "sqlite", "file")
_DEFAULT: Final = "memory,sqlite"


class CrashEverywhere(Protocol):
    """`perdure.testing.crash_everywhere` on the store of the test."""

    async def __call__(
        self, scenario: Callable[[RunStore], Awaitable[T]], *, downtime_ms: int = 60_000
    ) -> CrashReport[T]: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that chooses the stores."""
    text = "stores that tests with a perdure fixture are run on: memory, sqlite, file"
    parser.getgroup("perdure").addoption("--perdure-store", metavar="NAMES", help=text)
    parser.addini("perdure_store", text, default=_DEFAULT)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that wants a store on every chosen one."""
    if "perdure_store_name" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--perdure-store")
        names = (chosen or metafunc.config.getini("perdure_store")).split(",")
        unknown = [name for name in map(str.strip, names) if name not in STORES]
        if unknown:
            raise pytest.UsageError(f"perdure_store: {unknown[0]!r} is none of {', '.join(STORES)}")
        metafunc.parametrize("perdure_store_name", [name.strip() for name in names], indirect=True)


@pytest.fixture
def perdure_store_name(request: pytest.FixtureRequest) -> str:
    """Return the name of the store that this test is run on."""
    name: str = request.param
    return name


@pytest.fixture
def perdure_new_lab(
    perdure_store_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], StoreLab]:
    """Return what makes a lab: fresh data, a clock that stands still, handles on that data.

    `async with new_lab() as lab: store = await lab.open()`. A second `open` is a second worker.
    `lab.clock.advance(ms)` moves the time of all of them.
    """
    from perdure.testing.lab import StoreLab

    return lambda: StoreLab(_opener(perdure_store_name, tmp_path_factory.mktemp("perdure")))


@pytest.fixture
def perdure_lab(perdure_new_lab: Callable[[], StoreLab]) -> StoreLab:
    """Return one lab: `async with perdure_lab: store = await perdure_lab.open()`."""
    return perdure_new_lab()


@pytest.fixture
def perdure_crash_everywhere(perdure_new_lab: Callable[[], StoreLab]) -> CrashEverywhere:
    """Return a function that lets the process of a scenario die before and after each write.

    `report = await perdure_crash_everywhere(scenario)`; see `perdure.testing.crash_everywhere`.
    """
    from perdure.testing.faults import crash_everywhere

    async def everywhere(
        scenario: Callable[[RunStore], Awaitable[T]], *, downtime_ms: int = 60_000
    ) -> CrashReport[T]:
        return await crash_everywhere(scenario, perdure_new_lab, downtime_ms=downtime_ms)

    return everywhere


def _opener(name: str, folder: Path) -> OpenHandle:
    if name == "memory":
        return _memory_opener()

    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        from perdure.store.opening import open_store

        path = folder / ("runs.db" if name == "sqlite" else "runs")
        return await open_store(f"{name}:{path}", clock=clock, code_version=code_version)

    return open_handle


def _memory_opener() -> OpenHandle:
    from perdure.store.memory import MemoryStore
    from perdure.store.memorydata import MemoryData

    data = MemoryData()

    async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
        return MemoryStore(data, clock=clock, code_version=code_version)

    return open_handle
