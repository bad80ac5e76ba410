"""Turns whose process dies before and after each of its writes come to the same end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from perdure.core.frames import Frame, text, tool_call, tool_result, upstream_end, usage
from perdure.durable.outbox import Outbox
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.faults import CrashReport, crash_everywhere
from perdure.testing.lab import StoreLab
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.hooks import ChatTurnHooks, FinishedTurn
from perdure.turn.identity import run_id_of
from tests.contract.test_stores import postgres_lab
from tests.store.postgres_server import PostgresServer
from tests.turn.stage import TURN, Reader

Produce = Callable[["World", Turn], AsyncIterator[Any]]


class World:
    """What outlives a process: the client, the provider's bill, the product's own database."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.calls: Counter[str] = Counter()
        self.hooked: list[tuple[str, str, str]] = []

    def hooks(self) -> ChatTurnHooks:
        def note(topic: str) -> Callable[[FinishedTurn], None]:
            return lambda turn: self.hooked.append((topic, turn.idempotency_key, turn.final_text))

        return ChatTurnHooks(
            persist_assistant_message=note("persist"), on_turn_complete=note("complete")
        )


class Outcome:
    """How a turn came to its end: what is recorded, and what everybody outside has seen."""

    def __init__(self, world: World, state: str, answer: Any) -> None:
        self.state = state
        self.final_text = answer["finalText"]
        self.shown = world.reader.text
        self.end = world.reader.kinds[-1]
        self.hooked = sorted(set(world.hooked))
        self.hooked_kinds = sorted({topic for topic, _, _ in world.hooked})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.final_text)

    def __repr__(self) -> str:
        return f"Outcome({vars(self)})"


class Labs:
    """Makes a lab with fresh data, and a world around it, for each crash."""

    def __init__(self, folder: Path, kind: str, server: PostgresServer | None) -> None:
        self.world = World()
        self._folder = folder
        self._kind = kind
        self._server = server
        self._count = 0

    def __call__(self) -> StoreLab:
        self.world = World()
        self._count += 1
        if self._server is not None:
            return postgres_lab(self._server.url, self._server.clean_schema())
        data, path = MemoryData(), self._folder / f"{self._count}.db"

        async def open_handle(clock: ManualClock, code_version: str | None) -> RunStore:
            if self._kind == "memory":
                return MemoryStore(data, clock=clock, code_version=code_version)
            return await open_store(f"sqlite:{path}", durability="normal", clock=clock)

        return StoreLab(open_handle)


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.campaign)])
def labs(request: pytest.FixtureRequest, tmp_path: Path) -> Labs:
    server = request.getfixturevalue("postgres") if request.param == "postgres" else None
    return Labs(tmp_path, request.param, server)


async def known_of(store: RunStore) -> tuple[bool, set[str]]:
    """Return whether the answer is whole, and the steps that are recorded."""
    run_id = run_id_of(TURN)
    run = await store.read_run(run_id)
    frames = await store.read_frames(run_id)
    steps = await store.read_steps(run_id)
    over = run is not None and run.state == "completed"
    whole = any(frame.kind == "upstream_end" and frame.data["finish"] == "stop" for frame in frames)
    return over or whole, {step.intent for step in steps if step.status == "completed"}


async def run_turn(labs: Labs, produce: Produce, store: RunStore, *, hooks: bool) -> Outcome:
    """Submit, read to the end, see to the hooks; whatever of that an earlier process has done."""
    world = labs.world
    whole, recorded = await known_of(store)
    before = Counter(world.calls)
    engine = ChatTurnEngine(
        store,
        produce=lambda turn: produce(world, turn),
        hooks=world.hooks() if hooks else None,
        recover=False,
    )
    await engine.submit(TURN, "Hi")
    await world.reader.read(engine)
    while world.reader.kinds[-1] == "session.run.failed":
        assert "unfinished_tool_call" in str(world.reader.events[-2]), world.reader.events[-2:]
        await engine.submit(TURN, "Hi", retry=True)
        await world.reader.read(engine)
    outbox = Outbox(store, {engine.name: engine.deliver})
    while await outbox.deliver_due():
        continue
    await engine.aclose()
    spent = world.calls - before
    assert spent["producer"] == 0 if whole else spent["producer"] >= 1, "the ladder says so"
    assert not spent.keys() & recorded, "a recorded step was executed again"
    run = await store.read_run(run_id_of(TURN))
    steps = await store.read_steps(run_id_of(TURN))
    details = await store.read_details(run_id_of(TURN))
    assert all(delivery.state == "delivered" for delivery in details.deliveries)
    assert run is not None
    return Outcome(world, run.state, steps[0].result)


