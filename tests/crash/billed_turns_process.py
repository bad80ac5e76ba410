"""A process that answers turns by billed responses, stops some of them, and replaces others.

python -m tests.crash.billed_turns_process STORE PROVIDER SESSIONS
"""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import suppress

import perdure
from perdure.backends.responses import OpenAIResponsesBackend
from perdure.core.transitions import RESTING_STATES
from tests.crash.billing import MODEL
from tests.crash.turn_process import say

LEASE_MS = 5_000
PAUSE_S = 0.08


def identity_of(session: int, turn: int) -> perdure.ChatTurnIdentity:
    return perdure.ChatTurnIdentity("", f"chat-{session}", "ann", turn)


async def answered(engine: perdure.ChatTurnEngine, session: int, turn: int) -> None:
    """Submit a turn until it is at rest; what its user says is whose bill it is."""
    identity = identity_of(session, turn)
    asker = f"chat:chat-{session}:{turn} 0"
    while True:
        # A process that died may have begun the second turn, and not the first one.
        with suppress(perdure.SessionBusyError):
            submitted = await engine.submit(identity, asker, busy="replace" if turn else "reject")
            if submitted.run.state in RESTING_STATES:
                return
        await asyncio.sleep(0.02)


async def stopped(engine: perdure.ChatTurnEngine, session: int) -> None:
    asking = asyncio.ensure_future(answered(engine, session, 0))
    await asyncio.sleep(random.uniform(0, PAUSE_S))
    # One that is not begun yet will not be stopped.
    with suppress(perdure.RunNotFoundError):
        await engine.stop(identity_of(session, 0))
    await asking


async def replaced(engine: perdure.ChatTurnEngine, session: int) -> None:
    """Ask, and before the answer is whole ask something else."""
    first = asyncio.ensure_future(answered(engine, session, 0))
    await asyncio.sleep(random.uniform(0, PAUSE_S))
    await asyncio.gather(first, answered(engine, session, 1))


async def main(url: str, address: str, count: int) -> None:
    store = await perdure.open_store(url)
    backend = OpenAIResponsesBackend(base_url=address, model=MODEL, api_key="key")
    engine = perdure.ChatTurnEngine(
        store, produce=perdure.answer_with(backend), lease_ms=LEASE_MS, strikes_max=99
    )
    say("ready")
    ways = (stopped, replaced)
    async with asyncio.TaskGroup() as group:
        for session in range(count):
            way = session % 4
            asked = ways[way](engine, session) if way < 2 else answered(engine, session, 0)
            group.create_task(asked)
    await engine.aclose()
    await backend.aclose()
    await store.close()
    say("over")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
