"""Tasks and turns on Cloudflare Workflows, whose steps, timers and events stand behind ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from functools import partial
from math import ceil
from typing import Any, Final, NoReturn, Protocol, TypeVar, cast

from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.records import JsonValue, RunRecord
from perdure.durable.context import DurableContext
from perdure.durable.execution import original_of
from perdure.durable.scope import StepScope, StepSpec
from perdure.engines.hosted_task import HostedContext, TaskSteps, tried
from perdure.engines.hosted_turn import HostedTurns
from perdure.errors import AwaitEventTimeoutError, StepFailedError, UsageError
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import Asked, ChatTurnIdentity

T = TypeVar("T")
Task = Callable[[DurableContext], Awaitable[JsonValue]]
StepConfig = Mapping[str, Any]
"""As the engine takes it: `{"retries": {"limit", "delay", "backoff"}, "timeout"}`, all optional."""

_TIMED_OUT: Final = "timed out"
"""The engine tells its time-outs by text alone, once they have crossed into Python."""


class WorkflowStep(Protocol):
    """What `WorkflowEntrypoint.run` gets as its `step`, or any object of that shape."""

    def do(
        self, name: str, *, config: Any = None
    ) -> Callable[[Callable[[], Awaitable[Any]]], Callable[[], Awaitable[Any]]]:
        """Decorate a function without arguments: called, it gives what was recorded by `name`."""
        ...

    def sleep(self, name: str, duration: Any, /) -> Awaitable[Any]:
        """Return after `duration`: milliseconds, or words such as "1 minute"."""
        ...

    def wait_for_event(self, name: str, event_type: str, /, **timeout: str) -> Awaitable[Any]:
        """Return `{"payload", "timestamp", "type"}` of an event of this type, or raise."""
        ...


async def run_on_workflow_step(
    step: WorkflowStep,
    *,
    workflow_name: str,
    task: Callable[[DurableContext], Awaitable[T]],
    step_config: StepConfig | None = None,
) -> T:
    """Run `task` on the engine as the TypeScript library does, and return what it returns.

    The engine's record has plain values under `<workflow_name>/<n>:<intent>`. It tries a step that
    raises again by `step_config`, and then raises its own error, as it does for an event that does
    not come; without `timeout_ms` its own limit counts. `kind` and `fingerprint` mean nothing.
    What the engine cannot promise is refused by a UsageError: `at_most_once`, `emit_event`.
    """
    host = WorkflowHost(step, workflow_name=workflow_name, step_config=step_config)
    durable = _PlainContext(host)
    try:
        return await task(durable)
    finally:
        await durable.steps.close()


async def run_on_workflow(
    step: WorkflowStep,
    *,
    workflow_name: str,
    instance_id: str,
    task: Task,
    input: Mapping[str, JsonValue] | None = None,
    step_config: StepConfig | None = None,
) -> JsonValue:
    """Run `task` on the engine so that it sees what it would see under `run_durable`.

    A failure of a step is recorded, with its retries made by its own policy, and raises
    StepFailedError also when it is replayed; an event that does not come in time raises
    AwaitEventTimeoutError; `at_most_once` holds. The engine's retries are left for what befalls
    the engine itself. `emit_event` is refused: the Worker sends events to the instance.
    """
    host = WorkflowHost(
        step, workflow_name=workflow_name, instance_id=instance_id, step_config=step_config
    )
    durable = HostedContext(host, run_id=instance_id, project_id=workflow_name, input=input)
    try:
        result = await task(durable)
        encode_value(result, name="the task's result")
        return result
    except StepFailedError as error:
        raise original_of(error) from error.__cause__
    finally:
        await durable.steps.close()


async def answer_on_workflow(
    engine: ChatTurnEngine,
    step: WorkflowStep,
    *,
    workflow_name: str,
    instance_id: str,
    turn: ChatTurnIdentity,
    asked: Asked,
    step_config: StepConfig | None = None,
) -> RunRecord:
    """Answer a turn in the instance of a workflow, and return its run as it ended.

    Steps and events are the engine's, the frames go to the engine's store, where every process
    reads them. Each attempt at the instance fences the one before. Raises as
    `HostedTurns.attend` does; whatever is raised, the next attempt goes on.
    """
    host = WorkflowHost(
        step, workflow_name=workflow_name, instance_id=instance_id, step_config=step_config
    )
    return await HostedTurns(engine).attend(turn, asked, host)


class WorkflowHost:
    """One instance of a workflow, as the host of a task or a turn."""

    name = "cloudflare-workflow"

    def __init__(
        self,
        step: WorkflowStep,
        *,
        workflow_name: str,
        instance_id: str = "",
        step_config: StepConfig | None = None,
    ) -> None:
        if not workflow_name:
            raise UsageError("workflow_name must not be empty: all names of steps begin with it")
        self.workflow_name = workflow_name
        self.invocation = instance_id
        self._step = step
        self._arrived: dict[str, JsonValue] = {}
        """The engine hands each event to one wait; ours has one of a key, the first, for all."""
        self._config = None if step_config is None else dict(step_config)

    async def step(self, spec: StepSpec, body: Callable[[], Awaitable[str]]) -> str:
        """Return the text that the engine has of this step, or have it record that of `body`.

        What the body raises is no result, and none that the engine should try again: it is raised
        here, and the engine is left waiting, since a step without an answer is what the next
        attempt executes.
        """
        raised: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def answer() -> str:
            try:
                return await body()
            except Exception as error:
                if not raised.done():
                    raised.set_exception(error)
                await _nothing()

        config = self._config
        if spec.effect == "at_most_once":
            # Otherwise the engine's own time limit would have a slow one executed again.
            config = {**(config or {}), "retries": {"limit": 0, "delay": 0}}
        doing = asyncio.ensure_future(self.do(spec, answer, config))
        try:
            await asyncio.wait((doing, raised), return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else raised.result()
        finally:
            doing.cancel()
            raised.cancel()

    async def do(
        self, spec: StepSpec, body: Callable[[], Awaitable[T]], config: StepConfig | None
    ) -> T:
        """Have the engine do a step; whoever cancels this cancels the body.

        The engine does not hear of it: to it, the step goes on without an answer.
        """
        loop, context = asyncio.get_running_loop(), copy_context()
        running: asyncio.Task[T] | None = None
        abandoned = asyncio.Event()

        async def called() -> T:
            return await body()

        async def execute() -> T:
            nonlocal running
            if running is not None:
                # The engine's time limit has passed, and it tries again.
                running.cancel()
                await asyncio.wait((running,))
            if abandoned.is_set():
                await _nothing()
            working = running = loop.create_task(called(), context=context)
            await asyncio.wait((working,))
            if abandoned.is_set() or working is not running:
                await _nothing()
            return working.result()

        options = {} if config is None else {"config": config}
        try:
            recorded = await self._step.do(self._named(spec), **options)(execute)()
            return cast(T, _plain(recorded))
        except asyncio.CancelledError:
            abandoned.set()
            if running is not None:
                running.cancel()
            raise

    async def event(self, spec: StepSpec, key: str, *, timeout_ms: int | None) -> JsonValue:
        if key in self._arrived:
            return self._arrived[key]
        limit = None if timeout_ms is None else f"{max(1, ceil(timeout_ms / 1_000))} seconds"
        try:
            payload = await self.arrival(spec, key, limit)
        except Exception as error:
            if _TIMED_OUT not in str(error).lower():
                raise
            told = f"no event {key!r} arrived within {limit or 'the limit of the engine'}"
            raise AwaitEventTimeoutError(told, intent=spec.intent) from error
        return self._arrived.setdefault(key, payload)

    async def arrival(self, spec: StepSpec, key: str, limit: str | None) -> JsonValue:
        """Return the payload of the engine's event, or raise the engine's own error."""
        options = {} if limit is None else {"timeout": limit}
        event = await self._step.wait_for_event(self._named(spec), key, **options)
        return _plain(event["payload"])

    async def sleep(self, spec: StepSpec, duration_ms: int) -> None:
        await self._step.sleep(self._named(spec), duration_ms)

    async def emit(self, key: str, payload: JsonValue) -> bool:
        raise UsageError(
            f"the event {key!r} cannot be emitted from inside a workflow: send it to the instance "
            "from the Worker, by `send_event` of the workflow's binding"
        )

    async def plainly(self, spec: StepSpec, body: Callable[[], Awaitable[T]]) -> T:
        """Have the engine do a step by the config of all steps, and raise what it raises."""
        return await self.do(spec, body, self._config)

    def _named(self, spec: StepSpec) -> str:
        return f"{self.workflow_name}/{spec.position}:{spec.intent}"


class _PlainContext(HostedContext):
    """The context whose steps are the engine's as they are."""

    def __init__(self, host: WorkflowHost) -> None:
        name = host.workflow_name
        super().__init__(host, run_id=f"cf-workflow:{name}", project_id=name)
        self.steps = _PlainSteps(host, self.run_id)
        self._host = _PlainEvents(host)

    def await_event(self, key: str, *, timeout_ms: int | None = None) -> Awaitable[JsonValue]:
        return super().await_event(key, timeout_ms=timeout_ms)


