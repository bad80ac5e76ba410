"""How soon a turn that waits for an event goes on, held by nobody until then.

    python -m bench.turn_wakeup [--rounds 20] [--store sqlite|file|postgres]

Durability full. The turn sleeps in this process, and a reader is at its end. The event is sent by
this process, over the turn's own store, or by another one. What is measured begins when the event
is about to be sent, and ends where the body of the turn goes on (in this process: the event is
found, the run claimed, the step recorded), or where the reader has the next frame (another one).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import perdure
from bench.stage import TOKEN, empty, until_token
from perdure.core.frames import text, upstream_end
from perdure.turn.identity import run_id_of

ROOT: Final = Path(__file__).parent.parent
EVENT: Final = "answer"

Send = Callable[[str], Awaitable[float]]
"""Sends the event to a run, and returns when it began to."""


class Asking:
    """A producer that waits for an event, notes when it goes on, and says one token."""

    def __init__(self) -> None:
        self.went_on_s = 0.0

    async def __call__(self, turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        await turn.await_event(EVENT, timeout_ms=None)
        self.went_on_s = time.perf_counter()
        yield text(TOKEN)
        yield upstream_end("stop")


class Woken(NamedTuple):
    """How long after the event was sent the body went on, and the reader had its frame."""

    body_ms: float
    frame_ms: float


async def wake(url: str, rounds: int, send: Send | None = None) -> list[Woken]:
    """Let turns sleep, and wake each of them; without `send`, over the turn's own store."""
    model, found = Asking(), list[Woken]()
    store = await perdure.open_store(url)
    engine = perdure.ChatTurnEngine(store, produce=model)

    async def send_here(run_id: str) -> float:
        began = time.perf_counter()
        await perdure.emit_event(store, run_id, EVENT, None)
        return began

    for index in range(rounds + 1):
        place = "here" if send is None else "elsewhere"
        turn = perdure.ChatTurnIdentity("", f"{place}{index}", "ann", 0)
        run_id = run_id_of(turn)
        submitted = await engine.submit(turn, "Hi")
        reading = asyncio.create_task(until_token(submitted.lines()))
        while (run := await store.read_run(run_id)) is None or run.state != "waiting":
            await store.wait_for_change(run_id, timeout_ms=50)
        # A human answers at any moment between two looks.
        await asyncio.sleep(random.uniform(0.05, 0.25))
        sent_s = await (send or send_here)(run_id)
        read_s = await reading
        found.append(Woken((model.went_on_s - sent_s) * 1e3, (read_s - sent_s) * 1e3))
    await engine.aclose()
    await store.close()
    return found[1:]


@asynccontextmanager
async def _sender(url: str) -> AsyncIterator[Send]:
    """Yield what has another process send the event, by the clock of the machine."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.turn_wakeup", "--send", url),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    sink, source = process.stdin, process.stdout
    assert sink is not None
    assert source is not None

    async def send(run_id: str) -> float:
        sink.write(f"{run_id}\n".encode())
        return float(await source.readline())

    yield send
    sink.close()
    await process.wait()


async def send_from_here(url: str) -> None:
    """Send the event to each run that is named on a line, and print when that began."""
    store = await perdure.open_store(url)
    while line := await asyncio.to_thread(sys.stdin.readline):
        began = time.perf_counter()
        await perdure.emit_event(store, line.strip(), EVENT, None)
        print(began, flush=True)
    await store.close()


async def measure(scheme: str, rounds: int) -> tuple[list[Woken], list[Woken]]:
    """Return how soon turns went on, woken by their own process and by another one."""
    async with empty(scheme) as url:
        here = await wake(url, rounds)
        async with _sender(url) as send:
            return here, await wake(url, rounds, send)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--store", choices=("sqlite", "file", "postgres"), default="sqlite")
    parser.add_argument("--send", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        asyncio.run(send_from_here(options.send))
        return
    here, elsewhere = asyncio.run(measure(options.store, options.rounds))
    for sender, found in (("this process", here), ("another process", elsewhere)):
        for what, values in zip(("the body", "the reader"), zip(*found, strict=True), strict=True):
            told = f"sent by {sender}, {what} goes on"
            print(f"{told:<46}{statistics.median(values):7.2f} ms, worst {max(values):.2f}")


if __name__ == "__main__":
    main()
