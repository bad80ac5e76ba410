"""What a producer is handed does what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from perdure.core.frames import text
from perdure.turn.handout import Turn
from tests.turn.agents import Tool, steps_of
from tests.turn.stage import Stage, finish


async def test_tools_at_once_are_recorded_like_steps_one_by_one(stage: Stage) -> None:
    async def produce(turn: Turn) -> AsyncIterator[Any]:
        yield text("Looking.")
        found = await turn.parallel(
            ("north", Tool(result="snow")), ("south", Tool(result="sun")), kind="tool"
        )
        yield text(f" {found}")

    reader = await finish(await stage.engine(produce))
    assert reader.text == "Looking. ['snow', 'sun']"
    steps = await steps_of(stage)
    assert [(step.step_index, step.intent, step.effect) for step in steps.values()] == [
        (0, "chat:turn-0", None),
        (1, "north", "at_most_once"),
        (2, "south", "at_most_once"),
    ]
