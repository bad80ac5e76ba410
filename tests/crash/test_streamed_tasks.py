"""A streamed task in a turn comes to the same end wherever its process dies, and asks once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import NamedTuple

from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream_events import ArtifactEvent, LlmCallEvent
from perdure.agent.stream_frames import AgentTaskProducer
from perdure.core.records import AgentTaskSpec
from perdure.durable.runner import emit_event
from perdure.store.protocol import RunStore
from perdure.testing.faults import crash_everywhere
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.identity import run_id_of
from tests.agent.streaming import Played, said, types
from tests.crash.test_turns import Labs, labs
from tests.turn.stage import COMPLETED, RESTARTED, TURN

__all__ = ["labs"]

RUN = run_id_of(TURN)
TASK = AgentTaskSpec(
    "paint",
    "Paint the door",
    required_knowledge=[
        KnowledgeRequirement("colour", "the colour", fallback_policy="block"),
        KnowledgeRequirement(
            "map",
            "a map",
            acquisition_mode="search_web",
            fallback_policy="block",
            evidence_ids=("map-1",),
        ),
    ],
)


class Outcome(NamedTuple):
    """What is recorded of the turn and its session, and what its reader has at the end."""

    state: str
    text: str
    shown: str
    end: str
    told: tuple[str, ...]
    session: str
    last_events: str
    finals: int


class Library:
    """Finds maps; `again` counts those that are recorded and were looked for once more."""

    def __init__(self, recorded: set[str], calls: Counter[str]) -> None:
        self._recorded = recorded
        self._calls = calls

    async def execute_acquisition_plans(self, *_: object) -> list[str]:
        assert "acquisition" not in self._recorded, "a recorded step was executed again"
        self._calls["found"] += 1
        return ["map-1"]


async def answer_when_asked(store: RunStore) -> None:
    """Answer the questions of the turn, as somebody who looks for them does."""
    while True:
        run = await store.read_run(RUN)
        if run is not None and run.state == "waiting":
            await emit_event(store, RUN, "answers", {"question_colour": "blue"})
        await asyncio.sleep(0.002)


def told_since_the_restart(kinds: list[str]) -> tuple[str, ...]:
    begin = len(kinds) - kinds[::-1].index(RESTARTED) if RESTARTED in kinds else 0
    return tuple(kind for kind in kinds[begin:] if kind.startswith("agent.questions"))


def last_use(kinds: str) -> list[str]:
    """Return the events of a session since it was taken up the last time."""
    every = kinds.split()
    return every[max(at for at, kind in enumerate(every) if kind.startswith("session_")) :]


async def test_a_streamed_task_comes_to_the_same_end_wherever_its_process_dies(
    labs: Labs,
) -> None:
    async def scenario(store: RunStore) -> Outcome:
        world, sessions = labs.world, DurableSessionStore(store)
        recorded = {step.intent for step in await store.read_steps(RUN) if step.result is not None}
        backend = Played(
            *said("Pain"), ArtifactEvent(artifact_id="a-1"), *said("ted."), LlmCallEvent(model="m")
        )
        produce = AgentTaskProducer(
            backend,
            task_of=lambda _: TASK,
            sessions=sessions,
            knowledge=Library(recorded, world.calls),
            readiness=ReadinessPolicy(answers_event="answers"),
        )
        engine = ChatTurnEngine(store, produce=produce, recover=False)
        await engine.submit(TURN, "Hi")
        answering = asyncio.ensure_future(answer_when_asked(store))
        try:
            await world.reader.read(engine)
        finally:
            answering.cancel()
        await engine.aclose()
        run = await store.read_run(RUN)
        assert run is not None
        kept = sessions.beside(RUN)
        session, events = await kept.get("chat:s"), await kept.list_events("chat:s")
        assert session is not None
        return Outcome(
            run.state,
            (await store.read_steps(RUN))[0].result["finalText"],
            world.reader.text,
            world.reader.kinds[-1],
            told_since_the_restart(world.reader.kinds),
            session.status,
            types(events[-3:]),
            last_use(types(events)).count("final"),
        )

    report = await crash_everywhere(scenario, labs)
    assert report.outcome == Outcome(
        "completed",
        "Painted.",
        "Painted.",
        COMPLETED,
        ("agent.questions_start", "agent.questions_end"),
        "completed",
        "backend_end task_end final",
        1,
    )
    assert len(report.points) >= 30
