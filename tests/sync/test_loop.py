"""The loop's thread: forks, ends of processes, interrupted callers."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import pytest

from perdure.errors import StoreUnavailableError
from perdure.sync.loop import THREAD, Items, LoopThread, Streams

HEAD = """
import os, signal, sys, threading
from perdure import ChatTurnIdentity, frames
from perdure.sync import SyncEngine, SyncStore, in_thread, open_store

TURN = ChatTurnIdentity("", "s", "ann", 0)
gate = threading.Event()

def answer(turn):
    yield frames.text("Hello")
    gate.wait(30)
    yield frames.text(" there")

def read_first(lines):
    for piece in lines:
        if b"Hello" in piece:
            return

engine = SyncEngine(sys.argv[1], produce=in_thread(answer), drain_ms=5_000)
"""


def script(code: str, folder: Path) -> tuple[int, str, str]:
    """Run code behind HEAD; return the exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code, f"sqlite:{folder / 'turns.db'}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def state_of(folder: Path) -> str:
    code = """
with open_store(sys.argv[1]) as store:
    [run] = store.call(lambda opened: opened.list_runs())
    print(run.state, run.lease_holder_id is None)
"""
    return script(code, folder)[1].strip()


def test_an_engine_that_was_made_before_a_fork_is_used_behind_it(tmp_path: Path) -> None:
    code = """
gate.set()
child = os.fork()
text = b"".join(engine.submit(TURN, "Hi").lines())
print(b"there" in text, flush=True)
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert script(code, tmp_path) == (0, "True\nTrue\n", "")
    assert state_of(tmp_path) == "completed True"


def test_an_engine_that_was_used_before_a_fork_says_so_behind_it(tmp_path: Path) -> None:
    code = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
gate.set()
lines = engine.submit(TURN, "Hi").lines()
next(lines)
child = os.fork()
if not child:
    for call in (engine.start, lambda: engine.stop(TURN), lambda: next(lines)):
        try:
            call()
        except Exception as error:
            print(type(error).__name__, error, flush=True)
    other = SyncEngine(sys.argv[1], produce=in_thread(answer), drain_ms=0)
    print(b"there" in b"".join(other.read(TURN)), flush=True)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
list(lines)
print("parent")
"""
    code_, out, err = script(code, tmp_path)
    assert (code_, err) == (0, "")
    told = out.splitlines()
    assert len(told) == 5
    for line in told[:3]:
        assert line.startswith("UsageError")
        assert "forked" in line
        assert "post_worker_init" in line
    assert told[3:] == ["True", "parent"]


def test_a_process_that_ends_lets_its_turns_finish(tmp_path: Path) -> None:
    code = """
read_first(engine.submit(TURN, "Hi").lines())
threading.Timer(0.3, gate.set).start()
"""
    assert script(code, tmp_path) == (0, "", "")
    assert state_of(tmp_path) == "completed True"


def test_a_process_that_ends_gives_turns_back_that_take_too_long(tmp_path: Path) -> None:
    code = """
engine._drain_ms = 100
read_first(engine.submit(TURN, "Hi").lines())
"""
    assert script(code, tmp_path) == (0, "", "")
    assert state_of(tmp_path) == "running True"


def test_a_signal_cuts_streams_in_the_main_thread(tmp_path: Path) -> None:
    code = """
signal.signal(signal.SIGTERM, lambda *_: gate.set())
engine.start()
lines = engine.submit(TURN, "Hi").lines()
read_first(lines)
signal.raise_signal(signal.SIGTERM)
try:
    list(lines)
except Exception as error:
    print(type(error).__name__)
"""
    assert script(code, tmp_path) == (0, "StoreUnavailableError\n", "")
    assert state_of(tmp_path) == "completed True"


# Within this process.


async def counting(closed: threading.Event) -> AsyncGenerator[int, None]:
    try:
        yield 1
        await asyncio.Event().wait()
    finally:
        closed.set()


def test_items_that_are_forgotten_are_closed() -> None:
    closed = threading.Event()
    items = Items(counting(closed), Streams())
    assert next(items) == 1
    del items
    gc.collect()
    assert closed.wait(20)


def test_a_caller_that_is_interrupted_takes_its_work_along() -> None:
    closed = threading.Event()
    items = Items(counting(closed), Streams())
    assert next(items) == 1
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(items)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert closed.wait(20)
    assert list(items) == []


def test_a_call_that_waits_is_told_when_the_loop_ends() -> None:
    thread, errors, waits = LoopThread(), list[BaseException](), threading.Event()

    async def never() -> None:
        waits.set()
        await asyncio.Event().wait()

    def call() -> None:
        try:
            thread.run(never())
        except StoreUnavailableError as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert waits.wait(20)
    thread.close()
    thread.close()
    caller.join(20)
    assert len(errors) == 1


def test_what_is_open_is_closed_the_latest_first() -> None:
    thread, closed = LoopThread(), list[str]()
    thread.loop()
    for name in ("store", "engine", "other"):
        thread.at_close(name, partial(closed.append, name))
    thread.forget("other")
    thread.close()
    assert closed == ["engine", "store"]
    assert THREAD is not thread
