"""What other processes do in the tests of files: `python -m tests.store.file_children NAME …`."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

from perdure.core.records import SessionKey
from perdure.errors import PerdureError, StoreFullError, UsageError
from perdure.store import filedata, fileruns
from perdure.store.files import FileStore
from perdure.testing.samples import completed, ended, hold, row
from tests.store.file_folders import log_of


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def write_steps(path: str, run_id: str, count: str) -> None:
    """Write steps one after the other, each told once it was acknowledged."""
    store = FileStore(path)
    lease = await hold(store, run_id)
    say("ready")
    sys.stdin.readline()
    for position in range(int(count)):
        await store.write(lease, completed(position, position), row(position + 1, "x"))
        say(position)
    await store.close()


async def finish_turns(path: str, name: str, count: str) -> None:
    """Fight for the place in one session, and take turns in it; each is told once it is done."""
    store = FileStore(path)
    say("ready")
    sys.stdin.readline()
    done = 0
    while done < int(count):
        key = SessionKey("s", done)
        try:
            lease = await hold(store, f"{name}-{done}", worker_id=name, session=key)
        except PerdureError:
            await asyncio.sleep(0.001)
            continue
        await store.write(lease, completed(0), ended())
        say(done)
        done += 1
    await store.close()


async def erase_and_die(path: str, session_id: str, survived: str) -> None:
    """Erase a session, and be killed at the deletion of a log, behind so many that went well."""
    left = int(survived)

    def remove(path: str) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        fileruns.remove_log(path)

    setattr(filedata, "remove_log", remove)  # noqa: B010 what a module imports is not its own
    store = FileStore(path)
    await store.erasure().remove_session(session_id)
    say("alive")
    await store.close()


async def claim_all(path: str, name: str, count: str) -> None:
    """Claim many runs, and tell those that were got."""
    store = FileStore(path)
    say("ready")
    sys.stdin.readline()
    got: list[str] = []
    for number in range(int(count)):
        try:
            await hold(store, f"run-{number}", worker_id=name)
        except PerdureError:
            continue
        got.append(f"run-{number}")
    say(",".join(got))
    await store.close()


async def fill_the_disk(path: str, bytes_max: str) -> None:
    """Write until a file may not grow any more, then go on once it may."""
    store = FileStore(path)
    lease = await hold(store)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(bytes_max), hard))
    position = 0
    try:
        while True:
            await store.write(lease, completed(position), row(position + 1, "x" * 500))
            position += 1
    except StoreFullError as error:
        say(error)
    say(log_of(Path(path)).read_bytes().endswith(b"\n"))
    say(position)
    say(len(await store.read_steps("run")))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await store.write(lease, completed(position), row(position + 1, "x" * 500))
    await store.close()


async def make_no_room_for_a_run(path: str) -> None:
    """Begin a run where a file may hold nothing."""
    store = FileStore(path)
    await store.open()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
    try:
        await hold(store, session=SessionKey("s", 0, 0, "ann"))
    except StoreFullError:
        say("full")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    say(await store.read_run("run"))
    await hold(store, session=SessionKey("s", 0, 0, "bob"))
    await store.close()


async def make_no_room_for_a_tombstone(path: str, session_id: str) -> None:
    """Erase a session where a file may hold a part of a tombstone, then where there is room."""
    store = FileStore(path)
    await store.open()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        await store.erasure().remove_session(session_id)
    except StoreFullError:
        say("full")
    say(len(await store.list_runs(session_id=session_id)))
    say(len(list((Path(path) / "erasing").iterdir())))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    say(await store.erasure().remove_session(session_id))
    await store.close()


async def read_and_write(path: str) -> None:
    """Read a run where nothing can be written, and try to write."""
    store = FileStore(path)
    run = await store.read_run("run")
    assert run is not None
    say(f"{run.state} {len(await store.list_runs())}")
    try:
        await hold(store, "another")
    except PerdureError as error:
        say(f"{type(error).__name__}: {error}")
    await store.close()


async def fork(path: str) -> None:
    """Use a handle in a fork of the process that opened it."""
    store = FileStore(path)
    await hold(store)
    child = os.fork()
    if child == 0:
        try:
            # The loop of the parent does not run here: a fork begins with one of its own.
            asyncio.run(_read(store))
        except UsageError as error:
            say(error)
        finally:
            os._exit(0)
    await asyncio.to_thread(os.waitpid, child, 0)
    await hold(store, "second")
    say("the parent goes on")
    await store.close()


async def _read(store: FileStore) -> None:
    await store.read_run("run")


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
