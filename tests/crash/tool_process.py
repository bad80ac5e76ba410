"""A process that lets a model call tools, or does an agent task, and may die inside a tool.

    python tool_process.py URL NOTES run|turn|task|stream|ask [--effect E] [--on-unfinished U]
                           [--die-at N] [--approve]

Notes `model N` for each call of the model, `effect KEY` for each effect of a tool, `end TEXT` at
the end. With `--die-at N` it kills itself behind the N-th effect that stands in the notes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from perdure.agent.adapter import AgentTaskContext
from perdure.agent.backend import AgentBackendContext, AgentBackendInput, IterableBackend
from perdure.agent.evals import ControlEvalResult, objective_eval
from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.steps import Continue, ControlDecision, Stop
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream_events import TextDeltaEvent
from perdure.agent.stream_frames import AgentTaskProducer
from perdure.agent.task import run_agent_task
from perdure.agent.tool_loop import ToolLoop
from perdure.agent.tools import Tool, ToolCall
from perdure.core import frames
from perdure.core.frames import Frame
from perdure.core.records import AgentTaskSpec, JsonValue, RunManifest
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.durable.scope import current_step
from perdure.errors import UnfinishedStepError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.identity import ChatTurnIdentity
from tests.agent.strict_provider import StrictProvider, calls, says

UNFINISHED = 44
LEASE_MS = 500
MANIFEST = RunManifest(project_id="crash", task=AgentTaskSpec(id="pay", intent="Pay two bills"))
TURN = ChatTurnIdentity("", "s", "ann", 0)
TASK = AgentTaskSpec(
    "climb",
    "Climb with permission",
    required_knowledge=[
        KnowledgeRequirement("permission", "may I climb?", fallback_policy="block")
    ],
)


class World:
    """What is outside of the process: it survives the process, and counts."""

    def __init__(self, notes: str, die_at: int | None) -> None:
        self._path = Path(notes)
        self._die_at = die_at

    def note(self, what: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{what}\n")

    def effect(self, key: str) -> None:
        self.note(f"effect {key}")
        effects = sum(line.startswith("effect") for line in self._path.read_text().splitlines())
        if effects == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def loop_of(world: World, arguments: argparse.Namespace) -> ToolLoop:
    def pay(bill: str, call: ToolCall) -> str:
        """Pay a bill."""
        world.effect(call.idempotency_key)
        return f"paid {bill}"

    provider = StrictProvider(
        calls(("c1", "pay", {"bill": "rent"})),
        calls(("c1", "pay", {"bill": "light"})),
        says("Both are paid."),
        on_call=lambda number: world.note(f"model {number}"),
    )
    tool = Tool(
        pay,
        effect=arguments.effect,
        on_unfinished=arguments.on_unfinished,
        needs_approval=arguments.approve,
    )
    return ToolLoop(provider.backend(), [tool])


async def in_a_run(store: RunStore, world: World, arguments: argparse.Namespace) -> None:
    async def task(context: DurableContext) -> str:
        result = await loop_of(world, arguments).run(context, "Pay my bills.")
        told = [message["content"] for message in result.messages if message["role"] == "tool"]
        return json.dumps([*told, result.text])

    done = await run_durable(store, run_id="run", manifest=MANIFEST, task=task, lease_ms=LEASE_MS)
    world.note(f"end {done.result}")


async def in_a_turn(store: RunStore, world: World, arguments: argparse.Namespace) -> None:
    await answer(ChatTurnEngine(store, produce=loop_of(world, arguments), lease_ms=LEASE_MS), world)


async def answer(engine: ChatTurnEngine, world: World) -> None:
    submitted = await engine.submit(TURN, "Pay my bills.")
    last = b""
    async for chunk in submitted.lines():
        last = chunk.splitlines()[-1]
    world.note(f"end {json.loads(last)['type']}")
    await engine.aclose()


class Climber:
    """Asks a model what to do; each rung is an effect outside, and the ladder is there too."""

    def __init__(self, store: RunStore, world: World) -> None:
        self._store = store
        self._world = world

    async def observe(self, context: AgentTaskContext) -> JsonValue:
        steps = await self._store.read_steps("run")
        return {"rung": sum(s.kind == "tool" and s.intent[:4] == "act:" for s in steps)}

    def validate(self, context: AgentTaskContext) -> list[ControlEvalResult]:
        rung = context.state["rung"]
        return [objective_eval("high", rung >= 2, score=rung / 2, severity="error")]

    async def decide(self, context: AgentTaskContext) -> ControlDecision:
        self._world.note(f"model {context.step_index}")
        if context.state["rung"] >= 2:
            return Stop("there", passed=True)
        return Continue({"climb": context.state["rung"] + 1})

    async def act(self, action: JsonValue, context: AgentTaskContext) -> JsonValue:
        call = current_step()
        self._world.effect(call.idempotency_key)
        return {"at": action["climb"]}


async def as_a_task(store: RunStore, world: World, arguments: argparse.Namespace) -> None:
    result = await run_agent_task(
        TASK,
        Climber(store, world),
        readiness=ReadinessPolicy(answers_event="answers", answers_timeout_ms=None),
        durable=(store, "run"),
    )
    world.note(f"end {result.status} {result.control.reason}")


async def as_a_streamed_task(store: RunStore, world: World, arguments: argparse.Namespace) -> None:
    """Answer a turn by two streamed tasks; behind each a human decides whether it is done."""
    planned: list[int] = []

    async def plan(
        input: AgentBackendInput, context: AgentBackendContext
    ) -> AsyncIterator[TextDeltaEvent]:
        world.note(f"model {planned[-1]}")
        yield TextDeltaEvent(text=f"Rung {planned[-1]}? ")

    tasks = AgentTaskProducer(
        IterableBackend("played", plan),
        task_of=lambda _: AgentTaskSpec("climb", "Climb with permission"),
        sessions=DurableSessionStore(store),
    )

    async def climb() -> None:
        world.effect(current_step().idempotency_key)

    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        for rung in range(2):
            planned.append(rung)
            plan_of_it = turn.stream(f"plan {rung}", lambda: tasks(turn), result=len)
            async for frame in plan_of_it:
                yield frame
            yield frames.data("question", rung)
            await turn.await_event(f"approval:{rung}", timeout_ms=None)
            await turn.step(f"climb {rung}", climb, kind="tool", effect="idempotent")
        yield frames.text("There.")

    await answer(ChatTurnEngine(store, produce=produce, lease_ms=LEASE_MS), world)


async def as_a_task_that_asks(store: RunStore, world: World, arguments: argparse.Namespace) -> None:
    """Answer a turn by a streamed task that waits for a human, finds a map, and then climbs."""

    async def climb(
        input: AgentBackendInput, context: AgentBackendContext
    ) -> AsyncIterator[TextDeltaEvent]:
        answers = context.knowledge.bundle.user_answers or {}
        world.note(f"model {answers['question_permission']}")
        yield TextDeltaEvent(text="Up. ")
        world.effect("climb")
        yield TextDeltaEvent(text="There.")

    class Library:
        async def execute_acquisition_plans(self, *_: object) -> list[str]:
            world.note("found a map")
            return ["map"]

    produce = AgentTaskProducer(
        IterableBackend("played", climb),
        task_of=lambda _: TASK,
        sessions=DurableSessionStore(store),
        knowledge=Library(),
        readiness=ReadinessPolicy(answers_event="answers"),
    )
    await answer(ChatTurnEngine(store, produce=produce, lease_ms=LEASE_MS), world)


async def main(arguments: argparse.Namespace) -> int:
    world = World(arguments.notes, arguments.die_at)
    work = {
        "run": in_a_run,
        "turn": in_a_turn,
        "task": as_a_task,
        "stream": as_a_streamed_task,
        "ask": as_a_task_that_asks,
    }[arguments.mode]
    store = await open_store(arguments.url)
    try:
        await work(store, world, arguments)
    except UnfinishedStepError:
        return UNFINISHED
    finally:
        await store.close()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("notes")
    parser.add_argument("mode", choices=["run", "turn", "task", "stream", "ask"])
    parser.add_argument("--effect", default="idempotent")
    parser.add_argument("--on-unfinished", default="fail")
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--approve", action="store_true")
    raise SystemExit(asyncio.run(main(parser.parse_args())))
