"""A worker of ours, in a process of its own, that serves the tasks of the hosts' contract.

Its argument: the URL of the store.
"""

from __future__ import annotations

import asyncio
import sys

from perdure import Worker, open_store
from perdure.testing import HOST_TASKS


async def main(url: str) -> None:
    store = await open_store(url)
    worker = Worker(store, tasks=HOST_TASKS)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
