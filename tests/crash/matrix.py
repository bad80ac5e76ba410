"""What one cell of the kill matrix does: kill processes at points of a turn, and check the rest."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

import perdure
from perdure.core.records import RunDetails
from perdure.store.opening import open_store, path_of
from tests.crash.killing import Point
from tests.crash.matrix_process import (
    ANSWERED,
    ASKED,
    FINAL,
    MODELS,
    RUN_ID,
    TOPICS,
    TURN,
)
from tests.turn.stage import Reader, within

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
TOKENS = {"ask": len(ASKED), "answer": len(ANSWERED)}


class Kill(NamedTuple):
    """A process in a role, "submit" or "recover", and the point at which it is killed."""

    role: str
    point: Point

    def __str__(self) -> str:
        return f"{self.role} killed {self.point}"


class Scene:
    """One turn on one store: the notes of its processes, and a handle to look with."""

    def __init__(self, folder: Path, url: str, store: perdure.RunStore) -> None:
        self.url = url
        self.store = store
        self._notes = folder / "notes"
        self._notes.touch()

    @property
    def notes_path(self) -> str:
        return str(self._notes)

    def noted(self) -> Counter[str]:
        return Counter(self._notes.read_text().splitlines())

    def calls(self, role: str) -> list[str]:
        """Return the calls of the store by processes of a role, in order."""
        prefix = f"{role} call "
        lines = self._notes.read_text().splitlines()
        return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]

    async def work(self, role: str, point: Point | None = None) -> int:
        """Let a process work until it is done or dead, and return its exit code."""
        command = ["-m", "tests.crash.matrix_process", self.url, self.notes_path, role]
        command += point or ()
        process = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT)
        try:
            return await within(process.wait(), PATIENCE_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def next_role(self) -> str:
        """Return what a process has to do that is to finish what the dead have left."""
        run = await self.store.read_run(RUN_ID)
        if run is None:
            return "submit"
        return "deliver" if run.state == "completed" else "recover"

    async def recorded(self) -> frozenset[str]:
        """Return the intents of the steps that are recorded; with "end" if the turn is over."""
        run = await self.store.read_run(RUN_ID)
        over = {"end"} if run is not None and run.state == "completed" else set[str]()
        steps = await self.store.read_steps(RUN_ID)
        return frozenset({step.intent for step in steps if step.status == "completed"} | over)


@asynccontextmanager
async def scene_on(url: str, folder: Path) -> AsyncIterator[Scene]:
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    store = await open_store(url)
    try:
        yield Scene(folder, url, store)
    finally:
        await store.close()


async def trace(folder: Path, url: str, *before: Kill, role: str) -> list[str]:
    """Return the calls that a process in `role` makes of the store, behind some deaths."""
    async with scene_on(url, folder) as scene:
        for kill in before:
            assert await scene.work(kill.role, kill.point) == -signal.SIGKILL
        known = len(scene.calls(role))
        assert await scene.work(role) == 0
        return scene.calls(role)[known:]


async def survive(folder: Path, url: str, *kills: Kill) -> int:
    """Kill processes one after another, let one finish; return how many of them were reached.

    A reader in this process follows the turn meanwhile. A call that depends on the clock may not
    come in one run or the other: its process then finishes instead of dying.
    """
    async with scene_on(url, folder) as scene, AsyncExitStack() as stack:
        reader = Reader()
        reading = asyncio.ensure_future(_read_to_the_end(scene.store, reader))
        stack.callback(reading.cancel)
        deaths = 0
        spent: list[tuple[frozenset[str], Counter[str]]] = []
        for kill in (*kills, None):
            recorded, before = await scene.recorded(), scene.noted()
            role = kill.role if kill else await scene.next_role()
            code = await scene.work(role, kill.point if kill else None)
            assert code in (0, -signal.SIGKILL if kill else 0), f"exit code {code}"
            deaths += code != 0
            spent.append((recorded, scene.noted() - before))
        await within(reading, PATIENCE_S)
        await _check(scene, reader, spent)
        return deaths


async def _read_to_the_end(store: perdure.RunStore, reader: Reader) -> None:
    """Follow the turn from here, in pieces, through whatever happens to its workers."""
    engine = perdure.ChatTurnEngine(store, produce=lambda _: iter(()), recover=False)
    pieces = 0
    while not reader.is_done:
        if await store.read_run(RUN_ID) is None:
            await asyncio.sleep(0.01)
            continue
        pieces += 1
        chunks = engine.read(TURN, after=reader.cursor, wire="envelope")
        await within(reader.follow(chunks, lines_max=3 + 7 * pieces % 20), PATIENCE_S)
    await engine.aclose()


async def _check(
    scene: Scene, reader: Reader, spent: Sequence[tuple[frozenset[str], Counter[str]]]
) -> None:
    run = await scene.store.read_run(RUN_ID)
    steps = await scene.store.read_steps(RUN_ID)
    details = await scene.store.read_details(RUN_ID)
    assert run is not None
    assert run.state == "completed"
    assert reader.text == steps[0].result["finalText"] == FINAL
    assert reader.kinds[-1] == "session.run.completed"
    assert [attempt.ended for attempt in details.attempts][-1] == "completed"
    _check_the_ladder(spent)
    _check_hooks(scene, details)
    _check_usage(scene, details)
    await _check_the_disk(scene)


def _check_the_ladder(spent: Sequence[tuple[frozenset[str], Counter[str]]]) -> None:
    """Whoever goes on does what is not recorded, once, and nothing that is."""
    for recorded, noted in spent:
        for name in (*MODELS, "tool"):
            wanted = 0 if recorded & {name, "end"} else 1
            assert noted[name] <= wanted, f"{name} again, with {set(recorded)} recorded"
    recorded, noted = spent[-1]
    missing = set[str]() if "end" in recorded else {*MODELS, "tool"} - recorded
    assert {name for name in (*MODELS, "tool") if noted[name]} == missing


def _check_hooks(scene: Scene, details: RunDetails) -> None:
    """Each hook was called, however often by one key, which is that of its delivery."""
    assert [delivery.state for delivery in details.deliveries] == ["delivered"] * len(TOPICS)
    called = {line for line in scene.noted() if line.startswith(TOPICS)}
    keys = [delivery.key for delivery in details.deliveries]
    assert called == {f"{topic} {key}" for topic, key in zip(TOPICS, keys, strict=True)}


def _check_usage(scene: Scene, details: RunDetails) -> None:
    """Each call was intended before it was made, and is settled once if its answer was recorded."""
    calls = [row for row in details.usage if row.step_index]
    made = sum(scene.noted()[name] for name in MODELS)
    assert made <= len(calls), "a call was made that was not intended"
    settled = [(row.model, row.tokens_out) for row in calls if row.tokens_out is not None]
    assert sorted(settled, key=str) == sorted(TOKENS.items())


async def _check_the_disk(scene: Scene) -> None:
    if scene.url.startswith("sqlite"):
        with closing(sqlite3.connect(str(path_of(scene.url)))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    fresh = await open_store(scene.url)
    try:
        assert await fresh.read_run(RUN_ID) == await scene.store.read_run(RUN_ID)
    finally:
        await fresh.close()
