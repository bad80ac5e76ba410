"""A reader that leaves in the middle of a turn and comes back by its cursor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from perdure import ChatTurnEngine, ChatTurnIdentity, Frame, Turn, frames, open_store

WORDS = ["The", "turn", "goes", "on", "whether", "or", "not", "anybody", "reads", "it", "."]


async def produce(turn: Turn) -> AsyncIterator[Frame]:
    for word in WORDS:
        await asyncio.sleep(0.02)
        yield frames.text(f"{word} ")
    yield frames.upstream_end("stop")


class Reader:
    """What a client keeps: the text so far, and the cursor behind it."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.pieces: list[str] = []

    async def read(self, lines: AsyncIterator[bytes], *, at_most: int | None = None) -> None:
        async for encoded in lines:
            for line in encoded.splitlines():
                envelope = json.loads(line)
                event = envelope["chunk"] or {"type": "heartbeat"}
                self.cursor = envelope["id"] or self.cursor
                if event["type"] == "message.part.updated":
                    self.pieces.append(event["data"]["delta"])
                if at_most is not None and len(self.pieces) >= at_most:
                    return


async def main() -> None:
    store = await open_store("memory:")
    engine = ChatTurnEngine(store, produce=produce)
    identity = ChatTurnIdentity("", "train", "ada", 0)
    reader = Reader()
    submitted = await engine.submit(identity, "Hello from a tunnel")
    await reader.read(submitted.lines(wire="envelope"), at_most=3)
    print(f"the reader leaves with {''.join(reader.pieces)!r}")
    print(f"and keeps the cursor {reader.cursor}")

    await asyncio.sleep(0.1)
    await reader.read(engine.read(identity, after=reader.cursor, wire="envelope"))
    await engine.aclose()
    await store.close()
    assert reader.pieces == [f"{word} " for word in WORDS]
    print(f"no word is missing and none came twice: {''.join(reader.pieces)}")


if __name__ == "__main__":
    asyncio.run(main())
