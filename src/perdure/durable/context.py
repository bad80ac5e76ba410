"""DurableContext: what a task may do durably."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar, overload

from perdure.core import effects, identity
from perdure.core.effects import iso_time
from perdure.core.jsonvalue import encode_value
from perdure.core.recordjson import outcome_text
from perdure.core.records import Effect, JsonValue, Retry, RunOutcome, RunRecord, StepKind
from perdure.durable.attempt import Attempt
from perdure.durable.parallel import branches_of, check_concurrency, run_branches
from perdure.durable.scope import StepSpec, check_length, step_spec
from perdure.durable.steps import Steps
from perdure.durable.waits import Wait

T = TypeVar("T")


class DurableContext(Protocol):
    """The durable half of a task: everything that must happen once goes through it.

    Each of `step`, `now`, `uuid`, `random`, `sleep` and `await_event` takes the next position of
    the run at the moment it is called (`parallel` one for each of its steps), so `asyncio.gather`
    over them is deterministic. What they return was recorded first; a later attempt gets the
    record. All raise LeaseLostError when another worker has gone on with the run: let it pass.
    """

    @property
    def run_id(self) -> str: ...
    @property
    def project_id(self) -> str: ...
    @property
    def scenario_id(self) -> str | None: ...
    @property
    def input(self) -> Mapping[str, JsonValue]:
        """What the run's manifest says is its input."""
        ...

    @overload
    def step(
        self,
        intent: str,
        fn: Callable[[], Awaitable[T]],
        *,
        kind: StepKind = "logic",
        fingerprint: JsonValue = None,
        retry: Retry | None = None,
        timeout_ms: int | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[T]:
        """Return what `fn` returned when this step was first completed.

        `fn` takes nothing, is plain or async, and returns plain JSON; it runs at least once, its
        first recorded result is final. `current_step()` in it gives its idempotency key.
        `fingerprint` is hashed: a replay with another one parks the run. `retry` holds within one
        attempt, `timeout_ms` for each try of an async `fn`. `effect` "at_most_once": after a
        crash in the middle it is not executed again but fails (UnfinishedStepError); None means
        "idempotent".

        Cancelled by the task (`wait_for`, a race), the step is recorded as abandoned, and a replay
        waits here to be cancelled again; a time-out by `timeout_ms` replays at once.

        Raises StepFailedError (the original as its cause, when it happened in this attempt) once
        the tries are used up; DivergenceError when another step is recorded at this position.
        """
        ...

    @overload
    def step(
        self,
        intent: str,
        fn: Callable[[], T],
        *,
        kind: StepKind = "logic",
        fingerprint: JsonValue = None,
        retry: Retry | None = None,
        timeout_ms: int | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[T]: ...

    def parallel(
        self,
        *steps: tuple[str, Callable[[], Any]],
        concurrency_max: int | None = None,
        kind: StepKind = "logic",
        retry: Retry | None = None,
        timeout_ms: int | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[list[Any]]:
        """Return what the steps returned, in their order; each is (intent, fn), as for `step`.

        They are begun in order, at most `concurrency_max` at a time (None: all at once); the
        other options are those of each step. A step that fails stops no other: when all have
        ended, the StepFailedError of the lowest position is raised, and a task that goes on after
        it takes the same branch in every attempt. No steps: [], and no position is taken.

        Raises UsageError, before any position is taken, for what is no such pair or option.
        """
        ...

    def now(self) -> Awaitable[str]:
        """Return the time, as ISO-8601 text, that was recorded when this was first asked."""
        ...

    def uuid(self) -> Awaitable[str]:
        """Return a random UUID (version 4), the same in every attempt."""
        ...

    def random(self) -> Awaitable[float]:
        """Return a random number in [0, 1), the same in every attempt."""
        ...

    def sleep(self, duration_ms: int) -> Awaitable[None]:
        """Return after `duration_ms`, counted from the first attempt at it.

        The run gives its lease back meanwhile, unless other steps of it are still open. In a
        worker that ends the attempt, and with it an asyncio time limit around the call.
        """
        ...

    def await_event(self, key: str, *, timeout_ms: int | None = 60_000) -> Awaitable[JsonValue]:
        """Return the payload of the event `key` as soon as it has been emitted.

        The time-out counts from the first attempt at the wait; None waits for ever. Raises
        AwaitEventTimeoutError, which is final: a later attempt gets it too. An asyncio time limit
        around the call has no effect in a worker, which gives the run back meanwhile.
        """
        ...

    def emit_event(self, key: str, payload: JsonValue) -> Awaitable[bool]:
        """Emit an event of this run; return whether this emit was the first of its key.

        Not a step: each attempt emits again, which changes nothing.
        """
        ...

    def set_outcome(self, outcome: RunOutcome) -> None:
        """Say what is recorded as the outcome of this run if it completes; the last call counts.

        It goes before a default that the caller of `run_durable` gave. Not a step: each attempt
        says it again. An engine that hosts the task keeps no outcomes. Raises UsageError or
        NotSerializableError for what cannot be recorded.
        """
        ...


S = TypeVar("S", bound=Steps)


class StepsContext(Generic[S]):
    """What of a DurableContext is made of steps, whoever records them."""

    def __init__(self, steps: S) -> None:
        self.steps = steps
        self.outcome: RunOutcome | None = None

    def step(
        self,
        intent: str,
        fn: Callable[[], Any],
        *,
        kind: StepKind = "logic",
        fingerprint: JsonValue = None,
        retry: Retry | None = None,
        timeout_ms: int | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[Any]:
        spec = step_spec(
            self.steps.take,
            intent,
            kind=kind,
            fingerprint=fingerprint,
            retry=retry,
            timeout_ms=timeout_ms,
            effect=effect or "idempotent",
        )
        return self.steps.run(spec, fn)

    def parallel(
        self,
        *steps: tuple[str, Callable[[], Any]],
        concurrency_max: int | None = None,
        kind: StepKind = "logic",
        retry: Retry | None = None,
        timeout_ms: int | None = None,
        effect: Effect | None = None,
    ) -> Awaitable[list[Any]]:
        check_concurrency(concurrency_max)
        branches = branches_of(
            self.steps,
            steps,
            kind=kind,
            retry=retry,
            timeout_ms=timeout_ms,
            effect=effect or "idempotent",
        )
        call = run_branches(self.steps, branches, concurrency_max=concurrency_max)
        return self.steps.watched(call, *(branch.spec.position for branch in branches))

    def now(self) -> Awaitable[str]:
        return self._deterministic("now", self._now_text)

    def uuid(self) -> Awaitable[str]:
        return self._deterministic("uuid", effects.new_uuid)

    def random(self) -> Awaitable[float]:
        return self._deterministic("random", effects.random_float)

    def set_outcome(self, outcome: RunOutcome) -> None:
        outcome_text(outcome)
        self.outcome = outcome

    def _deterministic(self, name: str, fn: Callable[[], T]) -> Awaitable[T]:
        spec = StepSpec(self.steps.take(), f"deterministic:{name}", kind="deterministic")
        return self.steps.run(spec, fn)

    def _now_text(self) -> str:
        return iso_time(effects.system_clock())


class RunContext(StepsContext[Steps]):
    """The DurableContext of one attempt, or (without an attempt) of a finished run's replay."""

    def __init__(
        self, run: RunRecord, steps: Steps, attempt: Attempt | None, *, unwinds: bool
    ) -> None:
        super().__init__(steps)
        self._run = run
        self._attempt = attempt
        self._unwinds = unwinds

    @property
    def run_id(self) -> str:
        return self._run.run_id

    @property
    def project_id(self) -> str:
        return self._run.project_id

    @property
    def scenario_id(self) -> str | None:
        return self._run.scenario_id

    @property
    def input(self) -> Mapping[str, JsonValue]:
        manifest = self._run.manifest
        return {} if manifest is None else manifest.input

    def sleep(self, duration_ms: int) -> Awaitable[None]:
        check_length(duration_ms, name="duration_ms")
        wait = self._wait("deterministic:sleep", None, duration_ms)
        return self.steps.watched(self._sleep(wait), wait.position)

    def await_event(self, key: str, *, timeout_ms: int | None = 60_000) -> Awaitable[JsonValue]:
        identity.check_event_key(key)
        if timeout_ms is not None:
            check_length(timeout_ms, name="timeout_ms")
        wait = self._wait(f"event:{key}", key, timeout_ms)
        return self.steps.watched(wait.run(), wait.position)

    async def emit_event(self, key: str, payload: JsonValue) -> bool:
        if self._attempt is None:
            encode_value(payload, name="payload")
            return False
        await self.steps.awake(self._attempt)
        accepted, _ = await self._attempt.store.emit_event(self._run.run_id, key, payload)
        return accepted

    def _now_text(self) -> str:
        assert self._attempt is not None
        return iso_time(self._attempt.store_now_ms)

    async def _sleep(self, wait: Wait) -> None:
        await wait.run()

    def _wait(self, intent: str, key: str | None, length_ms: int | None) -> Wait:
        kind = "deterministic" if key is None else "event"
        spec = StepSpec(self.steps.take(), intent, kind=kind)
        return Wait(self.steps, spec, key=key, length_ms=length_ms, unwinds=self._unwinds)