class _PlainSteps(TaskSteps):
    """Steps of which the engine keeps the plain value, and tries again those that raise."""

    def __init__(self, host: WorkflowHost, run_id: str) -> None:
        super().__init__(host, run_id)
        self._engine = host

    async def _run(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> T:
        try:
            self._calls.works(spec.position)
            if spec.effect == "at_most_once":
                raise UsageError(
                    f"the step {spec.intent!r} is at_most_once, which the engine's retries do not "
                    "keep: run the task by run_on_workflow"
                )
            return await self._engine.plainly(spec, partial(self._value_of, spec, body))
        finally:
            self.answered(spec)

    async def _value_of(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> T:
        return cast(T, decode_value(await tried(StepScope(self, spec), body)))


class _PlainEvents:
    """The host whose time-outs are the engine's own errors, with limits as the reference has them.

    That is "5s"; the engine that runs locally reads "5 seconds" only.
    """

    def __init__(self, host: WorkflowHost) -> None:
        self.name, self.invocation = host.name, host.invocation
        self.step, self.sleep, self.emit = host.step, host.sleep, host.emit
        self._engine = host

    async def event(self, spec: StepSpec, key: str, *, timeout_ms: int | None) -> JsonValue:
        limit = None if timeout_ms is None else f"{ceil(timeout_ms / 1_000)}s"
        return await self._engine.arrival(spec, key, limit)


def _plain(value: Any) -> Any:
    """Return what came out of JavaScript as plain JSON: the SDK's objects are dicts of its own."""
    return json.loads(json.dumps(value))


async def _nothing() -> NoReturn:
    """Give no answer, ever: nothing is recorded of whoever awaits this."""
    while True:
        await asyncio.get_running_loop().create_future()
