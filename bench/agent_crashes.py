"""What a crash costs an agent of Pydantic AI on Perdure and on its own DBOS integration.

    python -m bench.agent_crashes [CALLS]

Each agent of `bench.agent_process` is killed once at each point, begun again, and what happened
outside of any database is counted. Then: how long it takes from opening the store behind a kill to
the next call, and what a call of a model or of a tool costs, in rounds that take turns.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from pydantic_ai import Agent, ModelResponse, TextPart, ToolCallPart, UsageLimits
from pydantic_ai.models.function import FunctionModel

from bench.agent_process import MANIFEST, PROMPT, TURN, Notes, booker, on_perdure
from perdure import ChatTurnEngine, DurableContext, open_store, run_durable
from perdure.engines.pydantic_ai import AgentTurns, PerdureDurability, durably

ROOT: Final = Path(__file__).parent.parent
POINTS: Final = {
    "model": "in a model request, its reply lost",
    "tool": "in a tool, behind its effect",
    "recorded": "when all tools had ended",
    "stream": "in the middle of the answer",
}
WAYS: Final = {
    "dbos": "DBOSDurability",
    "dbos-steps": "DBOSDurability, tools as @DBOS.step",
    "turn": "PerdureDurability, a turn",
    "turn-once": "PerdureDurability, a turn, at most once",
}
KILLS: Final = 5
ROUNDS: Final = 5
NO_LIMIT: Final = UsageLimits(request_limit=None)


def process(way: str, folder: Path, *point: str) -> int:
    words = [sys.executable, "-m", "bench.agent_process", way, str(folder), *point]
    return subprocess.run(words, cwd=ROOT, timeout=120, check=False).returncode


# What is lost or repeated.


async def bill_of(way: str, folder: Path) -> tuple[str, str]:
    """Return how many requests the ledger knows, and what a reader has at the end."""
    if not way.startswith("turn"):
        shown = [line[6:] for line in Notes(folder).lines if line.startswith("shown ")]
        return "none", "".join(shown)
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    usage = [row for row in (await store.read_details("chat:s:0")).usage if row.step_index]
    engine = ChatTurnEngine(store, produce=AgentTurns(booker(Notes(folder), PerdureDurability())))
    turn = await engine.submit(TURN, PROMPT)
    body = b"".join([lines async for lines in turn.lines()])
    events = [json.loads(line) for line in body.splitlines()]
    seen = "".join(event["data"].get("delta", "") for event in events)
    await engine.aclose()
    await store.close()
    lost = sum(row.tokens_in is None for row in usage)
    return f"{len(usage)}, {lost} of them unknown", seen


def crashes() -> None:
    print("| killed | engine | model calls (3) | look, listen, book | bill | shown |")
    print("|---|---|---|---|---|---|")
    for point, where in POINTS.items():
        for way, name in WAYS.items():
            if way == "turn-once" and point != "tool":
                continue
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                assert process(way, folder, point) < 0, "it was to kill itself"
                assert process(way, folder) == 0, "it was to end"
                made = Counter(Notes(folder).lines)
                models = sum(made[line] for line in made if line.startswith("model "))
                tools = ", ".join(str(made[f"tool {each}"]) for each in ("look", "listen", "book"))
                bill, seen = asyncio.run(bill_of(way, folder))
                print(f"| {where} | {name} | {models} | {tools} | {bill} | {seen} |", flush=True)


# How long it takes.


class Timed(Notes):
    """Notes when the first call came."""

    first = 0.0

    def add(self, line: str) -> None:
        self.first = self.first or time.perf_counter()
        super().add(line)


def waited() -> None:
    for way in ("run", "turn"):
        took: list[float] = []
        for _ in range(KILLS):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                assert process(way, folder, "tool") < 0
                notes = Timed(folder)
                begun = time.perf_counter()
                asyncio.run(on_perdure(way, folder, notes))
                took.append((notes.first - begun) * 1_000)
        each = ", ".join(f"{ms:.0f}" for ms in sorted(took))
        print(f"from opening the store to the next call, {way}: {each} ms")


# What it costs.


def calling(calls: int, *capabilities: Any) -> Agent[Any, str]:
    """Return an agent that makes so many calls, every other one of a tool."""

    def answer(messages: Any, _: Any) -> ModelResponse:
        made = sum(isinstance(each, ModelResponse) for each in messages)
        if made < calls // 2:
            return ModelResponse([ToolCallPart("one", {}, f"c{made}")])
        return ModelResponse([TextPart("Done.")])

    agent = Agent(FunctionModel(answer), name="bench", capabilities=[*capabilities])
    agent.tool_plain(one)
    return agent


async def one() -> str:
    """Return a one."""
    return "1"


async def alone(folder: Path, calls: int) -> None:
    await calling(calls).run("Go", usage_limits=NO_LIMIT)


async def on_run(folder: Path, task: Callable[[DurableContext], Awaitable[Any]]) -> None:
    store = await open_store(f"sqlite:{folder / 'runs.db'}")
    await run_durable(store, run_id="bench", manifest=MANIFEST, task=task)
    await store.close()


async def durable(folder: Path, calls: int) -> None:
    agent = calling(calls, PerdureDurability())

    async def task(context: DurableContext) -> None:
        with durably(context):
            await agent.run("Go", usage_limits=NO_LIMIT)

    await on_run(folder, task)


async def steps_alone(folder: Path, calls: int) -> None:
    async def one_of_them() -> str:
        return "1"

    async def task(context: DurableContext) -> None:
        for at in range(calls):
            await context.step("one", one_of_them, kind="tool" if at % 2 else "llm")

    await on_run(folder, task)


SIDES: Final = {
    "Pydantic AI alone": alone,
    "PerdureDurability in run_durable": durable,
    "run_durable alone, steps llm and tool": steps_alone,
}


async def cost(calls: int) -> None:
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for _ in range(ROUNDS):
        for name, side in SIDES.items():
            with tempfile.TemporaryDirectory() as place:
                begun, worked = time.perf_counter(), time.process_time()
                await side(Path(place), calls)
                wall, own = time.perf_counter() - begun, time.process_time() - worked
                took[name].append((wall / calls * 1e6, own / calls * 1e6))
    for name, rounds in took.items():
        wall, own = (statistics.median(each) for each in zip(*rounds, strict=True))
        print(f"{name:38} {wall:8.0f} us a call, {own:8.0f} us of work")


def main(calls: int = 100) -> None:
    crashes()
    waited()
    asyncio.run(cost(calls))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
