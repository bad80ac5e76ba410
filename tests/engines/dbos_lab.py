"""DBOS, with a worker in a process of its own, as what the contract of hosts works with."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbos import DBOSClient
from dbos import error as dbos_error

from perdure.core.records import JsonValue
from perdure.testing.host_lab import HostEnd


class DbosLab:
    """One worker, which may be killed and started again; runs are started by telling it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self._url = url
        self._spawn()
        self._client = DBOSClient(system_database_url=url)

    def _spawn(self) -> None:
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "tests.engines.dbos_worker", self._url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hear("ready")

    def _hear(self, word: str) -> None:
        assert self._worker.stdout is not None
        assert self._worker.stdout.readline() == f"{word}\n"

    def _tell(self, asked: Mapping[str, JsonValue]) -> None:
        assert self._worker.stdin is not None
        self._worker.stdin.write(f"{json.dumps(asked)}\n")
        self._worker.stdin.flush()
        self._hear("started")

    async def start(self, task: str, run_id: str, input: Mapping[str, JsonValue]) -> None:
        asked = {"task": task, "run_id": run_id, "input": dict(input)}
        await asyncio.to_thread(self._tell, asked)

    async def emit(self, run_id: str, key: str, payload: JsonValue) -> None:
        text = json.dumps(payload)
        await self._client.send_async(run_id, text, key, idempotency_key=f"{run_id}:{key}")

    async def cancel(self, run_id: str) -> None:
        await self._client.cancel_workflow_async(run_id)

    async def end(self, run_id: str) -> HostEnd:
        handle: Any = await self._client.retrieve_workflow_async(run_id)
        try:
            return HostEnd("completed", await handle.get_result(polling_interval_sec=0.02))
        except dbos_error.DBOSAwaitedWorkflowCancelledError:
            return HostEnd("cancelled")
        except Exception as error:
            return HostEnd("failed", message=str(error))

    def kill(self) -> None:
        self._worker.kill()
        self._worker.wait()
        for pipe in (self._worker.stdin, self._worker.stdout):
            assert pipe is not None
            pipe.close()

    async def kill_worker(self) -> None:
        await asyncio.to_thread(self.kill)

    async def start_worker(self) -> None:
        await asyncio.to_thread(self._spawn)

    def close(self) -> None:
        self._client.destroy()
        self.kill()
