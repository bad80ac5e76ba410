"""A task that another engine runs: the DurableContext over its steps, timers and events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar, cast

from perdure.core import effects, identity
from perdure.core.jsonvalue import decode_value, encode_value
from perdure.core.recordjson import step_error_from_json
from perdure.core.records import JsonValue
from perdure.durable.calls import is_cancelled
from perdure.durable.context import StepsContext
from perdure.durable.failures import failure_text
from perdure.durable.scope import call_body, check_length
from perdure.durable.steps import Steps, StepScope, StepSpec
from perdure.engines.hosting import TaskHost, error_told, failure_told, told_text
from perdure.errors import UnfinishedStepError

T = TypeVar("T")


class TaskSteps(Steps):
    """The steps of one attempt at a hosted task: the host's record alone decides.

    A step that is `at_most_once` is two of the host's: the first tells which attempt began it, so
    that another one, which finds it without an end, does not execute it again.
    """

    def __init__(self, host: TaskHost, stored_id: str) -> None:
        super().__init__(stored_id, None, {})
        self._host = host
        self._attempt_token = effects.new_token()
        self._causes: dict[int, BaseException] = {}

    async def _run(self, spec: StepSpec, body: Callable[[], Awaitable[T] | T]) -> T:
        try:
            self._calls.works(spec.position)
            begun_by = self._attempt_token
            if spec.effect == "at_most_once":
                begin = spec._replace(intent=f"{spec.intent}:begin")
                begun_by = decode_value(await self._host.step(begin, self._begun_by))
            tell = partial(self._tell, StepScope(self, spec), body, begun_by)
            told = decode_value(await self._host.step(spec, tell))
            if "error" in told:
                cause = self._causes.pop(spec.position, None)
                raise failure_told(spec, step_error_from_json(told["error"])) from cause
            return cast(T, told["value"])
        finally:
            self.answered(spec)

    async def _begun_by(self) -> str:
        return encode_value(self._attempt_token)

    async def _tell(self, scope: StepScope, body: Callable[[], Any], begun_by: str) -> str:
        """Execute the step; return what the host is to record of it."""
        spec = scope.spec
        if begun_by != self._attempt_token:
            told = f"the step {spec.intent!r} was interrupted: whether it took effect is unknown"
            unfinished = UnfinishedStepError(told, intent=spec.intent)
            return told_text({"error": error_told(unfinished, taken=self._next_position)})
        try:
            return told_text({"value": decode_value(await tried(scope, body))})
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            self._causes[spec.position] = error
            failure = failure_text(error, taken=self._next_position)
            return told_text({"error": decode_value(failure)})


async def tried(scope: StepScope, body: Callable[[], Any]) -> str:
    """Execute the body of a step as often as its policy says; return the text of its result.

    Raises what the last try raised, and NotSerializableError.
    """
    spec = scope.spec
    if spec.kind == "llm":
        # So that the body may report what its call used, of which the host keeps nothing.
        scope.usage_call = spec.position
    tries_max = 1 if spec.retry is None else spec.retry.tries_max
    while True:
        scope.tries += 1
        try:
            value = await call_body(scope, body)
            return encode_value(value, name=f"the result of step {spec.intent!r}")
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            if scope.tries >= tries_max or not spec.may_retry(error):
                raise
        await asyncio.sleep(effects.jittered(spec.backoff_ms(scope.tries), 0.25) / 1_000)


class HostedContext(StepsContext[TaskSteps]):
    """The DurableContext of one attempt at a task that another engine runs."""

    def __init__(
        self,
        host: TaskHost,
        *,
        run_id: str,
        project_id: str,
        scenario_id: str | None = None,
        input: Mapping[str, JsonValue] | None = None,
    ) -> None:
        # Two tasks of one host may have runs of one id, but not one idempotency key.
        super().__init__(TaskSteps(host, f"{project_id}/{run_id}"))
        self.run_id = run_id
        self.project_id = project_id
        self.scenario_id = scenario_id
        self.input: Mapping[str, JsonValue] = input or {}
        self._host = host

    def sleep(self, duration_ms: int) -> Awaitable[None]:
        check_length(duration_ms, name="duration_ms")
        spec = StepSpec(self.steps.take(), "deterministic:sleep", kind="deterministic")
        return self._waiting(spec, self._host.sleep(spec, duration_ms))

    def await_event(self, key: str, *, timeout_ms: int | None = 60_000) -> Awaitable[JsonValue]:
        identity.check_event_key(key)
        if timeout_ms is not None:
            check_length(timeout_ms, name="timeout_ms")
        spec = StepSpec(self.steps.take(), f"event:{key}", kind="event")
        return self._waiting(spec, self._host.event(spec, key, timeout_ms=timeout_ms))

    async def emit_event(self, key: str, payload: JsonValue) -> bool:
        identity.check_event_key(key)
        return await self._host.emit(key, payload)

    async def _waiting(self, spec: StepSpec, wait: Awaitable[T]) -> T:
        try:
            return await wait
        finally:
            self.steps.answered(spec)
