"""Durable tasks as workflows of DBOS, whose primitives stand behind our context."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

from perdure.core import identity
from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.records import JsonValue
from perdure.durable.context import DurableContext
from perdure.durable.steps import StepSpec
from perdure.engines.hosted_task import HostedContext, TaskSteps
from perdure.errors import AwaitEventTimeoutError, UsageError

try:
    from dbos import DBOS, StepReservation
    from dbos import error as dbos_error
except ImportError as missing:
    raise ImportError("DBOS needs its package: pip install 'perdure[dbos]'") from missing

Task = Callable[[DurableContext], Awaitable[JsonValue]]

_FOREVER_S: Final = 100 * 365 * 24 * 3_600.0
"""How long a wait without a time limit waits, since DBOS wants one."""


def task_workflow(
    name: str, task: Task
) -> Callable[[dict[str, Any]], Coroutine[Any, Any, JsonValue]]:
    """Return a workflow of DBOS, registered as `name`, that runs `task`; call it before `launch`.

    Start it by `DBOS.start_workflow_async(workflow, input)` within `SetWorkflowID(run_id)`; `input`
    is an object. It returns what the task returns, and DBOS keeps the record: no store of ours is
    needed. A task that raises has failed for good (retries are for steps); one whose workflow is
    cancelled gets an asyncio.CancelledError where it waits, and takes no more steps.
    """

    async def run(input: dict[str, Any]) -> JsonValue:
        return await run_on_dbos(task, project_id=name, input=input)

    return DBOS.workflow(name=name)(run)


async def run_on_dbos(
    task: Task, *, project_id: str, input: Mapping[str, JsonValue] | None = None
) -> JsonValue:
    """Run `task` in the workflow of DBOS that calls this first, whose id is the run's.

    Raises UsageError outside a workflow and for an input that is no object, what the task raises,
    NotSerializableError for a result that is no JSON, and DBOS's own error for a workflow that it
    has cancelled.
    """
    run_id = DBOS.workflow_id
    if run_id is None:
        raise UsageError("run_on_dbos must be called in a workflow of DBOS")
    given = cast("object", input)
    if not isinstance(given, Mapping | None):
        raise UsageError(
            f"the input of a task is an object or None, not {given!r:.60}: "
            'start the workflow with {"name": …}'
        )
    durable = _DbosContext(run_id, project_id, input)
    # A step that has no end, since nothing else tells us at once that the workflow is cancelled.
    watch = DBOS.reserve_step().run_async(
        {"name": "perdure:cancelled", "preemptible": True}, _until_cancelled
    )
    watching = asyncio.ensure_future(watch)
    working = asyncio.ensure_future(task(durable))
    try:
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            durable.steps.refuse(asyncio.CancelledError("DBOS cancelled the run"))
            working.cancel()
            await asyncio.wait({working})
        if isinstance(durable.steps.refusal, asyncio.CancelledError):
            raise dbos_error.DBOSWorkflowCancelledError(f"the run {run_id!r} is cancelled")
        result = await working
        encode_value(result, name="the task's result")
        return result
    finally:
        for left in (watching, working):
            left.cancel()
        await asyncio.gather(watching, working, return_exceptions=True)
        await durable.steps.close()


async def emit(run_id: str, key: str, payload: JsonValue) -> None:
    """Send an event to a run, which need not wait for it yet; of a key the first one counts.

    Raises UsageError, NotSerializableError, and DBOS's own error if there is no such workflow.
    """
    identity.check_event_key(key)
    text = encode_value(payload, name=f"the payload of {key!r}")
    await DBOS.send_async(run_id, text, key, idempotency_key=f"{run_id}:{key}")


class _ReservingSteps(TaskSteps):
    """Steps whose ids in DBOS are drawn with their positions, in whatever order they then run."""

    def __init__(self, host: _DbosHost, stored_id: str) -> None:
        super().__init__(host, stored_id)
        self._reserve = host.reserve

    def take(self) -> int:
        position = super().take()
        self._reserve(position)
        return position


class _DbosContext(HostedContext):
    """The DurableContext of one execution of a workflow."""

    def __init__(self, run_id: str, project_id: str, input: Mapping[str, JsonValue] | None) -> None:
        host = _DbosHost(run_id, self._cancelled)
        super().__init__(host, run_id=run_id, project_id=project_id, input=input)
        self.steps: TaskSteps = _ReservingSteps(host, f"{project_id}/{run_id}")

    def _cancelled(self, reason: BaseException) -> None:
        self.steps.refuse(reason)


class _DbosHost:
    """One workflow of DBOS."""

    name = "dbos"

    def __init__(self, invocation: str, on_cancel: Callable[[BaseException], None]) -> None:
        self.invocation = invocation
        self._on_cancel = on_cancel
        self._reserved: dict[int, list[StepReservation]] = {}
        self._events: dict[str, JsonValue] = {}
        self._awaited: set[str] = set()

    def reserve(self, position: int) -> None:
        """Draw two ids, as a step that is `at_most_once` is two of DBOS's; gaps are harmless."""
        self._reserved[position] = [DBOS.reserve_step(), DBOS.reserve_step()]

    async def step(self, spec: StepSpec, body: Callable[[], Awaitable[str]]) -> str:
        async def told() -> str:
            return await body()

        reserved = self._reserved[spec.position].pop(0)
        with self._passing_cancellation():
            return await reserved.run_async({"name": f"{spec.position}:{spec.intent}"}, told)

    async def event(self, spec: StepSpec, key: str, *, timeout_ms: int | None) -> JsonValue:
        if key in self._events:
            return self._events[key]
        if key in self._awaited:
            raise UsageError(f"on DBOS one await_event at a time may wait for {key!r}")
        self._awaited.add(key)
        try:
            with self._passing_cancellation():
                limit_s = _FOREVER_S if timeout_ms is None else timeout_ms / 1_000
                text = await DBOS.recv_async(key, limit_s)
        finally:
            self._awaited.discard(key)
        if text is None:
            raise AwaitEventTimeoutError(
                f"no event {key!r} within {timeout_ms} ms", intent=spec.intent
            )
        self._events[key] = decode_value(text)
        return self._events[key]

    async def sleep(self, spec: StepSpec, duration_ms: int) -> None:
        with self._passing_cancellation():
            await DBOS.sleep_async(duration_ms / 1_000)

    async def emit(self, key: str, payload: JsonValue) -> bool:
        raise UsageError(
            "on DBOS a task cannot emit to its own run, as DBOS does not tell whether it was the "
            f"first of {key!r}; send it from outside with perdure.engines.dbos.emit"
        )

    @contextmanager
    def _passing_cancellation(self) -> Generator[None, None, None]:
        """Raise as asyncio does what DBOS raises in a workflow that is cancelled."""
        try:
            yield
        except dbos_error.DBOSWorkflowCancelledError as error:
            cancelled = asyncio.CancelledError("DBOS cancelled the run")
            self._on_cancel(cancelled)
            raise cancelled from error


async def _until_cancelled() -> None:
    await asyncio.get_running_loop().create_future()
