"""Turns that wait, replace and revise each other come to the same end wherever a process dies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.core.effects import monotonic_ms
from perdure.core.frames import Frame, text, upstream_end
from perdure.core.limits import LEASE_MS
from perdure.errors import SessionBusyError
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.faults import CrashReport, crash_everywhere
from perdure.testing.lab import StoreLab
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.identity import ChatTurnIdentity, run_id_of
from tests.turn.stage import NEXT, TURN, Reader, within

ROOT = Path(__file__).parent.parent.parent
THIRD = TURN._replace(turn_index=2)
TURNS = (TURN, NEXT, THIRD)
Told = list[tuple[str, str, list[str]]]
"""Of each turn: its state, its text, and what it was told of the turns before it."""


class Producer:
    """Answers a turn with its number; the first one waits until it is let through."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.histories: dict[tuple[int, int], list[str]] = {}

    async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        index, revision = turn.identity.turn_index, turn.identity.revision
        self.histories[index, revision] = [str(said["content"]) for said in turn.history]
        yield text(f"a{index}")
        if index == 0:
            await self.open.wait()
        yield text(f"~{revision}" if revision else "")
        yield upstream_end("stop")


class Labs:
    """Makes a lab with fresh data for each crash."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._kind = kind
        self._count = 0
        self.histories: dict[tuple[int, int], list[str]] = {}

    def __call__(self) -> StoreLab:
        self._count += 1
        self.histories = {}
        data, name = MemoryData(), self._folder / str(self._count)

        async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
            if self._kind == "memory":
                return MemoryStore(data, clock=clock, code_version=code_version)
            return await open_store(f"{self._kind}:{name}", durability="normal", clock=clock)

        return StoreLab(open_handle)

    async def crash(
        self, scenario: Callable[[ChatTurnEngine, RunStore, Producer], Awaitable[Told]]
    ) -> CrashReport[Told]:
        async def played(store: RunStore) -> Told:
            producer = Producer()
            producer.histories = self.histories
            engine = ChatTurnEngine(store, produce=producer, recover=False)
            try:
                return await within(scenario(engine, store, producer))
            finally:
                await engine.aclose(drain_ms=0)

        report = await crash_everywhere(played, self)
        assert len(report.points) == 2 * len(report.calls)
        return report

    async def told(self, store: RunStore, *turns: ChatTurnIdentity) -> Told:
        found: Told = []
        for turn in turns:
            run = await store.read_run(run_id_of(turn))
            assert run is not None
            steps = await store.read_steps(run_id_of(turn))
            history = self.histories.get((turn.turn_index, turn.revision), [])
            found.append((run.state, steps[0].result["finalText"], history))
        return found


@pytest.fixture(params=["memory", "sqlite", "file"])
def labs(request: pytest.FixtureRequest, tmp_path: Path) -> Labs:
    return Labs(tmp_path, request.param)


async def swept(engine: ChatTurnEngine, store: RunStore) -> None:
    """Work on what is due until nothing is."""
    while claims := await store.claim_due(["chat"], worker_id="w", lease_ms=LEASE_MS, limit=9):
        assert len(claims) == 1, "two turns of a session at once"
        await engine.work(claims[0], asked_ms=monotonic_ms())


async def submit(engine: ChatTurnEngine, turn: ChatTurnIdentity, **more: Any) -> None:
    await engine.submit(turn, f"m{turn.turn_index}", **more)


async def test_queued_turns_come_to_their_ends_in_order(labs: Labs) -> None:
    async def scenario(engine: ChatTurnEngine, store: RunStore, producer: Producer) -> Told:
        for turn in TURNS:
            await submit(engine, turn, busy="queue")
        producer.open.set()
        for turn in TURNS:
            await Reader().read(engine, turn)
            # Behind a crash the second turn may be claimed by its submit, and be live here: the
            # third is due only at its end, and this engine has no worker that would look again.
            await swept(engine, store)
        return await labs.told(store, *TURNS)

    report = await labs.crash(scenario)
    assert report.outcome == [
        ("completed", "a0", []),
        ("completed", "a1", ["m0", "a0"]),
        ("completed", "a2", ["m0", "a0", "m1", "a1"]),
    ]
    assert report.calls.count("enqueue") == 2


async def test_a_turn_that_replaces_others_comes_to_its_end(labs: Labs) -> None:
    async def scenario(engine: ChatTurnEngine, store: RunStore, producer: Producer) -> Told:
        replacing = await store.read_run(run_id_of(THIRD))
        if replacing is None:
            await submit(engine, TURN)
            with suppress(SessionBusyError):
                await submit(engine, NEXT, busy="queue")
        await submit(engine, THIRD, busy="replace")
        await swept(engine, store)
        await Reader().read(engine, THIRD)
        for turn in (TURN, NEXT):
            if (await Reader().read(engine, turn)).kinds[-1] != "session.run.stopped":
                raise AssertionError("it was to be stopped")
        state, answer, _ = (await labs.told(store, THIRD))[0]
        return [(state, answer, [])]

    report = await labs.crash(scenario)
    assert report.outcome == [("completed", "a2", [])]
    assert "request_stop" in report.calls


async def test_a_revision_comes_to_its_end_behind_the_parent_of_its_turn(labs: Labs) -> None:
    async def scenario(engine: ChatTurnEngine, store: RunStore, producer: Producer) -> Told:
        producer.open.set()
        edit = NEXT._replace(revision=1)
        for turn in (TURN, NEXT):
            await submit(engine, turn)
            await Reader().read(engine, turn)
        await engine.submit(edit, "edited")
        await Reader().read(engine, edit)
        run = await store.read_run(run_id_of(edit))
        assert run is not None
        assert run.parent_run_id == run_id_of(TURN)
        return await labs.told(store, TURN, NEXT, edit)

    report = await labs.crash(scenario)
    assert report.outcome[1:] == [
        ("completed", "a1", ["m0", "a0"]),
        ("completed", "a1~1", ["m0", "a0"]),
    ]


PROCESS = """
import asyncio, sys
import perdure
from tests.crash.test_sessions import Producer, TURNS, submit

async def main():
    store = await perdure.open_store(sys.argv[1])
    engine = perdure.ChatTurnEngine(store, produce=Producer(), busy="queue")
    for turn in TURNS:
        await submit(engine, turn)
    print("queued", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
async def test_turns_whose_process_is_killed_while_they_wait_begin_elsewhere(
    tmp_path: Path, scheme: str
) -> None:
    url = f"{scheme}:{tmp_path / 'runs'}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROCESS, url, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await within(process.stdout.readline(), 60) == b"queued\n"
    process.kill()
    await process.wait()
    store = await perdure.open_store(url)
    producer = Producer()
    producer.open.set()
    engine = perdure.ChatTurnEngine(store, produce=producer)
    engine.start()
    try:
        for turn in TURNS:
            chunks = engine.read(turn, wire="envelope")
            assert (await within(Reader().follow(chunks), 60)).is_done
        assert producer.histories[2, 0] == ["m0", "a0", "m1", "a1"]
    finally:
        await engine.aclose(drain_ms=0)
        await store.close()