async def crash_all(labs: Labs, produce: Produce, *, hooks: bool = False) -> CrashReport[Outcome]:
    async def scenario(store: RunStore) -> Outcome:
        return await run_turn(labs, produce, store, hooks=hooks)

    report = await crash_everywhere(scenario, labs)
    assert {point.when for point in report.points} == {"before", "after"}
    assert len(report.points) == 2 * len(report.calls)
    return report


# A plain turn.


async def plain(world: World, _turn: Turn) -> AsyncIterator[Any]:
    world.calls["producer"] += 1
    for delta in ("Hel", "lo", " you"):
        yield text(delta)
    yield usage(tokens_in=1, tokens_out=3)
    yield upstream_end("stop")


async def test_a_plain_turn(labs: Labs) -> None:
    report = await crash_all(labs, plain)
    assert report.outcome.final_text == report.outcome.shown == "Hello you"
    assert report.outcome.end == "session.run.completed"
    assert report.calls[0] == "start_or_resume"


async def test_a_turn_with_hooks(labs: Labs) -> None:
    report = await crash_all(labs, plain, hooks=True)
    assert report.outcome.hooked_kinds == ["complete", "persist"]
    assert len(report.outcome.hooked) == 2, "every delivery has the same key"
    assert {"claim_deliveries", "settle_delivery"} <= set(report.calls)


# A turn with tools and a stream.


def joined(frames: Sequence[Frame]) -> str:
    return "".join(frame.data["delta"] for frame in frames if frame.kind == "text")


async def agent(world: World, turn: Turn) -> AsyncIterator[Any]:
    world.calls["producer"] += 1

    async def ask() -> AsyncIterator[Frame]:
        world.calls["ask"] += 1
        for delta in ("Let", " me", " look."):
            yield text(delta)
        yield upstream_end("tool_calls")

    def called(name: str) -> Callable[[], str]:
        def tool() -> str:
            world.calls[name] += 1
            return f"{name} done"

        return tool

    async for frame in turn.stream("ask", ask, result=joined):
        yield frame
    yield tool_call("1", "search", {}, "idempotent")
    found = await turn.step("search", called("search"), kind="tool", effect="idempotent")
    yield tool_result("1", found)
    booked = await turn.step("book", called("book"), kind="tool")
    yield text(f" {found}, {booked}.")


async def test_a_turn_with_a_stream_and_two_tools(labs: Labs) -> None:
    report = await crash_all(labs, agent)
    assert report.outcome.final_text == "Let me look. search done, book done."
    assert report.outcome.shown == report.outcome.final_text


async def test_a_turn_with_everything(labs: Labs) -> None:
    report = await crash_all(labs, agent, hooks=True)
    assert report.outcome.hooked_kinds == ["complete", "persist"]
    assert len(report.outcome.hooked) == 2


# A turn that fails, and one that is stopped.


async def failing(world: World, _turn: Turn) -> AsyncIterator[Any]:
    world.calls["producer"] += 1
    yield text("Hel")
    raise RuntimeError("no")


async def test_a_turn_that_fails_comes_to_that_end_too(labs: Labs) -> None:
    async def scenario(store: RunStore) -> tuple[str, str, str]:
        world = labs.world
        engine = ChatTurnEngine(
            store, produce=lambda turn: failing(world, turn), hooks=world.hooks(), recover=False
        )
        await engine.submit(TURN, "Hi")
        await world.reader.read(engine)
        await engine.aclose()
        run = await store.read_run(run_id_of(TURN))
        assert run is not None
        assert not world.hooked
        return run.state, world.reader.text, world.reader.kinds[-1]

    report = await crash_everywhere(scenario, labs)
    assert report.outcome == ("failed", "Hel", "session.run.failed")


async def endless(world: World, _turn: Turn) -> AsyncIterator[Any]:
    world.calls["producer"] += 1
    yield text("Hel")
    await asyncio.Event().wait()


async def test_a_stop_comes_to_its_end(labs: Labs) -> None:
    async def scenario(store: RunStore) -> tuple[str, str, list[str]]:
        world = labs.world
        engine = ChatTurnEngine(
            store, produce=lambda turn: endless(world, turn), hooks=world.hooks(), recover=False
        )
        await engine.submit(TURN, "Hi")
        await engine.stop(TURN)
        await world.reader.read(engine)
        outbox = Outbox(store, {engine.name: engine.deliver})
        while await outbox.deliver_due():
            continue
        await engine.aclose()
        run = await store.read_run(run_id_of(TURN))
        assert run is not None
        steps = await store.read_steps(run_id_of(TURN))
        assert world.reader.text == steps[0].result["finalText"]
        return run.state, world.reader.kinds[-1], sorted({topic for topic, _, _ in world.hooked})

    report = await crash_everywhere(scenario, labs)
    assert report.outcome == ("stopped", "session.run.stopped", ["complete", "persist"])
