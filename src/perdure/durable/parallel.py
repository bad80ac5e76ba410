"""Several steps of a run at once, at most so many at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from perdure.core.records import Effect, Retry, StepKind
from perdure.durable.scope import StepSpec, check_intent, step_spec
from perdure.durable.steps import Steps
from perdure.errors import StepFailedError, UsageError

Call = tuple[str, Callable[[], Any]]
"""The intent of a step, and the function that is its body."""


class Branch(NamedTuple):
    """One of the steps, at the position that it has taken."""

    spec: StepSpec
    body: Callable[[], Any]


def branches_of(
    steps: Steps,
    calls: Sequence[Call],
    *,
    kind: StepKind,
    retry: Retry | None,
    timeout_ms: int | None,
    effect: Effect,
) -> list[Branch]:
    """Give each call the next position, in order. A call that is refused takes none for any.

    Raises UsageError for what is no pair of an intent and a function, or for a wrong option.
    """
    for call in calls:
        _check_call(call)
    return [
        Branch(
            step_spec(
                steps.take,
                intent,
                kind=kind,
                fingerprint=None,
                retry=retry,
                timeout_ms=timeout_ms,
                effect=effect,
            ),
            body,
        )
        for intent, body in calls
    ]


def check_concurrency(concurrency_max: object) -> None:
    """Raise UsageError unless so many steps can run at a time."""
    if concurrency_max is None or (type(concurrency_max) is int and concurrency_max >= 1):
        return
    raise UsageError(f"concurrency_max must be an integer from 1 on, not {concurrency_max!r:.40}")


async def run_branches(
    steps: Steps, branches: Sequence[Branch], *, concurrency_max: int | None
) -> list[Any]:
    """Run the branches, begun in order, and return their results in that order.

    A failed branch stops no other. When all have ended, what ended the attempt is raised, else
    the failure of the lowest position. Once the attempt is over, no further branch is begun.
    """
    waiting = deque(enumerate(branches))
    results: dict[int, Any] = {}
    failures: dict[int, Exception] = {}

    async def work() -> None:
        while waiting and steps.refusal is None:
            index, (spec, body) = waiting.popleft()
            try:
                results[index] = await steps.run(spec, body)
            except Exception as error:
                failures[index] = error

    lanes = min(len(branches), concurrency_max or len(branches))
    try:
        ends = await asyncio.gather(*(work() for _ in range(lanes)), return_exceptions=True)
    finally:
        for _, (spec, _) in waiting:
            steps.answered(spec)
    if steps.refusal is not None:
        raise steps.refusal
    for end in ends:
        if end is not None:
            raise end
    if failures:
        raise failures[min(failures, key=lambda at: (_is_a_failed_step(failures[at]), at))]
    return [results[index] for index in range(len(branches))]


def _check_call(call: object) -> None:
    pair = cast("tuple[object, ...]", call) if type(call) is tuple else ()
    if len(pair) != 2 or not callable(pair[1]):
        raise UsageError(f"each step must be a tuple of an intent and a function, not {call!r:.60}")
    check_intent(pair[0])


def _is_a_failed_step(error: Exception) -> bool:
    """Whether it is recorded, and no sign that this attempt is over."""
    return isinstance(error, StepFailedError)
