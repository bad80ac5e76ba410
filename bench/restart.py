"""How long readers wait after `kill -9` and a restart of `perdure serve`, at its default lease.

    python -m bench.restart [--rounds 10] [--store sqlite|file|postgresql] [--drain] [--beside]
        [--without-locks]

A turn of the scripted model is cut off in the middle. What is measured: from the kill, and from the
moment at which the new service says its address, to the first frame of the new attempt. The first
holds the start of a Python process, the second is what the store and the service take.

With `--drain` the service gets a SIGTERM instead, gives its turn back after the time that turns
have to end, and the time counts from its end; with `--beside` the other service runs already.
Without liveness locks (on SQLite and files a file stands in the way of their folder, PostgreSQL is
used as behind a pooler) the lease has to lapse.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

from tests.store.postgres_server import running_server

SCHEMES = ("sqlite", "file", "postgresql")
TOKEN_MS, LONG_TOKEN_MS = 20, 60
"""With the second one an answer takes twice as long as a drain lets it."""
SEEN = 8
"""So many frames the reader has when the service is killed."""
PATIENCE_S = 60


class Waited(NamedTuple):
    since_kill_ms: float
    since_address_ms: float


class Service(NamedTuple):
    process: subprocess.Popen[str]
    origin: str


@contextmanager
def service(store: str, token_ms: int) -> Iterator[Service]:
    """Start a service, and kill it when the block is left."""
    options = ["--port", "0", "--backend", "scripted", "--token-delay-ms", str(token_ms)]
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure", "serve", "--store", store, *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        address = next((line for line in lines if line.startswith("address")), None)
        assert address is not None, "the service did not start"
        yield Service(process, address.split()[1].rstrip("/"))
    finally:
        process.kill()
        process.wait()


def frames(request: urllib.request.Request | str) -> Iterator[str]:
    """Yield the cursor of each frame of a stream as it comes."""
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        for line in response:
            cursor = json.loads(line)["id"]
            if cursor is not None:
                yield cursor


def measure(store: str, *, drain: bool = False, beside: bool = False) -> Waited:
    token_ms = LONG_TOKEN_MS if drain else TOKEN_MS
    path = "/v1/sessions/s/turns"
    body = json.dumps({"turnIndex": 0, "message": "Say some words"}).encode()
    with ExitStack() as services:
        first = services.enter_context(service(store, token_ms))
        second = services.enter_context(service(store, token_ms)) if beside else None
        url = f"{first.origin}{path}?envelope=1"
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        stream = frames(request)
        cursor = [next(stream) for _ in range(SEEN)][-1]
        first.process.send_signal(signal.SIGTERM if drain else signal.SIGKILL)
        if drain:
            first.process.wait()
        killed = time.perf_counter()
        if second is None:
            first.process.wait()
            second = services.enter_context(service(store, token_ms))
        told = time.perf_counter()
        url = f"{second.origin}{path}/0/stream?envelope=1&after={cursor}"
        # What the first service had stored behind the reader's place is not new.
        epoch = cursor.split("_")[0]
        next(new for new in frames(url) if new.split("_")[0] != epoch)
        now = time.perf_counter()
    return Waited(1_000 * (now - killed), 1_000 * (now - told))


@contextmanager
def places(scheme: str, *, with_locks: bool) -> Iterator[Callable[[], str]]:
    """Give what makes the address of a new store."""
    if scheme == "postgresql":
        with running_server(flushes=True) as server:
            yield lambda: server.new_store() + ("" if with_locks else "&pooled=1")
        return
    with tempfile.TemporaryDirectory() as folder:
        numbers = count()
        yield lambda: _place(Path(folder) / str(next(numbers)), scheme, with_locks=with_locks)


def _place(folder: Path, scheme: str, *, with_locks: bool) -> str:
    path = folder / "store"
    locks = path.with_name("store-live") if scheme == "sqlite" else path / "live"
    folder.mkdir()
    if not with_locks:
        locks.parent.mkdir(exist_ok=True)
        locks.touch()
    return f"{scheme}:{path}"


def shown(name: str, figures: list[float]) -> str:
    return f"{name:<28}{statistics.median(figures):8.0f} ms median {max(figures):8.0f} ms worst"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--store", choices=SCHEMES)
    parser.add_argument("--drain", action="store_true")
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("--without-locks", action="store_true")
    options = parser.parse_args()
    for scheme in (options.store,) if options.store else SCHEMES:
        with places(scheme, with_locks=not options.without_locks) as new_place:
            waited = [
                measure(new_place(), drain=options.drain, beside=options.beside)
                for _ in range(options.rounds)
            ]
        print(scheme)
        end = "drain" if options.drain else "kill"
        print(shown(f"  {end} to new frame", [each.since_kill_ms for each in waited]))
        if not options.beside:
            print(shown("  address to new frame", [each.since_address_ms for each in waited]))


if __name__ == "__main__":
    main()
