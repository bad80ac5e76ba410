"""A process that works on one turn and is killed at a point of its calls of the store.

    python -m tests.crash.matrix_process URL NOTES ROLE [CALL before|after]

ROLE "submit" submits the turn and works on it; "recover" only looks for what the dead have left;
"deliver" does so at a time when their claims of deliveries have lapsed. Each of its calls of the
store is noted as `ROLE call NAME#N`, and what it does outside by its name.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, cast

import perdure
from perdure.core.effects import system_clock
from perdure.core.frames import Frame, text, tool_call, tool_result, upstream_end, usage
from perdure.core.limits import DELIVERY_CLAIM_MS, LEASE_MS
from perdure.core.transitions import RESTING_STATES
from tests.crash.killing import Killer, KillingStore, Point, When
from tests.crash.turn_process import Notes, joined

TURN = perdure.ChatTurnIdentity("", "s", "ann", 0)
RUN_ID = "chat:s:0"
TOKEN_S = 0.004
LAPSING_MS = 8_000
"""The lease on a store that cannot tell who is dead."""
ASKED = [f"look{number} " for number in range(12)]
ANSWERED = [f"word{number} " for number in range(24)]
FOUND = "found "
FINAL = "".join(ASKED) + FOUND + "".join(ANSWERED)
MODELS = ("ask", "answer")
TOPICS = ("persist", "complete")


async def model(notes: Notes, name: str, tokens: Sequence[str]) -> AsyncIterator[Frame]:
    notes.add(name)
    for token in tokens:
        await asyncio.sleep(TOKEN_S)
        yield text(token)
    yield usage(model=name, tokens_in=10, tokens_out=len(tokens))
    yield upstream_end("stop")


def producer(notes: Notes) -> Any:
    """Ask a model, call a tool, ask again."""

    async def tool() -> str:
        notes.add("tool")
        await asyncio.sleep(0.03)
        return FOUND

    async def produce(turn: perdure.Turn) -> AsyncIterator[Any]:
        notes.add("producer")
        ask = partial(model, notes, "ask", ASKED)
        async for frame in turn.stream("ask", ask, result=joined):
            yield frame
        yield tool_call("1", "search", {}, "idempotent")
        found = await turn.step("tool", tool, kind="tool", effect="idempotent")
        yield tool_result("1", found)
        yield text(found)
        answer = partial(model, notes, "answer", ANSWERED)
        async for frame in turn.stream("answer", answer, result=joined):
            yield frame

    return produce


def hooks(notes: Notes) -> perdure.ChatTurnHooks:
    """Return hooks that note the key of each of their calls, and that the text is whole."""

    def note(topic: str, turn: perdure.FinishedTurn) -> None:
        assert turn.final_text == FINAL
        notes.add(f"{topic} {turn.idempotency_key}")

    return perdure.ChatTurnHooks(
        persist_assistant_message=partial(note, "persist"),
        on_turn_complete=partial(note, "complete"),
    )


def later() -> int:
    """Return the time when every claim of a delivery that was made until now has lapsed."""
    return system_clock() + DELIVERY_CLAIM_MS


async def is_settled(store: perdure.RunStore) -> bool:
    """Return whether the turn is at rest and each of its deliveries was made."""
    run = await store.read_run(RUN_ID)
    if run is None or run.state not in RESTING_STATES:
        return False
    details = await store.read_details(RUN_ID)
    return all(delivery.state == "delivered" for delivery in details.deliveries)


async def main(url: str, notes_path: str, role: str, point: Point | None) -> None:
    notes = Notes(notes_path)
    store = await perdure.open_store(url, clock=later if role == "deliver" else None)
    killer = Killer(lambda line: notes.add(f"{role} {line}"), point)
    engine = perdure.ChatTurnEngine(
        KillingStore(store, killer),
        produce=producer(notes),
        hooks=hooks(notes),
        lease_ms=LAPSING_MS if url.startswith("d1:") else LEASE_MS,
    )
    if role == "submit":
        await engine.submit(TURN, "Hi")
    engine.start()
    while True:
        if await is_settled(store):
            break
        await asyncio.sleep(0.02)
    await engine.aclose()
    await store.close()


if __name__ == "__main__":
    where = sys.argv[4:]
    dies = Point(where[0], cast(When, where[1])) if where else None
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], dies))
