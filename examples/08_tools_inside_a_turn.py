"""Tools inside a turn: recorded steps, which the next attempt neither repeats nor pays again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

from perdure import ChatTurnEngine, ChatTurnIdentity, Frame, Turn, current_step, frames, open_store

calls: list[str] = []


async def model(turn: Turn, question: str, answer: str) -> AsyncIterator[Frame]:
    """Stand in for a model; in the first attempt it hangs in the middle of its second answer."""
    calls.append(f"attempt {turn.attempt} asks the model {question!r}")
    for word in answer.split():
        yield frames.text(f"{word} ")
        if turn.attempt == 1 and word == "pleasant":
            await asyncio.Event().wait()
    yield frames.usage(model="stand-in", tokens_in=12, tokens_out=len(answer.split()))


def text_of(answer: Sequence[Frame]) -> str:
    return "".join(frame.data["delta"] for frame in answer if frame.kind == "text")


def weather(city: str) -> dict[str, object]:
    calls.append(f"the tool runs for {city} under key {current_step().idempotency_key[:8]}")
    return {"city": city, "degrees": 21}


async def produce(turn: Turn) -> AsyncIterator[Frame]:
    """Ask, run the tool, ask again: three steps, each recorded with the frames before its end."""
    plan = turn.stream("plan", lambda: model(turn, "which tool?", "Let me look."), result=text_of)
    async for frame in plan:
        yield frame
    yield frames.tool_call("c1", "weather", {"city": "Lisbon"}, effect="idempotent")
    found = await turn.step("weather", lambda: weather("Lisbon"), kind="tool", effect="idempotent")
    yield frames.tool_result("c1", found)
    words = f"A pleasant day of {found['degrees']} degrees."
    async for frame in turn.stream(
        "answer", lambda: model(turn, "what does it mean?", words), result=text_of
    ):
        yield frame


async def main() -> None:
    store = await open_store("memory:")
    identity = ChatTurnIdentity("", "travel", "ada", 0)
    first = ChatTurnEngine(store, produce=produce)
    async for lines in (await first.submit(identity, "How warm is Lisbon?")).lines():
        if b"pleasant" in lines:
            break
    await first.aclose(drain_ms=0)
    print("the first engine is gone, in the middle of the answer")

    second = ChatTurnEngine(store, produce=produce)
    async for lines in second.read(identity):
        for line in lines.splitlines():
            event = json.loads(line)
            print(event["type"], json.dumps(event["data"])[:64])
    await second.aclose()
    await store.close()
    print("\n".join(calls))
    print(f"the tool ran {sum('tool runs' in call for call in calls)} time in two attempts")


if __name__ == "__main__":
    asyncio.run(main())
