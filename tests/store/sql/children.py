"""What other processes do in the tests of SQLite: `python -m tests.store.sql.children NAME …`."""

from __future__ import annotations

import asyncio
import os
import resource
import sys

from perdure.errors import PerdureError, StoreUnavailableError, UsageError
from perdure.store.opening import open_store
from perdure.store.sql.database import Statement
from perdure.store.sql.sqlite import Sqlite
from perdure.testing.samples import completed, hold


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def write_steps(path: str, run_id: str, count: str) -> None:
    """Write steps one after the other, each told once it was acknowledged."""
    store = await open_store(f"sqlite:{path}")
    lease = await hold(store, run_id)
    say("ready")
    sys.stdin.readline()
    for position in range(int(count)):
        await store.write(lease, completed(position, position))
        say(position)
    await store.close()


async def claim_all(path: str, name: str, count: str) -> None:
    """Claim many runs, and tell those that were got."""
    store = await open_store(f"sqlite:{path}")
    say("ready")
    sys.stdin.readline()

    async def claim(run_id: str) -> str | None:
        try:
            await hold(store, run_id, worker_id=name)
        except PerdureError:
            return None
        return run_id

    got = await asyncio.gather(*(claim(f"run-{number}") for number in range(int(count))))
    say(",".join(run_id for run_id in got if run_id))
    await store.close()


async def open_and_leave(path: str) -> None:
    """Open a store on a signal."""
    say("ready")
    sys.stdin.readline()
    store = await open_store(f"sqlite:{path}")
    say(await store.read_run("nobody"))
    await store.close()


async def break_the_disk(path: str) -> None:
    """Go on after the file system has refused a write: nothing may be tried again."""
    store = await open_store(f"sqlite:{path}")
    lease = await hold(store)
    await store.write(lease, completed(0))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    writes = [asyncio.ensure_future(store.write(lease, completed(at))) for at in range(1, 9)]
    answers = await asyncio.gather(*writes, return_exceptions=True)
    say(sorted({type(answer).__name__ for answer in answers}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    for call in (store.write(lease, completed(1)), store.read_run("run"), store.renew([lease], 1)):
        try:
            await call
        except StoreUnavailableError:
            say("dead")
    await store.close()


async def _write(database: Sqlite, statements: list[Statement]) -> None:
    await database.run(statements)


async def fork(path: str) -> None:
    """Use a handle in a fork of the process that opened it."""
    database = Sqlite(path)
    list_of_one = [Statement("lock_session", ("", "s", None))]
    await database.run(list_of_one)
    child = os.fork()
    if child == 0:
        try:
            # The loop of the parent does not run here: a fork begins with one of its own.
            asyncio.run(_write(database, list_of_one))
        except UsageError as error:
            say(error)
        finally:
            os._exit(0)
    await asyncio.to_thread(os.waitpid, child, 0)
    await database.run(list_of_one)
    say("the parent goes on")
    await database.close()


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
