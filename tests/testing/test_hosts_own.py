"""What hosts are compared with keeps their contract, too: a worker of ours that is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from perdure import AgentTaskSpec, RunManifest, open_store, run_durable
from perdure.core.records import JsonValue
from perdure.store.protocol import RunStore
from perdure.testing import HOST_CASES, HOST_TASKS, HostEnd
from perdure.testing.hosts import HostCase


class OwnWorker:
    """A process that a test can kill, and its store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:{folder / 'runs.db'}"
        self._process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        command = [sys.executable, "-m", "tests.testing.own_worker", self.url]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()


class OwnLab:
    """A handle on the worker's store."""

    def __init__(self, store: RunStore, worker: OwnWorker) -> None:
        self.folder = worker.folder
        self._store = store
        self._worker = worker
        self._runs: dict[str, tuple[str, RunManifest]] = {}

    async def start(self, task: str, run_id: str, input: Mapping[str, JsonValue]) -> None:
        manifest = RunManifest("tests", AgentTaskSpec(task, "be a host"), input=input)
        self._runs[run_id] = (task, manifest)
        await self._store.enqueue(run_id, manifest, handler=task)

    async def emit(self, run_id: str, key: str, payload: JsonValue) -> None:
        await self._store.emit_event(run_id, key, payload)

    async def cancel(self, run_id: str) -> None:
        await self._store.request_stop(run_id)

    async def end(self, run_id: str) -> HostEnd:
        while True:
            run = await self._store.read_run(run_id)
            if run is not None and run.state in ("completed", "failed", "stopped"):
                break
            await self._store.wait_for_change(run_id, timeout_ms=50)
        if run.state == "completed":
            task, manifest = self._runs[run_id]
            replayed = await run_durable(
                self._store, run_id=run_id, manifest=manifest, task=HOST_TASKS[task]
            )
            return HostEnd("completed", replayed.result)
        if run.state == "stopped":
            return HostEnd("cancelled")
        assert run.outcome is not None
        return HostEnd("failed", message=run.outcome.notes or "")

    async def kill_worker(self) -> None:
        await asyncio.to_thread(self._worker.kill)

    async def start_worker(self) -> None:
        await asyncio.to_thread(self._worker.begin)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnWorker]:
    worker = OwnWorker(tmp_path_factory.mktemp("own"))
    worker.begin()
    yield worker
    worker.kill()


@pytest.fixture
async def lab(worker: OwnWorker) -> AsyncIterator[OwnLab]:
    store = await open_store(worker.url, durability="normal")
    yield OwnLab(store, worker)
    await store.close()


@pytest.mark.parametrize("case", HOST_CASES, ids=lambda case: case.__name__)
async def test_a_worker_of_ours_keeps_the_contract_of_hosts(case: HostCase, lab: OwnLab) -> None:
    await case(lab)
