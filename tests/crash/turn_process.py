"""A process that works on one turn until it is killed; what it does outside is noted in a file."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import perdure
from perdure.core.frames import Frame, text, tool_call, tool_result, upstream_end
from perdure.core.limits import LEASE_MS
from perdure.core.transitions import RESTING_STATES
from tests.turn.stage import until

TURN = perdure.ChatTurnIdentity("", "s", "ann", 0)
TOKEN_S = 0.006
ASKED = [f"look{number} " for number in range(12)]
ANSWERED = [f"word{number} " for number in range(25)]
FOUND = "found "
FINAL = "".join(ASKED) + FOUND + "".join(ANSWERED)


class Notes:
    """Lines in a file that survive the process: one write each, so none is torn."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())


def joined(frames: Sequence[Frame]) -> str:
    return "".join(frame.data["delta"] for frame in frames if frame.kind == "text")


def producer(notes: Notes, *, silent_in: str | None) -> Any:
    """Ask a model, call a tool, ask again; one of the two answers may fall silent for good."""

    async def model(name: str, tokens: Sequence[str]) -> AsyncIterator[Frame]:
        notes.add(name)
        for number, token in enumerate(tokens):
            await asyncio.sleep(TOKEN_S)
            yield text(token)
            if (name, number) == (silent_in, 2):
                notes.add("silent")
                await asyncio.Event().wait()
        yield upstream_end("stop")

    async def tool() -> str:
        notes.add("tool")
        await asyncio.sleep(0.02)
        return FOUND

    async def produce(turn: perdure.Turn) -> AsyncIterator[Any]:
        notes.add("producer")
        async for frame in turn.stream("ask", lambda: model("ask", ASKED), result=joined):
            yield frame
        yield tool_call("1", "search", {}, "idempotent")
        found = await turn.step("tool", tool, kind="tool", effect="idempotent")
        yield tool_result("1", found)
        yield text(found)
        async for frame in turn.stream("answer", lambda: model("answer", ANSWERED), result=joined):
            yield frame

    return produce


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def hooks_were_tried(store: perdure.RunStore) -> bool:
    details = await store.read_details("chat:s:0")
    return all(delivery.tries > 0 for delivery in details.deliveries)


async def main(
    url: str, notes_path: str, silent_in: str | None = None, lease_ms: str = str(LEASE_MS)
) -> None:
    """Submit the turn again and again, as an impatient client would, until it is at rest.

    The lease is so long that a busy machine takes it from nobody; the dead lose it at once.
    """
    notes = Notes(notes_path)

    def persist(turn: perdure.FinishedTurn) -> None:
        notes.add(f"persist {turn.idempotency_key}")

    store = await perdure.open_store(url)
    engine = perdure.ChatTurnEngine(
        store,
        produce=producer(notes, silent_in=silent_in),
        hooks=perdure.ChatTurnHooks(persist_assistant_message=persist),
        lease_ms=int(lease_ms),
    )
    while True:
        submitted = await engine.submit(TURN, "Hi")
        if submitted.run.state in RESTING_STATES:
            break
        say(submitted.run.state)
        await asyncio.sleep(0.05)
    await until(lambda: hooks_were_tried(store))
    await engine.aclose()
    await store.close()
    say("over")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
