"""What other processes do in the tests of liveness: `python -m tests.store.lock_children …`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from perdure.store.lockfolder import LockFolder
from perdure.store.opening import open_store
from perdure.testing.samples import HANDLER, completed, hold

ROOT = Path(__file__).parents[2]


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def take(folder: str) -> None:
    """Hold a lock until somebody ends this process."""
    locks = LockFolder(folder)
    say(locks.take())
    sys.stdin.readline()
    os._exit(0)


def take_and_close(folder: str) -> None:
    """Hold a lock until it is let go as it should be."""
    locks = LockFolder(folder)
    say(locks.take())
    sys.stdin.readline()
    locks.release()


def take_and_fork(folder: str) -> None:
    """Hold a lock beside a fork and a program that live on."""
    locks = LockFolder(folder)
    say(locks.take())
    child = os.fork()
    if child == 0:
        # What ends in the fork is none of the parent's.
        locks.release()
        time.sleep(60)
        os._exit(0)
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    say(f"{child} {program.pid}")
    sys.stdin.readline()


def take_and_release(folder: str, count: str) -> None:
    """Take and release locks while others do the same; each must be there while it is held."""
    say("ready")
    sys.stdin.readline()
    for _ in range(int(count)):
        locks = LockFolder(folder)
        name = locks.take()
        assert name is not None
        assert os.stat(os.path.join(folder, name)).st_size == 0
        locks.release()
    say("done")


async def hold_run(url: str, *run_ids: str) -> None:
    """Work on runs until somebody ends this process; `NAME:ID` is one of another handler."""
    store = await open_store(url)
    for run_id in run_ids:
        handler = run_id.rpartition(":")[0] or HANDLER
        await store.write(await hold(store, run_id, handler=handler), completed(0))
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    await store.close()


async def claim_run(url: str) -> None:
    """Claim a run that looks free, and go."""
    store = await open_store(url)
    await hold(store, worker_id="bob")
    await store.close()


def start(
    name: str, *arguments: object, before: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    """Start one of the above in a process of its own, which first does what is to be `before`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.lock_children", name, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


if __name__ == "__main__":
    called = globals()[sys.argv[1]](*sys.argv[2:])
    if called is not None:
        asyncio.run(called)
