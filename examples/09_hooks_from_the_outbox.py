"""Hooks after a turn: delivered until they succeed, with a key that makes twice harmless."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from perdure import (
    ChatTurnEngine,
    ChatTurnHooks,
    ChatTurnIdentity,
    FinishedTurn,
    Frame,
    Turn,
    frames,
    open_store,
)


async def produce(turn: Turn) -> AsyncIterator[Frame]:
    yield frames.text("All done.")


class Hooks(ChatTurnHooks):
    """A product whose database fails once, just after it has stored the message."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self.tries = 0

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        self.tries += 1
        self.messages[turn.idempotency_key] = turn.final_text
        if self.tries == 1:
            raise ConnectionError("the reply of the database was lost")

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        print(f"billed {turn.record.run_id}, after {self.tries} tries of the hook before")


async def main() -> None:
    logging.getLogger("perdure.outbox").setLevel(logging.ERROR)
    store = await open_store("memory:")
    hooks = Hooks()
    engine = ChatTurnEngine(store, produce=produce, hooks=hooks)
    submitted = await engine.submit(ChatTurnIdentity("", "office", "ada", 0), "Finish it")
    async for line in submitted.lines():
        print(line.decode(), end="")
    states: list[str] = []
    while states != ["delivered", "delivered"]:
        await asyncio.sleep(0.05)
        details = await store.read_details("chat:office:0")
        states = [delivery.state for delivery in details.deliveries]
    await engine.aclose()
    await store.close()
    print(f"{hooks.tries} tries, {len(hooks.messages)} message in the product's database")


if __name__ == "__main__":
    asyncio.run(main())
