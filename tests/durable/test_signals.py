"""A signal to stop is heard first, and still reaches whoever handled it before."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from perdure.durable.signals import hearing_signals

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture
def heard() -> Iterator[list[Any]]:
    """Return a list of what a server's own handler is called with."""
    heard: list[Any] = []
    before = {each: signal.signal(each, lambda *got: heard.append(got[0])) for each in (TERM, INT)}
    yield heard
    for each, handler in before.items():
        signal.signal(each, handler)


def test_the_first_signal_and_later_ones_are_told_apart(heard: list[Any]) -> None:
    told: list[str] = []
    with hearing_signals(lambda: told.append("first"), lambda: told.append("again")):
        for each in (TERM, INT, TERM):
            signal.raise_signal(each)
    assert told == ["first", "again", "again"]
    assert heard == [TERM, INT, TERM]


def test_after_the_block_everything_is_as_before(heard: list[Any]) -> None:
    handlers = signal.getsignal(TERM), signal.getsignal(INT)
    told: list[str] = []
    with hearing_signals(lambda: told.append("first"), lambda: None):
        assert signal.getsignal(TERM) is not handlers[0]
    assert (signal.getsignal(TERM), signal.getsignal(INT)) == handlers
    signal.raise_signal(TERM)
    assert (told, heard) == ([], [TERM])


@pytest.mark.usefixtures("heard")
def test_a_handler_that_was_set_within_the_block_is_kept() -> None:
    def other(*_: object) -> None: ...

    with hearing_signals(lambda: None, lambda: None):
        signal.signal(TERM, other)
    assert signal.getsignal(TERM) is other


async def test_a_handler_of_the_loop_is_still_called() -> None:
    loop, called, told = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(TERM, called.set)
    try:
        with hearing_signals(told.set, told.set):
            signal.raise_signal(TERM)
            await asyncio.wait_for(asyncio.gather(called.wait(), told.wait()), 20)
    finally:
        loop.remove_signal_handler(TERM)


async def test_outside_the_main_thread_nothing_is_touched() -> None:
    async def within() -> object:
        with hearing_signals(lambda: None, lambda: None):
            return signal.getsignal(TERM)

    before = signal.getsignal(TERM)
    assert await asyncio.to_thread(asyncio.run, within()) is before


def test_a_signal_that_nobody_handles_ends_the_process_as_ever() -> None:
    code = """
import asyncio, signal
from perdure.durable.signals import hearing_signals
async def main():
    with hearing_signals(lambda: None, lambda: None):
        print("ready", flush=True)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (-TERM, "ready\n")
