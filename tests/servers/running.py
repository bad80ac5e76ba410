"""Servers as processes of their own, on a socket that is there before they are."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 30.0


class Ended(NamedTuple):
    """How a server ended: its exit code, and the seconds since it was told to."""

    code: int
    seconds: float


class Server(NamedTuple):
    """A server that runs; `origin` is where it can be asked from the first moment on."""

    process: subprocess.Popen[bytes]
    origin: str
    log: Path

    def end(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Send a signal, and wait for the end."""
        begun = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        return Ended(code, time.monotonic() - begun)

    def kill(self) -> None:
        """Kill the server with all its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)


def listening() -> socket.socket:
    """Return a socket on a free port of loopback that a server may inherit."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.set_inheritable(True)
    return listener


@contextmanager
def running(
    command: Sequence[str],
    listener: socket.socket,
    folder: Path,
    *,
    environment: Mapping[str, str] = {},
) -> Iterator[Server]:
    """Run `python -m command…` in `folder`, and kill all that still runs in the end.

    `{fd}` and `{port}` in the command stand for those of the listener. Who connects before the
    server is there waits in the listener's queue.
    """
    port = listener.getsockname()[1]
    words = [word.format(fd=listener.fileno(), port=port) for word in command]
    log = folder / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(folder), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        yield server
    finally:
        server.kill()
