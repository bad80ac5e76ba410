"""Durable tasks as workflows of Restate, whose primitives stand behind our context."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from perdure.core import identity
from perdure.core.jsonvalue import encode_value
from perdure.core.records import JsonValue
from perdure.durable.context import DurableContext
from perdure.durable.steps import StepSpec
from perdure.engines.hosted_task import HostedContext
from perdure.engines.restate.calls import CONFLICT, RestateCalls, resolve
from perdure.errors import NotSerializableError, UsageError

try:
    import restate
except ImportError as error:
    raise ImportError("Restate needs its SDK: pip install 'perdure[restate]'") from error

Task = Callable[[DurableContext], Awaitable[JsonValue]]

_FAILED: Final = 500


def task_workflow(name: str, task: Task) -> restate.Workflow:
    """Return a workflow that runs `task`, for `restate.app([...])`.

    Its key is the run's id, and its handler `run` takes the run's input, an object, and returns
    what the task returns. `emit` takes `{"key", "payload"}` for `await_event`, also before the task
    waits, and returns whether it was the first of its key. Restate keeps the record; no store of
    ours is needed. A task that raises has failed for good (retries are for steps); one that is
    cancelled gets an asyncio.CancelledError where it waits, and takes no more steps.
    """
    workflow = restate.Workflow(name)

    async def run(context: restate.WorkflowContext, input: dict[str, Any]) -> Any:
        return await run_on_restate(context, task, project_id=name, input=input)

    workflow.main("run")(run)
    workflow.handler("emit")(emit)
    return workflow


async def run_on_restate(
    context: restate.WorkflowContext,
    task: Task,
    *,
    project_id: str,
    input: Mapping[str, JsonValue] | None = None,
) -> JsonValue:
    """Run `task` in the handler of a workflow, whose key is the run's id.

    Raises restate.TerminalError with what the task raised, or with the status 409 if it was
    cancelled.
    """
    calls = RestateCalls(context)
    durable = HostedContext(
        RestateHost(calls), run_id=context.key(), project_id=project_id, input=input
    )
    working: asyncio.Task[Any] | None = None

    async def work() -> JsonValue:
        nonlocal working
        working = asyncio.current_task()
        result = await task(durable)
        encode_value(result, name="the task's result")
        return result

    async def cancel() -> None:
        durable.steps.refuse(asyncio.CancelledError("Restate cancelled the run"))
        if working is not None:
            working.cancel()

    try:
        return await calls.over(work(), on_cancel=cancel)
    except asyncio.CancelledError as error:
        if durable.steps.refusal is None:
            raise
        raise restate.TerminalError("cancelled", status_code=CONFLICT) from error
    except restate.TerminalError:
        raise
    except Exception as error:
        kind = {"type": type(error).__qualname__, "code": str(getattr(error, "code", ""))}
        raise restate.TerminalError(str(error), status_code=_FAILED, metadata=kind) from error
    finally:
        await durable.steps.close()


async def emit(context: restate.WorkflowSharedContext, event: dict[str, Any]) -> bool:
    """Deliver an event to a workflow of ours; return whether it was the first of its key."""
    try:
        key = identity.check_event_key(event.get("key"))
        return await resolve(context, key, event.get("payload"), _directly)
    except (NotSerializableError, UsageError) as error:
        raise refused(error) from error


class RestateHost:
    """One workflow of Restate: its steps are runs, its events durable promises."""

    name = "restate"

    def __init__(self, calls: RestateCalls) -> None:
        self._calls = calls
        self.invocation = calls.invocation

    async def step(self, spec: StepSpec, body: Callable[[], Awaitable[str]]) -> str:
        return await self._calls.run(f"{spec.position}:{spec.intent}", body)

    async def event(self, spec: StepSpec, key: str, *, timeout_ms: int | None) -> JsonValue:
        return await self._calls.event(key, intent=spec.intent, timeout_ms=timeout_ms)

    async def sleep(self, spec: StepSpec, duration_ms: int) -> None:
        await self._calls.sleep(duration_ms)

    async def emit(self, key: str, payload: JsonValue) -> bool:
        return await self._calls.emit(key, payload)


def refused(error: Exception) -> restate.TerminalError:
    """Return what tells Restate that no other attempt would mend it."""
    return restate.TerminalError(str(error), status_code=400)


async def _directly(future: Any) -> Any:
    return await future
