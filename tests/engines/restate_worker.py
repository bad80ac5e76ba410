"""A worker that serves handlers to Restate, as a process that tests can kill.

Its arguments: where it listens, the database, the log of what the model was asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config

from perdure import ChatTurnEngine, frames, open_store
from perdure.engines.restate import RestateSessions

PIECES = 40


class Model:
    """Answers with numbered words, and notes each call, so that tests can count them."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def note(self, what: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{os.getpid()} {what}\n")

    async def say(self, name: str, *, pause_s: float = 0.0) -> AsyncIterator[Any]:
        self.note(name)
        for number in range(PIECES):
            yield frames.text(f"{name}{number} ")
            await asyncio.sleep(pause_s)
        yield frames.upstream_end("stop")

    async def produce(self, turn: Any) -> AsyncIterator[Any]:
        """Answer as the message says: "plain", "steps" or "approve", slowly behind a "slow "."""
        pause_s = 0.05 if turn.user_message.startswith("slow ") else 0.0
        kind = turn.user_message.removeprefix("slow ")
        if kind == "plain":
            async for frame in self.say("plain", pause_s=pause_s):
                yield frame
            return
        first = turn.stream("first", lambda: self.say("first"), result=_text_of)
        async for frame in first:
            yield frame
        found = await turn.step("look", lambda: self._looked(len(first.result)), kind="logic")
        yield frames.text(f"found {found} ")
        if kind == "approve":
            answer = await turn.await_event("approval", timeout_ms=20_000)
            yield frames.text(f"approved by {answer['by']} ")
        last = turn.stream("last", lambda: self.say("last", pause_s=pause_s), result=_text_of)
        async for frame in last:
            yield frame

    def _looked(self, length: int) -> int:
        self.note("look")
        return length


def _text_of(said: Any) -> str:
    return "".join(frame.data["delta"] for frame in said if frame.kind == "text")


async def main(bind: str, database: str, log: str) -> None:
    logging.basicConfig(level=logging.INFO)
    store = await open_store(database)
    engine = ChatTurnEngine(store, produce=Model(Path(log)).produce)
    config = Config()
    config.bind = [bind]
    sessions = RestateSessions(engine)
    await serve(restate.app(sessions.services), config, mode="asgi")
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
