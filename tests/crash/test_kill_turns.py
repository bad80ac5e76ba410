"""SIGKILL and SIGSTOP for processes in the middle of a turn with steps; a reader elsewhere."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

import perdure
from perdure.errors import RunNotFoundError
from perdure.testing.lab import snapshot
from perdure.turn.identity import run_id_of
from tests.crash.conftest import NewUrl
from tests.crash.freezing import freeze
from tests.crash.turn_process import FINAL, TURN
from tests.turn.stage import Reader, Script, until, within

ROOT = Path(__file__).parent.parent.parent
RUN_ID = run_id_of(TURN)
AT_ONCE = 4
SCHEMES = ("sqlite", "file", "postgresql")
PATIENCE_S = 60.0
WORK_MS = 450
"""About how long a turn takes from its first write to its end."""


class Place:
    """One store, the notes of the processes that work on it, and a handle to look with."""

    def __init__(self, folder: Path, store: perdure.RunStore, url: str) -> None:
        self.folder = folder
        self.store = store
        self.url = url

    def noted(self) -> Counter[str]:
        notes = self.folder / "notes"
        return Counter(notes.read_text().split("\n")[:-1] if notes.exists() else ())

    def moved_on(self, asked: int, process: asyncio.subprocess.Process) -> bool:
        """Return whether the model was asked again, or the process is over."""
        return self.noted()["producer"] > asked or process.returncode is not None

    async def process(self, *options: str) -> asyncio.subprocess.Process:
        """Start a process that works on the turn; return once it has submitted it."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.crash.turn_process",
            self.url,
            str(self.folder / "notes"),
            *options,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await within(process.stdout.readline(), PATIENCE_S), "the process did not begin"
        return process

    async def known(self) -> tuple[bool, set[str]]:
        """Return whether the turn is over, and the steps that are recorded."""
        run = await self.store.read_run(RUN_ID)
        steps = await self.store.read_steps(RUN_ID)
        over = run is not None and run.state == "completed"
        return over, {step.intent for step in steps if step.status == "completed"}


@asynccontextmanager
async def place_in(folder: Path, url: str | None = None) -> AsyncIterator[Place]:
    """Work in a folder, on the store at `url` or in a database of the folder."""
    await asyncio.to_thread(folder.mkdir, parents=True)
    url = url or f"sqlite:{folder / 'turns'}"
    store = await perdure.open_store(url)
    try:
        yield Place(folder, store, url)
    finally:
        await store.close()


async def end(process: asyncio.subprocess.Process, *, kill: bool = True) -> None:
    if kill and process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await within(process.wait(), PATIENCE_S)


async def read_to_the_end(store: perdure.RunStore, reader: Reader) -> None:
    """Follow the turn from another process, through whatever happens to its workers."""
    engine = perdure.ChatTurnEngine(store, produce=Script(), recover=False)
    while not reader.is_done:
        try:
            chunks = engine.read(TURN, after=reader.cursor, wire="envelope")
            await within(reader.follow(chunks, lines_max=random.randrange(5, 40)), PATIENCE_S)
        except RunNotFoundError:
            await asyncio.sleep(0.01)
    await engine.aclose()


async def kill_once(folder: Path, url: str, after_ms: float) -> None:
    """Kill a process some time into its turn, and let another one go on."""
    async with place_in(folder, url) as place:
        reader = Reader()
        reading = asyncio.ensure_future(read_to_the_end(place.store, reader))
        first = await place.process()
        try:
            await asyncio.sleep(after_ms / 1_000)
        finally:
            await end(first)
        over, recorded = await place.known()
        before = place.noted()
        attempts = len((await place.store.read_details(RUN_ID)).attempts)
        second = await place.process()
        try:
            await within(reading, PATIENCE_S)
            await within(second.wait(), PATIENCE_S)
        finally:
            await end(second)
        spent = place.noted() - before
        where = (
            f"killed after {after_ms:.0f} ms, over: {over}, recorded: {sorted(recorded)}, "
            f"then done: {dict(spent)}"
        )
        steps = await place.store.read_steps(RUN_ID)
        assert reader.text == steps[0].result["finalText"] == FINAL, where
        assert reader.kinds[-1] == "session.run.completed", where
        # On a machine that is busy enough an heir may lose its lease too: one more attempt.
        attempts = len((await place.store.read_details(RUN_ID)).attempts) - attempts
        for name in ("producer", "ask", "tool", "answer"):
            done = spent[name]
            assert done == 0 if over or name in recorded else 1 <= done <= attempts, (name, where)
        await hooks_were_called(place, where)


