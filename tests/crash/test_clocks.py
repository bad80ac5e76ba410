"""Worker processes whose clocks differ by a lease, or by hours, in both directions."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

import perdure
from perdure.core.changes import CompleteStep
from perdure.errors import LeaseHeldError
from perdure.store.protocol import RunStore
from perdure.testing.samples import ended, manifest
from tests.crash.conftest import NewUrl
from tests.turn.stage import until

ROOT = Path(__file__).parents[2]
LEASE_MS = 2_000
HOURS_MS = 3 * 60 * 60 * 1_000
OFFSETS_MS = {
    "a lease ahead": LEASE_MS,
    "hours ahead": HOURS_MS,
    "a lease behind": -LEASE_MS,
    "hours behind": -HOURS_MS,
}
BEHIND = {name for name, offset_ms in OFFSETS_MS.items() if offset_ms < 0}
BEATS = 2


class Holder:
    """A process with a wrong clock that holds the run of its name."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def holders_on(url: str) -> AsyncIterator[Mapping[str, Holder]]:
    holders: dict[str, Holder] = {}
    try:
        for name, offset_ms in OFFSETS_MS.items():
            arguments = (url, run_of(name), str(offset_ms), str(LEASE_MS))
            holders[name] = Holder(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.crash.wrong_clock", *arguments),
                    cwd=ROOT,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
            )
        for holder in holders.values():
            assert await holder.says() == "holds"
        yield holders
    finally:
        for holder in holders.values():
            await holder.kill()


def run_of(name: str) -> str:
    return name.replace(" ", "-")


async def taken(store: RunStore, name: str) -> bool:
    """Claim a run and end it; return whether it was to be had."""
    try:
        claim = await store.start_or_resume(run_of(name), manifest(), worker_id="heir")
    except LeaseHeldError:
        return False
    assert claim.lease is not None
    await store.write(claim.lease, CompleteStep(0, "only", '"by the heir"'), ended())
    return True


async def asked_for_during_beats(store: RunStore) -> set[str]:
    """Ask for each run until its holder has renewed it a few times; return what was taken."""
    robbed: set[str] = set()
    deadlines: dict[str, set[str | None]] = {name: set() for name in OFFSETS_MS}

    async def is_settled() -> bool:
        for name in OFFSETS_MS.keys() - robbed:
            if await taken(store, name):
                robbed.add(name)
                continue
            run = await store.read_run(run_of(name))
            assert run is not None
            deadlines[name].add(run.lease_expires_at)
        return all(len(deadlines[name]) > BEATS for name in OFFSETS_MS.keys() - robbed)

    await until(is_settled)
    return robbed


@pytest.mark.parametrize("scheme", ["sqlite", "file", "postgresql"])
async def test_clocks_that_differ_make_no_two_winners_and_lose_no_run(
    new_url: NewUrl, scheme: str
) -> None:
    url = new_url(scheme)
    store = await perdure.open_store(url)
    async with holders_on(url) as holders:
        robbed = await asked_for_during_beats(store)
        # In files the clock of the store is that of whoever writes: a lease from the past is over.
        assert robbed == (set() if scheme == "postgresql" else BEHIND)
        # A lease until some time this evening, of a process that is dead.
        await holders["hours ahead"].kill()
        await until(lambda: taken(store, "hours ahead"))
        heirs = robbed | {"hours ahead"}
        for name in OFFSETS_MS.keys() - {"hours ahead"}:
            holders[name].go_on()
            said = await holders[name].says()
            assert said == ("LeaseLostError" if name in robbed else "completed"), name
    for name in OFFSETS_MS:
        (step,) = await store.read_steps(run_of(name))
        run = await store.read_run(run_of(name))
        assert run is not None
        assert (run.state, run.epoch) == ("completed", 2 if name in heirs else 1)
        assert step.result == ("by the heir" if name in heirs else "by the holder")
    await store.close()
