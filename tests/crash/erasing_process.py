"""A process that begins a session and erases it, again and again, on a disk that is recorded.

    python -m tests.crash.erasing_process URL

Each line of its output is what came to be, and the number of the round: "begun", when the session
has its turns, "erasing", and "erased". Each turn has the number of its round as its result.
"""

from __future__ import annotations

import asyncio
import sys

from perdure.core.records import SessionKey
from perdure.store.erasure import erasure_of
from perdure.store.opening import open_store
from perdure.testing.samples import completed, finish

ROUNDS = 3
TURNS = ("s-0", "s-1")
SESSION = "s"


def say(what: str, number: int) -> None:
    sys.stdout.write(f"{what} {number}\n")
    sys.stdout.flush()


async def main(url: str) -> None:
    store = await open_store(url)
    for number in range(ROUNDS):
        for turn, run_id in enumerate(TURNS):
            await finish(store, run_id, completed(0, number), session=SessionKey(SESSION, turn))
        say("begun", number)
        if number < ROUNDS - 1:
            say("erasing", number)
            await erasure_of(store).remove_session(SESSION)
            say("erased", number)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