async def hooks_were_called(place: Place, where: str) -> None:
    keys = {line for line in place.noted() if line.startswith("persist ")}
    (delivery,) = (await place.store.read_details(RUN_ID)).deliveries
    assert len(keys) <= 1, where
    # A process that was killed in the hook keeps its claim of the delivery for a minute.
    assert keys or (delivery.state == "waiting" and delivery.tries == 1), where
    assert keys <= {f"persist {delivery.key}"}, where


async def kill_at_random_moments(
    folder: Path, new_url: Callable[[], str], *, kills: int, seed: int
) -> None:
    chance = random.Random(seed)
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            await kill_once(folder / str(number), new_url(), chance.uniform(0, WORK_MS))

    await asyncio.gather(*(one(number) for number in range(kills)))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("scheme", "kills"), [("sqlite", 20), ("file", 8), ("postgresql", 4)])
async def test_a_turn_survives_sigkill_at_random_moments(
    tmp_path: Path, new_url: NewUrl, scheme: str, kills: int
) -> None:
    seed = random.randrange(2**32)
    await kill_at_random_moments(tmp_path, partial(new_url, scheme), kills=kills, seed=seed)


@pytest.mark.campaign
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(10))
async def test_a_turn_survives_many_kills(
    tmp_path: Path, new_url: NewUrl, seed: int, scheme: str
) -> None:
    await kill_at_random_moments(tmp_path, partial(new_url, scheme), kills=100, seed=seed)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_turn_is_parked_when_its_processes_die_again_and_again(
    tmp_path: Path, new_url: NewUrl, scheme: str
) -> None:
    async with place_in(tmp_path / "place", new_url(scheme)) as place:
        state = "running"
        while state == "running":
            asked = place.noted()["producer"]
            # It dies before its first step is recorded, which would be progress.
            process = await place.process("ask")
            await until(partial(place.moved_on, asked, process))
            await end(process)
            run = await place.store.read_run(RUN_ID)
            assert run is not None
            state = run.state
        run = await place.store.read_run(RUN_ID)
        assert run is not None
        assert (run.state, run.reason, run.strikes) == ("parked", "attempts_exhausted", 3)
        assert 2 <= place.noted()["producer"] <= 3
        assert place.noted()["tool"] == 0


async def check_a_sleeper(folder: Path, url: str) -> None:
    async with place_in(folder / "place", url) as place:
        reader = Reader()
        reading = asyncio.ensure_future(read_to_the_end(place.store, reader))
        zombie = await place.process("answer", "1000")
        try:
            await until(lambda: place.noted()["silent"])
            await asyncio.to_thread(freeze, zombie.pid, place.url)
            frozen, before = await place.store.read_run(RUN_ID), place.noted()
            assert frozen is not None
            heir = await place.process()
            try:
                await within(reading, PATIENCE_S)
                await within(heir.wait(), PATIENCE_S)
            finally:
                await end(heir)
            ended = await snapshot(place.store, RUN_ID)
            os.kill(zombie.pid, signal.SIGCONT)
            assert await within(zombie.wait(), PATIENCE_S) == 0
        finally:
            await end(zombie)
        assert await snapshot(place.store, RUN_ID) == ended
        assert reader.text == FINAL
        assert ended.run is not None
        assert (ended.run.state, ended.run.epoch) == ("completed", frozen.epoch + 1)
        noted = place.noted()
        assert (noted["ask"], noted["tool"]) == (1, 1)
        assert noted["answer"] == before["answer"] + 1
        assert len([line for line in noted if line.startswith("persist")]) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_process_that_sleeps_past_its_lease_writes_nothing_when_it_wakes(
    tmp_path: Path, new_url: NewUrl, scheme: str
) -> None:
    await check_a_sleeper(tmp_path, new_url(scheme))


@pytest.mark.campaign
@pytest.mark.node
async def test_a_process_that_sleeps_past_its_lease_writes_nothing_to_d1(
    tmp_path: Path, new_url: NewUrl
) -> None:
    await check_a_sleeper(tmp_path, new_url("d1"))
