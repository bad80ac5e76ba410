"""Worker processes that serve one Restate server, and can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from perdure.core.records import JsonValue
from perdure.testing.host_lab import HostEnd, HostState
from tests.engines.restate_server import RestateServer


class Workers:
    """Two worker processes behind one listening socket, so that each can take what comes."""

    def __init__(self, server: RestateServer, folder: Path) -> None:
        self.server = server
        self.database = f"sqlite:///{folder / 'perdure.db'}"
        self.log = folder / "asked.log"
        self._folder = folder
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._socket.set_inheritable(True)
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def start(self, count: int) -> None:
        number = self._socket.fileno()
        command = [sys.executable, "-m", "tests.engines.restate_worker"]
        command += [f"fd://{number}", self.database, str(self.log)]
        for _ in range(count):
            with (self._folder / "workers.log").open("ab") as log:
                process = subprocess.Popen(command, pass_fds=[number], stdout=log, stderr=log)
            self._processes.append(process)

    def asked(self, *, since: int = 0) -> list[tuple[int, str]]:
        """Return who was asked for what, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines[since:]]

    def wait_until_asked(self, count: int) -> None:
        """Return once there were so many calls, of models and steps."""
        while len(self.asked()) < count:
            time.sleep(0.02)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """Return when they are dead."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    def close(self) -> None:
        self.kill_all()
        self._socket.close()


class RestateLab:
    """Restate as what the contract of hosts works with."""

    def __init__(self, workers: Workers, folder: Path) -> None:
        self.folder = folder
        self._workers = workers
        self._calls: dict[str, tuple[str, str]] = {}

    async def start(self, task: str, run_id: str, input: Mapping[str, JsonValue]) -> None:
        path = f"{task}/{run_id}"
        call = await asyncio.to_thread(self._workers.server.send, f"{path}/run", dict(input))
        self._calls[run_id] = (path, call)

    async def emit(self, run_id: str, key: str, payload: JsonValue) -> None:
        path = f"{self._calls[run_id][0]}/emit/send"
        event = {"key": key, "payload": payload}
        sent = await asyncio.to_thread(self._workers.server.call, path, event)
        sent.raise_for_status()

    async def cancel(self, run_id: str) -> None:
        await asyncio.to_thread(self._workers.server.cancel, self._calls[run_id][1])

    async def end(self, run_id: str) -> HostEnd:
        answer = await asyncio.to_thread(self._workers.server.attach, self._calls[run_id][1])
        told = answer.json()
        if answer.is_success:
            return HostEnd("completed", told)
        state: HostState = "cancelled" if told["message"] == "cancelled" else "failed"
        return HostEnd(state, message=told["message"])

    async def kill_worker(self) -> None:
        await asyncio.to_thread(self._workers.kill_all)

    async def start_worker(self) -> None:
        self._workers.start(1)
