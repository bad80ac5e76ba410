"""The worker that `perdure demo` kills: `python -m perdure.cli.demo_worker STORE CALLS`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Final

from perdure.backends.protocol import Prompt
from perdure.backends.scripted import ScriptedBackend, word_pieces
from perdure.core.frames import Frame, text, upstream_end, usage
from perdure.store.opening import open_store
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn

NAME: Final = "demo"
QUESTION: Final = "When is high water in Aveiro?"
LEASE_MS: Final = 1_500
TOKEN_DELAY_MS: Final = 25
STEP: Final = "read the tide table"
OPENING: Final = "Let me look at the tide table. "
ANSWER: Final = (
    "High water in Aveiro is at 14:20 today, with 3.1 metres, and the next one at 02:45 tonight. "
    "If you want to walk along the sand to the lighthouse, go before noon or after five: in "
    "between there is not much sand to walk on."
)


class Answering:
    """The producer: a step that must not be repeated, then a model that streams.

    Each call of either is one line in the file `calls`, which survives whoever is killed.
    """

    def __init__(self, calls: str) -> None:
        self._calls = calls
        said = [text(piece, "p2") for piece in word_pieces(ANSWER)]
        used = usage(provider="scripted", model="scripted-1", tokens_out=len(said))
        script = [*said, used, upstream_end("stop")]
        self._model = ScriptedBackend(script, token_delay_ms=TOKEN_DELAY_MS)
        self.provider, self.model = self._model.name, self._model.model

    async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        yield text(OPENING, "p1")
        await turn.step(STEP, lambda: self._read("tide"))
        self._note("model")
        async for frame in self._model.stream(Prompt([{"role": "user", "content": QUESTION}])):
            yield frame

    def _read(self, what: str) -> str:
        self._note(what)
        return "14:20, 3.1 m; 02:45, 3.0 m"

    def _note(self, what: str) -> None:
        # In one write that is on its way before the call is made.
        descriptor = os.open(self._calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{what}\n".encode())
        finally:
            os.close(descriptor)


async def work(url: str, calls: str) -> None:
    """Work until whoever began this process has closed its stdin, or is gone."""
    store = await open_store(url)
    engine = ChatTurnEngine(store, produce=Answering(calls), name=NAME, lease_ms=LEASE_MS)
    try:
        engine.start()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)
    finally:
        await engine.aclose(drain_ms=0)
        await store.close()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2]))
