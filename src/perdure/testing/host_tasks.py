"""Tasks that every host must run alike; what their steps do outside, they note in a file.

A worker of the host under test serves `HOST_TASKS` by their names. The input of each has `log`,
the path of that file, on the machine on which the worker runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from perdure.core.records import JsonValue, Retry
from perdure.durable.context import DurableContext
from perdure.durable.scope import current_step
from perdure.errors import PerdureError, StepFailedError

HostTask = Callable[[DurableContext], Awaitable[JsonValue]]

VALUES: Final[tuple[JsonValue, ...]] = (
    None,
    True,
    0,
    1.0,
    -0.5,
    2**63 + 1,
    "",
    "é \u2028 \x00 \ud800 😀",
    {"b": [1, {"a": None}], "a": []},
)
"""What a step may return, and what some engines' own formats would change."""
SLEEP_MS: Final = 300
PARALLEL_PATIENCE_S: Final = 5.0
"""How long the first of several steps waits for a second one to begin."""


class Notes:
    """The file in which the bodies of a run note that they were executed."""

    def __init__(self, ctx: DurableContext) -> None:
        self._path = Path(ctx.input["log"])

    def write(self, word: str) -> None:
        with self._path.open("a", encoding="ascii") as file:
            file.write(f"{word}\n")

    def count(self, word: str) -> int:
        return self._path.read_text("ascii").splitlines().count(word)

    def body(self, word: str, value: JsonValue = "done") -> Callable[[], JsonValue]:
        """Return a body that notes the word, and returns the value."""

        def noted() -> JsonValue:
            self.write(word)
            return value

        return noted

    async def hang_once(self, word: str) -> str:
        """Note the word; when that is done for the first time, wait until the worker is killed."""
        self.write(word)
        if self.count(word) == 1:
            await asyncio.get_running_loop().create_future()
        return "went on"


def failure_json(error: PerdureError) -> dict[str, JsonValue]:
    """Return what a task sees of a failure."""
    seen: dict[str, JsonValue] = {"kind": type(error).__name__, "code": error.code}
    if isinstance(error, StepFailedError):
        seen |= {"intent": error.intent, "type": error.original_type}
        seen["message"] = error.original_message
    return seen


async def failure_in(awaitable: Awaitable[Any]) -> dict[str, JsonValue] | None:
    """Return what a task sees of the failure, if it fails."""
    try:
        await awaitable
    except PerdureError as error:
        return failure_json(error)
    return None


async def values(ctx: DurableContext) -> JsonValue:
    """Return what a step for each value returned."""

    def giving(value: JsonValue) -> Callable[[], JsonValue]:
        return lambda: value

    return [await ctx.step("value", giving(value)) for value in VALUES]


async def steps(ctx: DurableContext) -> JsonValue:
    """Retry, fail, be late, return what is no JSON, and begin a step inside a step."""
    notes = Notes(ctx)

    def flaky() -> str:
        notes.write("flaky")
        if current_step().tries < 3:
            raise OSError("not yet")
        return f"try {current_step().tries}"

    def broken() -> None:
        notes.write("broken")
        raise ValueError("no such table")

    async def late() -> None:
        await asyncio.get_running_loop().create_future()

    def nested() -> Awaitable[Any]:
        return ctx.step("inner", notes.body("inner"))

    return {
        "flaky": await ctx.step("flaky", flaky, retry=Retry(3, backoff_ms=1)),
        "broken": await failure_in(ctx.step("broken", broken, retry=Retry(2, backoff_ms=1))),
        "late": await failure_in(ctx.step("late", late, timeout_ms=20)),
        "set": await failure_in(ctx.step("set", lambda: {1, 2})),
        "nested": await failure_in(ctx.step("nested", nested)),
        "after": await ctx.step("after", notes.body("after")),
    }


