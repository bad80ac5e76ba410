"""A process that writes steps on a disk that fails, or is recorded.

    python -m tests.crash.disk_process URL full|normal

Each line of its output is a position and what came of it: "acknowledged", or the error's name. A
write that failed is tried again, as a client would. The opening is position "open".
"""

from __future__ import annotations

import asyncio
import sys
from typing import Literal, cast

from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease
from perdure.errors import StoreError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.samples import completed, hold, row

ALONE = 6
AT_ONCE = 4
TRIES = 3
RUN_ID = "run"


def say(position: object, what: str) -> None:
    sys.stdout.write(f"{position} {what}\n")
    sys.stdout.flush()


async def write(store: RunStore, lease: Lease, position: int) -> None:
    """Renew the lease and write a step until it is acknowledged, or was refused too often."""
    for _ in range(TRIES):
        try:
            await store.renew([lease], LEASE_MS)
            written = await store.write(lease, completed(position, f"result {position}"))
        except StoreError as error:
            say(position, type(error).__name__)
        else:
            assert written.steps[0].result == f"result {position}"
            say(position, "acknowledged")
            return


async def main(url: str, durability: Literal["full", "normal"]) -> None:
    try:
        store = await open_store(url, durability=durability)
        lease = await hold(store, RUN_ID)
        await store.write(lease, row(1, "x" * 20_000))
    except StoreError as error:
        say("open", type(error).__name__)
        return
    for position in range(ALONE):
        await write(store, lease, position)
    places = range(ALONE, ALONE + AT_ONCE)
    await asyncio.gather(*(write(store, lease, position) for position in places))
    await store.close()
    say("close", "over")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], cast(Literal["full", "normal"], sys.argv[2])))
