"""The smallest host of tasks: its record is a dictionary, its worker the asyncio tasks of a lab."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from perdure.core.records import JsonValue
from perdure.durable.steps import StepSpec
from perdure.engines.hosted_task import HostedContext
from perdure.errors import AwaitEventTimeoutError, RunStoppedError
from perdure.testing.host_lab import HostEnd
from perdure.testing.host_tasks import HOST_TASKS


class MemoryRun:
    """What the engine remembers of one run."""

    def __init__(self, task: str, run_id: str, input: Mapping[str, JsonValue]) -> None:
        self.task, self.run_id, self.input = task, run_id, input
        self.recorded: dict[int, Any] = {}
        self.events: dict[str, JsonValue] = {}
        self.came = asyncio.Event()
        self.ended: asyncio.Future[HostEnd] = asyncio.get_running_loop().create_future()


class MemoryHost:
    """One attempt at a run."""

    name = "memory"

    def __init__(self, run: MemoryRun) -> None:
        self.run = run
        self.invocation = run.run_id

    async def step(self, spec: StepSpec, body: Callable[[], Awaitable[str]]) -> str:
        text: str = await self.recorded(f"{spec.position}:{spec.intent}", body)
        return text

    async def recorded(self, key: Any, body: Callable[[], Awaitable[Any]]) -> Any:
        if key not in self.run.recorded:
            self.run.recorded[key] = await body()
        return self.run.recorded[key]

    async def event(self, spec: StepSpec, key: str, *, timeout_ms: int | None) -> JsonValue:
        try:
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1_000):
                while key not in self.run.events:
                    self.run.came.clear()
                    await self.run.came.wait()
        except TimeoutError:
            raise AwaitEventTimeoutError("none came", intent=spec.intent) from None
        return self.run.events[key]

    async def sleep(self, spec: StepSpec, duration_ms: int) -> None:
        await asyncio.sleep(duration_ms / 1_000)

    async def emit(self, key: str, payload: JsonValue) -> bool:
        first = key not in self.run.events
        self.run.events.setdefault(key, payload)
        self.run.came.set()
        return first


class MemoryLab:
    """An engine whose worker dies by the cancellation of all that it does."""

    host: type[MemoryHost] = MemoryHost
    context: type[HostedContext] = HostedContext

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, MemoryRun] = {}
        self._working: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> MemoryLab:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill_worker()

    async def start(self, task: str, run_id: str, input: Mapping[str, JsonValue]) -> None:
        self._runs[run_id] = MemoryRun(task, run_id, input)
        await self.start_worker()

    async def emit(self, run_id: str, key: str, payload: JsonValue) -> None:
        await self.host(self._runs[run_id]).emit(key, payload)

    async def cancel(self, run_id: str) -> None:
        self._working.pop(run_id).cancel("cancelled")

    async def end(self, run_id: str) -> HostEnd:
        return await self._runs[run_id].ended

    async def kill_worker(self) -> None:
        dead = list(self._working.values())
        self._working.clear()
        for working in dead:
            working.cancel("killed")
        await asyncio.gather(*dead, return_exceptions=True)

    async def start_worker(self) -> None:
        for run in self._runs.values():
            if run.run_id not in self._working and not run.ended.done():
                work = asyncio.ensure_future(self.attend(run))
                self._working[run.run_id] = work

    async def attend(self, run: MemoryRun) -> None:
        context = self.context(
            self.host(run), run_id=run.run_id, project_id="tests", input=run.input
        )
        try:
            value = await HOST_TASKS[run.task](context)
            end = HostEnd("completed", value)
        except asyncio.CancelledError as error:
            context.steps.refuse(RunStoppedError("cancelled"))
            if error.args == ("killed",):
                raise
            end = HostEnd("cancelled")
        except Exception as error:
            end = HostEnd("failed", message=str(error))
        finally:
            await context.steps.close()
        run.ended.set_result(end)