async def parallel(ctx: DurableContext) -> JsonValue:
    """Return what five steps returned of which two run at a time, and how many did at most."""
    notes, at_once, most, are_two = Notes(ctx), 0, 0, asyncio.Event()

    def branch(number: int) -> Callable[[], Awaitable[int]]:
        async def body() -> int:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            if most == 2:
                are_two.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(are_two.wait(), PARALLEL_PATIENCE_S)
            await asyncio.sleep(0.005 * (number % 2))
            at_once -= 1
            notes.write(f"branch {number}")
            return number

        return body

    async def broken() -> None:
        raise ValueError("this branch")

    pairs = [(f"branch {number}", branch(number)) for number in range(5)]
    results = await ctx.parallel(*pairs, concurrency_max=2)
    counted = await ctx.step("most", lambda: most)
    failed = await failure_in(ctx.parallel(("bad", broken), ("good", notes.body("good"))))
    gathered = await asyncio.gather(*(ctx.step(f"g{number}", branch(number)) for number in (5, 6)))
    return {"results": results, "most": counted, "failed": failed, "gathered": gathered}


async def facts(ctx: DurableContext) -> JsonValue:
    """Return what the run knows of itself, and what is recorded of chance and time."""
    before = await ctx.now()
    await ctx.sleep(SLEEP_MS)
    keys = [await ctx.step(f"key {at}", lambda: current_step().idempotency_key) for at in (0, 1)]
    return {
        "input": ctx.input.get("word"),
        "before": before,
        "after": await ctx.now(),
        "uuid": await ctx.uuid(),
        "random": await ctx.random(),
        "keys": keys,
    }


async def events(ctx: DurableContext) -> JsonValue:
    """Return the payloads of `early` and `late`, and what became of `never`."""
    notes = Notes(ctx)
    early = await ctx.await_event("early", timeout_ms=30_000)
    await ctx.step("heard", notes.body("heard"))
    late = await ctx.await_event("late", timeout_ms=30_000)
    again = await ctx.await_event("early", timeout_ms=30_000)
    never = await failure_in(ctx.await_event("never", timeout_ms=50))
    return {"early": early, "late": late, "again": again, "never": never}


async def failing(ctx: DurableContext) -> JsonValue:
    """Fail by a step that nobody catches."""

    def broken() -> None:
        raise ValueError("no such table")

    await ctx.step("broken", broken)
    return None


async def killed(ctx: DurableContext) -> JsonValue:
    """Be killed in a step, behind parallel ones; what was recorded must stay as it was."""
    notes = Notes(ctx)
    uuid = await ctx.uuid()
    notes.write(f"uuid {uuid}")
    first = await ctx.step("first", notes.body("first"))
    both = await ctx.parallel(("left", notes.body("left")), ("right", notes.body("right", 2)))

    async def hang() -> str:
        notes.write(f"key {current_step().idempotency_key}")
        return await notes.hang_once("hang")

    hung = await ctx.step("hang", hang)
    last = await ctx.step("last", notes.body("last"))
    return {"uuid": uuid, "results": [first, both, hung, last]}


async def killed_once(ctx: DurableContext) -> JsonValue:
    """Be killed in a step that may run once only."""
    notes = Notes(ctx)
    done = await ctx.step("done", notes.body("done"), effect="at_most_once")
    hang = ctx.step("hang", lambda: notes.hang_once("hang"), effect="at_most_once")
    return {"done": done, "hang": await failure_in(hang)}


async def killed_waiting(ctx: DurableContext) -> JsonValue:
    """Be killed while waiting for an event, which comes when nobody is there."""
    notes = Notes(ctx)
    await ctx.step("begun", notes.body("begun"))
    notes.write("waits")
    return await ctx.await_event("go", timeout_ms=60_000)


async def cancelled(ctx: DurableContext) -> JsonValue:
    """Be cancelled while waiting; note that the task was left, and try to go on."""
    notes = Notes(ctx)
    await ctx.step("begun", notes.body("begun"))
    try:
        await ctx.await_event("never", timeout_ms=60_000)
    finally:
        notes.write("left")
    await ctx.step("after", notes.body("after"))
    return None


HOST_TASKS: Final[Mapping[str, HostTask]] = {
    task.__name__: task
    for task in (
        values,
        steps,
        parallel,
        facts,
        events,
        failing,
        killed,
        killed_once,
        killed_waiting,
        cancelled,
    )
}
"""By name: what a worker of a host that is tested serves."""
