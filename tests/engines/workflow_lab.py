"""Cloudflare's Workflows engine as what the contract of hosts works with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.core.records import JsonValue
from perdure.engines.cloudflare import WorkflowStep, run_on_workflow
from perdure.testing import HOST_TASKS, HostEnd
from tests.engines.workflow_engine import WorkflowEngine


class WorkflowLab:
    """The worker is the engine: tasks live and die with it, and whoever sends an event tries again.

    A result comes as text, since the engine's own record of it has JavaScript's numbers.
    """

    def __init__(self, engine: WorkflowEngine, folder: Path) -> None:
        self.folder = folder
        self._engine = engine
        self._instances: dict[str, str] = {}
        self._unsent: list[tuple[str, str, JsonValue]] = []
        self._is_up = True

    async def start(self, task: str, run_id: str, input: Mapping[str, JsonValue]) -> None:
        async def main(step: WorkflowStep, instance: str) -> str:
            result: Any = await run_on_workflow(
                step, workflow_name="lab", instance_id=instance, task=HOST_TASKS[task], input=input
            )
            return json.dumps(result)

        self._instances[run_id] = await asyncio.to_thread(self._engine.create, main)

    async def emit(self, run_id: str, key: str, payload: JsonValue) -> None:
        event = (self._instances[run_id], key, payload)
        if self._is_up:
            await asyncio.to_thread(self._engine.send, *event)
        else:
            self._unsent.append(event)

    async def cancel(self, run_id: str) -> None:
        await asyncio.to_thread(self._engine.terminate, self._instances[run_id])

    async def end(self, run_id: str) -> HostEnd:
        status = await asyncio.to_thread(self._engine.status_at_end, self._instances[run_id])
        if status["status"] == "complete":
            return HostEnd("completed", json.loads(status["output"]))
        if status["status"] == "terminated":
            return HostEnd("cancelled")
        return HostEnd("failed", message=status["error"]["message"])

    async def kill_worker(self) -> None:
        self._is_up = False
        await asyncio.to_thread(self._engine.kill)

    async def start_worker(self) -> None:
        await asyncio.to_thread(self._engine.start)
        self._is_up = True
        for event in self._unsent:
            await asyncio.to_thread(self._engine.send, *event)
        for instance in self._instances.values():
            await asyncio.to_thread(self._engine.wake, instance)
