"""A chat turn: streamed, recorded, and replayed without asking the model again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from perdure import ChatTurnEngine, ChatTurnIdentity, Frame, Turn, open_store
from perdure.backends.protocol import Prompt
from perdure.backends.scripted import ScriptedBackend

backend = ScriptedBackend()


async def produce(turn: Turn) -> AsyncIterator[Frame]:
    """Answer a turn; all that is known of it comes from the store, so any process may do it."""
    messages = [*turn.history, {"role": "user", "content": turn.user_message}]
    prompt = Prompt(messages, model=turn.model, idempotency_key=turn.idempotency_key)
    async for frame in backend.stream(prompt):
        yield frame


async def ask(engine: ChatTurnEngine, turn_index: int, message: str) -> str:
    identity = ChatTurnIdentity("", "kitchen", "ada", turn_index)
    submitted = await engine.submit(identity, message)
    text = ""
    async for lines in submitted.lines():
        for line in lines.splitlines():
            data = json.loads(line)["data"]
            if data.get("part", {}).get("type") == "text":
                text += data["delta"]
    print(f"turn {turn_index} ({'new' if submitted.created else 'known'}): {text[:60]!r} …")
    return text


async def main() -> None:
    store = await open_store("memory:")
    engine = ChatTurnEngine(store, produce=produce)
    first = await ask(engine, 0, "What is the weather like in Lisbon?")
    await ask(engine, 1, "And what is 6 * 7?")
    again = await ask(engine, 0, "What is the weather like in Lisbon?")
    assert first == again
    await engine.aclose()
    await store.close()
    print(f"three answers read, the model was called {backend.calls} times")


if __name__ == "__main__":
    asyncio.run(main())
