"""A producer that looks at its steps before it joins an answer, and then cannot join it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from perdure.core.frames import Frame, text
from perdure.turn.handout import Turn
from tests.turn.agents import crash_when, was_shown
from tests.turn.stage import COMPLETED, Stage, finish


async def test_a_producer_that_cannot_join_asks_for_its_steps_from_the_first_on(
    stage: Stage,
) -> None:
    class Looking:
        def __init__(self) -> None:
            self.looked: list[str] = []

        async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
            yield text(await turn.step("look", self._look))
            await turn.save_handle("call-7")
            yield text(" half")
            if turn.attempt == 1:
                await asyncio.Event().wait()
            yield text(await turn.step("check", self._check))

        async def attach(self, turn: Turn) -> None:
            await turn.step("look", self._look)
            await turn.step("check", self._check)

        def _look(self) -> str:
            self.looked.append("look")
            return "seen"

        def _check(self) -> str:
            self.looked.append("check")
            return " whole"

    produce = Looking()
    await crash_when(stage, produce, lambda: was_shown(stage, " half"))
    reader = await finish(await stage.engine(produce))
    assert (reader.text, reader.kinds[-1]) == ("seen half whole", COMPLETED)
    assert produce.looked == ["look", "check"]
