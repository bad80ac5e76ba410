"""A process that claims a run in a store: `python -m tests.crash.damage_process URL`."""

from __future__ import annotations

import asyncio
import sys

from perdure.errors import StoreError
from perdure.store.opening import open_store
from perdure.testing.samples import hold


async def main(url: str) -> None:
    try:
        store = await open_store(url)
        await hold(store, "another")
    except StoreError as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
    else:
        sys.stdout.write("it was written\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
