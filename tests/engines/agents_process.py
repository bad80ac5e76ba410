"""A process in which agents of the OpenAI SDK work, and which may kill itself in a tool.

    python agents_process.py URL NOTES run|turn [--die]

Notes `model N` for each call of the model and `tool NAME` for each effect of a tool. With `--die`
it kills itself behind the effect of the tool `pay`, before that is recorded.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from agents import Agent, ModelResponse, function_tool, set_tracing_disabled
from agents.items import TResponseOutputItem, TResponseStreamEvent
from agents.testing import ScriptedModel, assistant_message, function_call

from perdure import (
    AgentTaskSpec,
    ChatTurnEngine,
    ChatTurnIdentity,
    DurableContext,
    RunManifest,
    RunStore,
    open_store,
    run_durable,
)
from perdure.engines.openai_agents import AgentTurns, run_agent

TURN = ChatTurnIdentity("", "s", "ann", 0)
MANIFEST = RunManifest("agents", AgentTaskSpec("pay", "Pay a bill"))
FINAL = "It is paid."
ANSWERS: list[list[TResponseOutputItem]] = [
    [function_call("look", {}, call_id="c1"), function_call("listen", {}, call_id="c2")],
    [assistant_message("I pay it. ", item_id="m1"), function_call("pay", {}, call_id="c3")],
    [assistant_message(FINAL, item_id="m2")],
]


class NotedModel(ScriptedModel):
    """Answers by how much it was told, as a model does; each call is noted."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__([])
        self._note = note

    def _next(self, input: Any) -> None:
        told = [] if isinstance(input, str) else input
        calls = {each["call_id"] for each in told if each.get("type") == "function_call_output"}
        number = {0: 0, 2: 1, 3: 2}[len(calls)]
        self._note(f"model {number}")
        self.enqueue(ANSWERS[number])

    async def get_response(self, *asked: Any, **options: Any) -> ModelResponse:
        self._next(options["input"] if "input" in options else asked[1])
        return await super().get_response(*asked, **options)

    async def stream_response(
        self, *asked: Any, **options: Any
    ) -> AsyncIterator[TResponseStreamEvent]:
        self._next(options["input"] if "input" in options else asked[1])
        async for event in super().stream_response(*asked, **options):
            yield event


def payer(note: Callable[[str], None], *, dies: bool = False) -> Agent[Any]:
    """Return an agent that looks and listens at once, pays, and says so."""

    @function_tool
    async def look() -> str:
        """Look at the bill."""
        await asyncio.sleep(0)
        note("tool look")
        return "12 EUR"

    @function_tool
    def listen() -> str:
        """Listen to the creditor."""
        note("tool listen")
        return "urgent"

    @function_tool
    def pay() -> str:
        """Pay the bill."""
        note("tool pay")
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return "paid"

    tools: list[Any] = [look, listen, pay]
    return Agent("payer", model=NotedModel(note), tools=tools)


def noting(path: str | Path) -> Callable[[str], None]:
    """Return what adds a line to a file that outlives the process."""

    def note(line: str) -> None:
        with Path(path).open("a") as file:
            file.write(f"{line}\n")

    return note


async def run(store: RunStore, agent: Agent[Any]) -> str:
    """Run the agent as the task of a durable run; return its answer."""

    async def task(context: DurableContext) -> str:
        return str((await run_agent(context, agent, "Pay the bill")).final_output)

    done = await run_durable(store, run_id="pay", manifest=MANIFEST, task=task)
    return done.result


async def main(url: str, notes: str, way: str, *options: str) -> None:
    set_tracing_disabled(True)
    store = await open_store(url)
    agent = payer(noting(notes), dies="--die" in options)
    if way == "run":
        await run(store, agent)
        return
    turns = AgentTurns(agent, store=store, effects={"pay": "idempotent"})
    engine = ChatTurnEngine(store, produce=turns, name="agents")
    turn = await engine.submit(TURN, "Pay the bill")
    async for _ in turn.lines():
        pass


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
