"""Stores and engines for code that does not await."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import perdure
from perdure import AgentTaskSpec, ChatTurnIdentity, DurableContext, RunManifest, frames
from perdure.core.frames import Frame
from perdure.errors import RunNotFoundError, StoreClosedError, StoreUnavailableError, UsageError
from perdure.sync import (
    SyncEngine,
    SyncStore,
    emit_event,
    in_thread,
    open_store,
    run_durable,
)
from perdure.turn.handout import Turn

TURN = ChatTurnIdentity("", "s", "ann", 0)
MANIFEST = RunManifest("project", AgentTaskSpec("task", "answer"))
PATIENCE_S = 20


@pytest.fixture
def store() -> Iterator[SyncStore]:
    with open_store("memory:") as store:
        yield store


class Gate:
    """A producer that says one word, and the other one when it is let through."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.calls = 0

    def __call__(self, turn: Turn) -> Generator[Frame, None, None]:
        self.calls += 1
        yield frames.text("Hello")
        assert self.opened.wait(PATIENCE_S)
        yield frames.text(f" {turn.user_message}")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def engine(gate: Gate) -> Iterator[SyncEngine]:
    with SyncEngine("memory:", produce=in_thread(gate), drain_ms=0) as engine:
        yield engine
        gate.opened.set()


def text_of(lines: list[bytes]) -> str:
    events = [json.loads(line) for piece in lines for line in piece.splitlines()]
    return "".join(event["data"].get("delta", "") for event in events)


# Runs.


async def task(ctx: DurableContext) -> object:
    return await ctx.step("answer", lambda: 42)


def test_a_script_runs_durably_and_replays(store: SyncStore) -> None:
    for _ in range(2):
        done = run_durable(store, run_id="run", manifest=MANIFEST, task=task)
        assert (done.result, done.record.state, len(done.steps)) == (42, "completed", 1)
    runs = store.call(lambda opened: opened.list_runs())
    assert [run.run_id for run in runs] == ["run"]
    assert emit_event(store, "run", "key", {"a": 1}) is True


def test_an_error_arrives_with_the_frames_of_both_threads(store: SyncStore) -> None:
    async def failing(_: DurableContext) -> None:
        raise KeyError("the culprit")

    def caller() -> None:
        run_durable(store, run_id="run", manifest=MANIFEST, task=failing)

    with pytest.raises(KeyError) as raised:
        caller()
    names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert names.index("caller") < names.index("failing") == len(names) - 1


def test_a_task_that_would_wait_for_itself_is_told(store: SyncStore) -> None:
    async def waiting(_: DurableContext) -> None:
        store.call(lambda opened: opened.list_runs())

    with pytest.raises(UsageError, match="await"):
        run_durable(store, run_id="run", manifest=MANIFEST, task=waiting)


def test_the_doors_have_the_names_and_signatures_of_what_they_run() -> None:
    assert run_durable.__doc__ == perdure.run_durable.__doc__
    assert SyncEngine.submit.__doc__ == perdure.ChatTurnEngine.submit.__doc__
    assert SyncEngine.read.__doc__ == perdure.ChatTurnEngine.read.__doc__
    assert SyncEngine.stop.__doc__ == perdure.ChatTurnEngine.stop.__doc__


# Opening and closing.


def test_options_are_checked_at_once() -> None:
    with pytest.raises(TypeError, match="durabilty"):
        SyncStore("memory:", durabilty="normal")
    with pytest.raises(TypeError, match="lease"):
        SyncEngine("memory:", produce=in_thread(Gate()), lease=1)
    with pytest.raises(UsageError, match="not the address of a store"):
        open_store("nowhere")


def test_nothing_is_opened_before_the_first_use(tmp_path: Path, gate: Gate) -> None:
    database = tmp_path / "turns.db"
    engine = SyncEngine(f"sqlite:{database}", produce=in_thread(gate), drain_ms=0)
    assert not database.exists()
    with pytest.raises(RunNotFoundError):
        engine.stop(TURN)
    assert database.exists()
    engine.close()


def test_what_was_closed_says_so(store: SyncStore, engine: SyncEngine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(StoreClosedError, match="engine was closed"):
        engine.submit(TURN, "you")
    store.close()
    with pytest.raises(StoreClosedError, match="store was closed"):
        store.call(lambda opened: opened.list_runs())


def test_an_engine_leaves_a_store_open_that_it_was_given(store: SyncStore, gate: Gate) -> None:
    gate.opened.set()
    with SyncEngine(store, produce=in_thread(gate)) as engine:
        list(engine.submit(TURN, "you").lines())
    [run] = store.call(lambda opened: opened.list_runs())
    assert run.state == "completed"


# Turns.


def test_a_turn_is_submitted_read_replayed_and_looked_at(engine: SyncEngine, gate: Gate) -> None:
    gate.opened.set()
    submitted = engine.submit(TURN, "you")
    assert submitted.created
    assert text_of(list(submitted.lines())) == "Hello you"
    assert not engine.submit(TURN, "you").created
    assert text_of(list(engine.read(TURN))) == "Hello you"
    assert b"id: " in b"".join(engine.read(TURN, wire="sse"))
    assert engine.stop(TURN).state == "completed"
    assert gate.calls == 1
    with pytest.raises(RunNotFoundError):
        next(engine.read(TURN._replace(turn_index=7)))


def first_word(lines: Iterator[bytes]) -> str:
    """Read up to the first word, and return the cursor behind it."""
    for piece in lines:
        for line in piece.splitlines():
            if b"Hello" in line:
                return str(json.loads(line)["id"])
    raise AssertionError("the stream ended")


def test_a_reader_that_leaves_ends_nothing_and_comes_back(engine: SyncEngine, gate: Gate) -> None:
    lines = engine.submit(TURN, "you").lines(wire="envelope")
    cursor = first_word(lines)
    lines.close()
    lines.close()
    assert list(lines) == []
    gate.opened.set()
    rest = b"".join(engine.read(TURN, after=cursor))
    assert b"Hello" not in rest
    assert b"you" in rest


def test_a_turn_is_stopped_while_its_reader_waits(engine: SyncEngine, gate: Gate) -> None:
    lines = engine.submit(TURN, "you").lines(wire="envelope")
    first_word(lines)
    gate.opened.set()
    engine.stop(TURN)
    assert b"session.run." in list(lines)[-1]


def test_streams_are_cut_and_not_ended_when_the_engine_closes(
    engine: SyncEngine, gate: Gate
) -> None:
    lines = engine.submit(TURN, "you").lines(wire="envelope")
    first_word(lines)
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(StoreUnavailableError):
        list(lines)
    gate.opened.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()


def test_many_threads_share_one_engine(engine: SyncEngine, gate: Gate) -> None:
    gate.opened.set()
    answers: list[str] = []

    def ask() -> None:
        answers.append(text_of(list(engine.submit(TURN, "you").lines())))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == ["Hello you"] * 8
    assert gate.calls == 1
    running = [thread for thread in threading.enumerate() if thread.name == "perdure-sync"]
    assert len(running) == 1
