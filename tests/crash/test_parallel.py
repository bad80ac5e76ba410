"""Steps at once come to the same end wherever the process dies among them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from perdure.core.frames import Frame, text
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.errors import StepFailedError
from perdure.store.protocol import RunStore
from perdure.testing.contract import NewLab
from perdure.testing.faults import crash_everywhere
from perdure.testing.samples import manifest
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from tests.turn.stage import TURN, collect


class Pages:
    """Bodies of steps that see whether they run although they are recorded already."""

    def __init__(self, run_id: str) -> None:
        self.executed: Counter[str] = Counter()
        self.executed_after_commit: list[str] = []
        self._run_id = run_id

    async def fetch(self, store: RunStore, name: str) -> str:
        steps = await store.read_steps(self._run_id)
        if name in {step.intent for step in steps if step.status == "completed"}:
            self.executed_after_commit.append(name)
        self.executed[name] += 1
        # The later a branch begins, the sooner it ends.
        for _ in range(9 - int(name)):
            await asyncio.sleep(0)
        if name == "2":
            raise ConnectionError("this page is always away")
        return f"page {name}"


@pytest.mark.parametrize("concurrency_max", [1, 2, None])
async def test_a_run_with_steps_at_once_ends_the_same_wherever_its_process_dies(
    new_lab: NewLab, concurrency_max: int | None
) -> None:
    pages = Pages("run")

    async def scenario(store: RunStore) -> tuple[object, list[tuple[object, ...]]]:
        async def task(context: DurableContext) -> list[Any]:
            names = ("0", "1", "2", "3")
            calls = [(name, partial(pages.fetch, store, name)) for name in names]
            try:
                got = await context.parallel(*calls, concurrency_max=concurrency_max)
            except StepFailedError as error:
                got = [error.intent]
            more = await context.parallel(("4", partial(pages.fetch, store, "4")), kind="llm")
            return [*got, *more]

        done = await run_durable(store, run_id="run", manifest=manifest(), task=task)
        return done.result, [(step.intent, step.status) for step in done.steps]

    report = await crash_everywhere(scenario, new_lab)
    result, steps = report.outcome
    assert result == ["2", "page 4"]
    assert [status for _, status in steps] == [
        "completed",
        "completed",
        "failed",
        "completed",
        "completed",
    ]
    assert pages.executed_after_commit == []
    assert max(point.attempts for point in report.points) > 1


async def test_a_turn_with_tools_at_once_ends_the_same_wherever_its_process_dies(
    new_lab: NewLab,
) -> None:
    pages = Pages("chat:s:0")

    async def scenario(store: RunStore) -> object:
        async def produce(turn: Turn) -> AsyncIterator[Frame]:
            yield text("Found")
            found = await turn.parallel(
                *((name, partial(pages.fetch, store, name)) for name in ("0", "1", "3")),
                concurrency_max=2,
                kind="tool",
                effect="idempotent",
            )
            yield text(f": {', '.join(found)}.")

        engine = ChatTurnEngine(store, produce=produce, recover=False)
        submitted = await engine.submit(TURN, "What is there?")
        await collect(submitted.lines())
        answer, *tools = await store.read_steps("chat:s:0")
        await engine.aclose(drain_ms=0)
        return answer.result["finalText"], [(step.intent, step.result) for step in tools]

    report = await crash_everywhere(scenario, new_lab)
    assert report.outcome == (
        "Found: page 0, page 1, page 3.",
        [("0", "page 0"), ("1", "page 1"), ("3", "page 3")],
    )
    assert pages.executed_after_commit == []
