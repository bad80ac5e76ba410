"""`check_replay`: changed code must still fit the runs that older code recorded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.protocol import RunStore

T = TypeVar("T")


_TAKING: Final = frozenset({"step", "now", "uuid", "random", "sleep", "await_event"})
"""What takes one position of the history."""


class _Counting:
    """A context that counts the positions which the task takes."""

    def __init__(self, context: DurableContext) -> None:
        self.positions = 0
        self._context = context

    def parallel(self, *steps: Any, **options: Any) -> Awaitable[list[Any]]:
        taken = self._context.parallel(*steps, **options)
        self.positions += len(steps)
        return taken

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._context, name)
        if name not in _TAKING:
            return member

        def counted(*arguments: Any, **options: Any) -> Any:
            taken = member(*arguments, **options)
            self.positions += 1
            return taken

        return counted


async def check_replay(
    store: RunStore, run_id: str, task: Callable[[DurableContext], Awaitable[T]]
) -> T:
    """Replay a completed run through `task`, and return what `task` returns.

    No step is executed and nothing is written: each step gets its recorded result. Raises
    DivergenceError where `task` takes another step than the recorded one, or one more; and
    AssertionError that names the first recorded step which `task` does not take any more. The run
    may be one of production, read through a handle of its own or from a copy. Raises
    RunNotFoundError, and UsageError for a run that is not completed.
    """
    run = await store.read_run(run_id)
    if run is None:
        raise RunNotFoundError(f"there is no run {run_id!r}")
    if run.state != "completed":
        raise UsageError(f"the run {run_id!r} is {run.state}; a completed run is replayed")
    if run.manifest is None:
        raise UsageError(f"the run {run_id!r} has no manifest: a TypeScript worker made it")
    steps = await store.read_steps(run_id)
    counting: _Counting | None = None

    async def counted(context: DurableContext) -> T:
        nonlocal counting
        counting = _Counting(context)
        return await task(cast("DurableContext", counting))

    done = await run_durable(store, run_id=run_id, manifest=run.manifest, task=counted)
    assert counting is not None
    if counting.positions < len(steps):
        missing = steps[counting.positions]
        raise AssertionError(
            f"the run {run_id!r} recorded step {missing.step_index} ({missing.intent!r}), "
            "which the task does not take any more"
        )
    return done.result
