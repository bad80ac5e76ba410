"""Hosts with one fault each, beside the case that must find it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from perdure.core.records import JsonValue
from perdure.durable.steps import StepSpec
from perdure.engines.hosted_task import HostedContext
from perdure.testing.host_lab import HostEnd
from tests.testing.memory_host import MemoryHost, MemoryLab, MemoryRun


class _Floats(MemoryHost):
    async def step(self, spec: StepSpec, body: Callable[[], Awaitable[str]]) -> str:
        text = await super().step(spec, body)
        return json.dumps(json.loads(text, parse_int=float))


class KeepsNumbersAsJavaScriptDoes(MemoryLab):
    host = _Floats


class _OneTry(HostedContext):
    def step(self, intent: str, fn: Callable[[], Any], **options: Any) -> Awaitable[Any]:
        return super().step(intent, fn, **{**options, "retry": None})


class NeverTriesAgain(MemoryLab):
    context = _OneTry


class _Unlimited(HostedContext):
    def parallel(self, *steps: Any, concurrency_max: int | None = None, **options: Any) -> Any:
        return super().parallel(*steps, **options)


class RunsAllAtOnce(MemoryLab):
    context = _Unlimited


class _OneKey(HostedContext):
    def __init__(self, host: Any, **options: Any) -> None:
        super().__init__(host, **options)
        self.steps.stored_id = "one"


class GivesTwoRunsOneKey(MemoryLab):
    context = _OneKey


class _Sleepless(MemoryHost):
    async def sleep(self, spec: StepSpec, duration_ms: int) -> None:
        await asyncio.sleep(0)


class DoesNotSleep(MemoryLab):
    host = _Sleepless


class _LastEvent(MemoryHost):
    async def emit(self, key: str, payload: JsonValue) -> bool:
        self.run.events.pop(key, None)
        return await super().emit(key, payload)


class LetsTheLastEventCount(MemoryLab):
    host = _LastEvent


class HidesWhy(MemoryLab):
    async def end(self, run_id: str) -> HostEnd:
        return (await super().end(run_id))._replace(message="it failed")


class CannotCancel(MemoryLab):
    async def cancel(self, run_id: str) -> None:
        await self.emit(run_id, "never", None)


class _Forgetful(MemoryHost):
    async def recorded(self, key: Any, body: Callable[[], Awaitable[Any]]) -> Any:
        return await body()


class RecordsNothing(MemoryLab):
    host = _Forgetful


class _Careless(HostedContext):
    def step(self, intent: str, fn: Callable[[], Any], **options: Any) -> Awaitable[Any]:
        return super().step(intent, fn, **{**options, "effect": "idempotent"})


class RunsAgainWhatMayRunOnce(MemoryLab):
    context = _Careless


class LosesPayloadsWithItsWorker(MemoryLab):
    async def start_worker(self) -> None:
        for run in self.unattended():
            run.events = dict.fromkeys(run.events)
        await super().start_worker()

    def unattended(self) -> list[MemoryRun]:
        return [run for run in self._runs.values() if run.run_id not in self._working]


FAULTS: list[tuple[type[MemoryLab], str]] = [
    (RecordsNothing, "behind_a_kill_what_was_recorded_is_not_done_again"),
    (KeepsNumbersAsJavaScriptDoes, "values_come_back_as_they_were_recorded"),
    (NeverTriesAgain, "a_step_is_tried_fails_and_is_refused_as_its_options_say"),
    (RunsAllAtOnce, "parallel_steps_all_end_and_keep_their_order_and_their_limit"),
    (GivesTwoRunsOneKey, "time_chance_and_keys_are_recorded"),
    (DoesNotSleep, "time_chance_and_keys_are_recorded"),
    (LetsTheLastEventCount, "an_event_may_come_before_and_after_the_wait_and_the_first_counts"),
    (HidesWhy, "a_task_that_raises_has_failed"),
    (CannotCancel, "a_cancelled_task_is_left_and_takes_no_more_steps"),
    (RunsAgainWhatMayRunOnce, "behind_a_kill_a_step_that_may_run_once_has_failed"),
    (LosesPayloadsWithItsWorker, "an_event_that_comes_while_no_worker_lives_is_not_lost"),
]
