"""Live turns at the pace of a model on virtual time, so that what their tokens take can be counted.

    python -m bench.paced_turns [--turns 100] [--tokens 200] [--raw]
    valgrind --tool=callgrind python -m bench.paced_turns --turns 40 --tokens 60

Every turn says a token every 50 ms and has one reader, in memory, in one process. Nobody waits:
the loop's clock jumps to the next timer. Each token comes alone, so each is a write of its own, as
under `bench.load`. With `--raw` it is the generators alone. The difference between two counts of
valgrind, with more and with fewer tokens, hardly notices a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import selectors
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import perdure
from perdure.core.frames import text, upstream_end

TOKEN_S: Final = 0.05
PHASE_S: Final = 0.0037
"""One turn begins so long after the other, so that their tokens do not come at one moment."""


class _NeverWaits(selectors.DefaultSelector):
    """Lets the time that it is asked to wait for pass at once."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            # A little more, so that the timer is due whatever was rounded.
            self.now_s += timeout + 1e-6
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps."""

    def __init__(self) -> None:
        self._jumps = _NeverWaits()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now_s


async def tokens(number: int, count: int) -> AsyncIterator[perdure.Frame]:
    await asyncio.sleep(number * PHASE_S)
    for index in range(count):
        await asyncio.sleep(TOKEN_S)
        yield text(f" tok{index % 100}")
    yield upstream_end("stop")


async def drain(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


async def raw(turns: int, count: int) -> float:
    """Return the processor time of the generators alone, in seconds."""
    began = time.process_time()
    await asyncio.gather(*(drain(tokens(number, count)) for number in range(turns)))
    return time.process_time() - began


async def ours(turns: int, count: int) -> float:
    """Return the processor time of the turns, in seconds."""
    engine = perdure.ChatTurnEngine(
        perdure.MemoryStore(),
        produce=lambda turn: tokens(int(turn.user_message), count),
        recover=False,
    )
    named = [perdure.ChatTurnIdentity("", f"s{number}", "ann", 0) for number in range(turns)]
    submitted = [await engine.submit(turn, str(number)) for number, turn in enumerate(named)]
    began = time.process_time()
    await asyncio.gather(*(drain(each.lines()) for each in submitted))
    await engine.aclose()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--raw", action="store_true")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        spent_s = runner.run((raw if options.raw else ours)(options.turns, options.tokens))
    print(f"{1e6 * spent_s / options.turns / options.tokens:.1f} us of processor time for a token")


if __name__ == "__main__":
    main()
