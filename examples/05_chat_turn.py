"""A chat turn: streamed, recorded, and replayed without asking the model again."""

from __future__ import annotations

import asyncio
import json

from perdure import ChatTurnEngine, ChatTurnIdentity, answer_with, open_store
from perdure.backends import ScriptedBackend

backend = ScriptedBackend()


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
    engine = ChatTurnEngine(store, produce=answer_with(backend))
    first = await ask(engine, 0, "What is the weather like in Lisbon?")
    await ask(engine, 1, "And what is 6 * 7?")
    again = await ask(engine, 0, "What is the weather like in Lisbon?")
    assert first == again
    await engine.aclose()
    await store.close()
    print(f"three answers read, the model was called {backend.calls} times")


if __name__ == "__main__":
    asyncio.run(main())
