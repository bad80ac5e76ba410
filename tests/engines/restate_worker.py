"""A worker that serves handlers to Restate, as a process that tests can kill.

Its arguments: where it listens, the database, the log of what the model was asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config

from perdure import ChatTurnEngine, DurableContext, Retry, frames, open_store
from perdure.engines.restate import RestateSessions, task_workflow
from perdure.errors import AwaitEventTimeoutError
from perdure.testing.host_tasks import HOST_TASKS

PIECES = 40


class Model:
    """Answers with numbered words, and notes each call, so that tests can count them."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def note(self, what: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{os.getpid()} {what}\n")

    async def say(self, name: str, *, pause_s: float = 0.0) -> AsyncIterator[Any]:
        self.note(name)
        for number in range(PIECES):
            yield frames.text(f"{name}{number} ")
            await asyncio.sleep(pause_s)
        yield frames.upstream_end("stop")

    async def produce(self, turn: Any) -> AsyncIterator[Any]:
        """Answer as the message says: "plain", "steps" or "approve", slowly behind a "slow "."""
        pause_s = 0.05 if turn.user_message.startswith("slow ") else 0.0
        kind = turn.user_message.removeprefix("slow ")
        if kind == "plain":
            async for frame in self.say("plain", pause_s=pause_s):
                yield frame
            return
        first = turn.stream("first", lambda: self.say("first"), result=_text_of)
        async for frame in first:
            yield frame
        found = await turn.step("look", lambda: self._looked(len(first.result)), kind="logic")
        yield frames.text(f"found {found} ")
        if kind == "approve":
            answer = await turn.await_event("approval", timeout_ms=20_000)
            yield frames.text(f"approved by {answer['by']} ")
        last = turn.stream("last", lambda: self.say("last", pause_s=pause_s), result=_text_of)
        async for frame in last:
            yield frame

    def _looked(self, length: int) -> int:
        self.note("look")
        return length

    async def task(self, ctx: DurableContext) -> dict[str, Any]:
        """Do everything that a task may do.

        With `wait` it waits for the event "go"; with `hang` a step hangs until that file is there,
        as one of the `effect` that is given; with `fail` the last step raises.
        """
        wanted = ctx.input
        first = await ctx.step("first", lambda: self.noted("first"))
        flaky = await ctx.step("flaky", self._flaky(), retry=Retry(3, backoff_ms=1))
        both = await ctx.parallel(
            ("left", lambda: self.noted("left")), ("right", lambda: self.noted("right"))
        )
        same = [await ctx.now(), await ctx.uuid(), await ctx.random()]
        again = await ctx.step("same", lambda: self.noted("same", same))
        emitted = [await ctx.emit_event("own", 1), await ctx.emit_event("own", 2)]
        emitted.append(await ctx.await_event("own"))
        await ctx.sleep(20)
        if wanted.get("wait"):
            both.append(await ctx.await_event("go", timeout_ms=20_000))
        try:
            await ctx.await_event("never", timeout_ms=5)
        except AwaitEventTimeoutError as error:
            both.append(error.code)
        if wanted.get("hang"):
            effect = wanted.get("effect", "idempotent")
            is_open = Path(wanted["hang"]).exists
            hung = await ctx.step("hang", lambda: self._hang(is_open), effect=effect)
            both.append(hung)
        if wanted.get("fail"):
            await ctx.step("broken", self._broken)
        done = {"first": first, "flaky": flaky, "both": both}
        return {"run": ctx.run_id, **done, "same": again == same, "emitted": emitted}

    async def count(self, ctx: DurableContext) -> dict[str, float]:
        """Take so many steps that do nothing, and return how long each took."""
        steps = ctx.input["steps"]
        begun = time.perf_counter()
        for number in range(steps):
            await ctx.step(f"step {number}", lambda: 1)
        return {"ms_per_step": (time.perf_counter() - begun) * 1_000 / steps}

    def noted(self, what: str, value: Any = "done") -> Any:
        self.note(what)
        return value

    def _flaky(self) -> Callable[[], str]:
        tries = iter(range(3))

        def body() -> str:
            self.note("flaky")
            if next(tries) < 2:
                raise OSError("not yet")
            return "third time"

        return body

    async def _hang(self, is_open: Callable[[], bool]) -> str:
        self.note("hang")
        if not is_open():
            await asyncio.get_running_loop().create_future()
        return "went on"

    def _broken(self) -> None:
        raise ValueError("no such table")


def _text_of(said: Any) -> str:
    return "".join(frame.data["delta"] for frame in said if frame.kind == "text")


async def main(bind: str, database: str, log: str) -> None:
    logging.basicConfig(level=logging.INFO)
    store = await open_store(database)
    model = Model(Path(log))
    engine = ChatTurnEngine(store, produce=model.produce)
    config = Config()
    config.bind = [bind]
    # Restate opens another connection when one is full, and another worker may accept it.
    config.h2_max_concurrent_streams = 8
    sessions = RestateSessions(engine)
    served = {"task": model.task, "count": model.count, **HOST_TASKS}
    tasks = [task_workflow(name, task) for name, task in served.items()]
    await serve(restate.app([*sessions.services, *tasks]), config, mode="asgi")
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
