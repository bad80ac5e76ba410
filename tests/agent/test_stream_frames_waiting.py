"""What a streamed task within a turn asks others is asked once, and a human has days to answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from perdure.agent.knowledge import DataAcquisitionPlan, KnowledgeRequirement, UserQuestion
from perdure.agent.model_backend import ModelBackend
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.stored_sessions import DurableSessionStore
from perdure.agent.stream_frames import AgentTaskProducer, TaskTurn
from perdure.core.frames import Frame, text, upstream_end
from perdure.core.records import AgentTaskSpec
from perdure.core.secret import Secret
from perdure.durable.runner import emit_event
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of
from tests.agent.streaming import Played, said
from tests.turn.agents import crash_when, steps_of, was_shown
from tests.turn.conftest import stage
from tests.turn.provider import ProvidedBackend, Provider
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    RESTARTED,
    STOPPED,
    TURN,
    Reader,
    Stage,
    errors_in,
    finish,
    is_in,
    until,
)

__all__ = ["stage"]

RUN = run_id_of(TURN)
COLOUR = KnowledgeRequirement("colour", "the colour", fallback_policy="block")
KEY = KnowledgeRequirement("key", "the key of the door", sensitivity="secret")
MAP = KnowledgeRequirement(
    "map",
    "a map of the kitchen",
    acquisition_mode="search_web",
    fallback_policy="block",
    evidence_ids=("map-1",),
)
WAITING = ReadinessPolicy(answers_event="answers")


async def produce_of(
    stage: Stage,
    backend: Any,
    *needed: KnowledgeRequirement,
    readiness: ReadinessPolicy | None = WAITING,
    **options: Any,
) -> AgentTaskProducer:
    def task_of(turn: TaskTurn) -> AgentTaskSpec:
        return AgentTaskSpec("t-9", "Paint the door", required_knowledge=list(needed))

    sessions = DurableSessionStore(await stage.store())
    return AgentTaskProducer(
        backend, task_of=task_of, sessions=sessions, readiness=readiness, **options
    )


def named(reader: Reader, name: str) -> list[Any]:
    """Return what the reader has of these events: since it was told to forget what was before."""
    kinds = reader.kinds[::-1]
    last = len(kinds) - kinds.index(RESTARTED) if RESTARTED in kinds else 0
    return [event["data"] for event in reader.events[last:] if event["type"] == f"agent.{name}"]


async def waits(stage: Stage, engine: ChatTurnEngine, epoch: int) -> None:
    await engine.submit(TURN, "Hi")

    async def is_asked() -> bool:
        run = await stage.run()
        return (run.state, run.epoch, run.wake_key) == ("waiting", epoch, "answers")

    await until(is_asked)


async def test_a_task_waits_for_answers_however_many_processes_come_and_go(stage: Stage) -> None:
    backend = Played(*said("Pai", "nted."))
    produce = await produce_of(stage, backend, COLOUR)
    first, second, third = [await stage.engine(produce, on_interrupted="fail") for _ in range(3)]
    await waits(stage, first, 1)
    stays = Reader()
    reading = asyncio.ensure_future(stays.read(first))
    await waits(stage, second, 2)
    await waits(stage, third, 3)
    assert (await stage.run()).lease_holder_id is None
    assert backend.inputs == []
    await emit_event(await stage.store(), RUN, "answers", {"question_colour": "blue"})
    await reading
    for reader in (stays, await Reader().read(second)):
        assert (reader.text, reader.kinds[-1]) == ("Painted.", COMPLETED)
        assert RESTARTED not in reader.kinds
        assert len(named(reader, "questions_start")) == 1
        assert named(reader, "readiness_end")[0]["decision"]["status"] == "ready"
    [context] = backend.contexts
    assert context.knowledge.bundle.user_answers == {"question_colour": "blue"}
    assert [*await steps_of(stage)][1:] == ["readiness", "event:answers"]


async def test_an_answer_is_not_waited_for_again_behind_a_crash(stage: Stage) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    produce = await produce_of(stage, Played(*said("half"), hang), COLOUR)
    worker = await stage.worker(produce)
    await waits(stage, worker.engine, 1)
    await emit_event(await stage.store(), RUN, "answers", {"question_colour": "blue"})
    await until(lambda: was_shown(stage, "half"))
    await worker.kill()
    stage.lapse()
    backend = Played(*said("Painted."))
    reader = await finish(await stage.engine(await produce_of(stage, backend, COLOUR)))
    assert (reader.text, reader.kinds[-1]) == ("Painted.", COMPLETED)
    assert backend.contexts[0].knowledge.bundle.user_answers == {"question_colour": "blue"}
    for name in ("questions_start", "questions_end", "session_resumed"):
        assert len(named(reader, name)) == 1


async def test_nobody_who_answers_in_time_blocks_the_task(stage: Stage) -> None:
    backend = Played(*said("no"))
    policy = ReadinessPolicy(answers_event="answers", answers_timeout_ms=200)
    engine = await stage.engine(await produce_of(stage, backend, COLOUR, readiness=policy))
    await waits(stage, engine, 1)
    reader = await Reader().read(engine)
    assert (reader.kinds[-1], named(reader, "final")[0]["status"]) == (COMPLETED, "blocked")
    assert backend.inputs == []


async def test_a_stop_ends_a_task_that_waits_for_answers(stage: Stage) -> None:
    engine = await stage.engine(await produce_of(stage, Played(*said("no")), COLOUR))
    await waits(stage, engine, 1)
    await engine.stop(TURN)
    assert (await Reader().read(engine)).kinds[-1] == STOPPED


async def test_a_credential_among_the_answers_is_a_secret_that_no_reader_sees(
    stage: Stage,
) -> None:
    backend = Played(*said("Open."))
    engine = await stage.engine(await produce_of(stage, backend, KEY))
    await waits(stage, engine, 1)
    answers = {"question_key": Secret("k-7Yb2").recorded()}
    await emit_event(await stage.store(), RUN, "answers", answers)
    reader = await Reader().read(engine)
    assert (reader.text, reader.kinds[-1]) == ("Open.", COMPLETED)
    assert "k-7Yb2" not in str(reader.events)
    known = backend.contexts[0].knowledge.bundle.user_answers
    assert known == {"question_key": Secret("k-7Yb2")}


class Asked:
    """Answers what it is asked, and counts; it knows something else each time."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def answer_questions(
        self, questions: Sequence[UserQuestion], task: AgentTaskSpec
    ) -> dict[str, str]:
        self.calls["answer"] += 1
        return {question.id: f"answer {self.calls['answer']}" for question in questions}

    async def execute_acquisition_plans(
        self, plans: Sequence[DataAcquisitionPlan], task: AgentTaskSpec
    ) -> list[str]:
        self.calls["acquire"] += 1
        return ["map-1"]


async def test_what_a_provider_said_is_not_asked_again_behind_a_crash(stage: Stage) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    provider = Asked()
    produce = await produce_of(
        stage, Played(*said("half"), hang), COLOUR, MAP, readiness=None, knowledge=provider
    )
    await crash_when(stage, produce, lambda: was_shown(stage, "half"))
    backend = Played(*said("Painted."))
    produce = await produce_of(stage, backend, COLOUR, MAP, readiness=None, knowledge=provider)
    reader = await finish(await stage.engine(produce))
    assert (reader.text, reader.kinds[-1]) == ("Painted.", COMPLETED)
    assert provider.calls == {"answer": 1, "acquire": 1}
    assert backend.contexts[0].knowledge.bundle.user_answers == {"question_colour": "answer 1"}
    assert len(named(reader, "acquisition_end")) == 1


async def test_a_provider_that_is_interrupted_is_asked_again(stage: Stage) -> None:
    asked = asyncio.Event()

    class Slow(Asked):
        async def execute_acquisition_plans(
            self, plans: Sequence[DataAcquisitionPlan], task: AgentTaskSpec
        ) -> list[str]:
            found = await super().execute_acquisition_plans(plans, task)
            if not asked.is_set():
                asked.set()
                await asyncio.Event().wait()
            return found

    provider = Slow()
    produce = await produce_of(
        stage, Played(*said("Painted.")), MAP, readiness=None, knowledge=provider
    )
    await crash_when(stage, produce, asked.is_set)
    reader = await finish(await stage.engine(produce))
    assert (reader.text, provider.calls["acquire"]) == ("Painted.", 2)


async def test_a_task_in_the_body_of_a_step_cannot_wait_and_says_so(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = await produce_of(stage, Played(*said("no")), COLOUR)

    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        stream = turn.stream("paint", lambda: tasks(turn), result=len)
        async for frame in stream:
            yield frame

    reader = await finish(await stage.engine(produce))
    assert reader.kinds[-1] == FAILED
    assert "have an AgentTaskProducer answer a turn (outside of its steps)" in caplog.text


# Joining an answer behind what was asked.

ANSWER = [text("Hello"), text(" there"), upstream_end("stop")]


async def lost(stage: Stage, provider: Provider) -> AgentTaskProducer:
    """Let a worker die that has asked for a colour, and shown a frame of the answer."""
    await provider.give(1)
    produce = await produce_of(stage, ModelBackend(ProvidedBackend(provider)), COLOUR)
    worker = await stage.worker(produce)
    await waits(stage, worker.engine, 1)
    await emit_event(await stage.store(), RUN, "answers", {"question_colour": "blue"})
    await until(lambda: was_shown(stage, "Hello"))
    await worker.kill()
    stage.lapse()
    return produce


async def test_an_answer_is_joined_and_nobody_is_asked_again(stage: Stage) -> None:
    provider = Provider(ANSWER)
    produce = await lost(stage, provider)
    await provider.give()
    reader = await finish(await stage.engine(produce, on_interrupted="fail"))
    assert (reader.text, reader.kinds[-1]) == ("Hello there", COMPLETED)
    assert (len(provider.prompts), len(provider.attached)) == (1, 1)
    assert RESTARTED not in reader.kinds


async def test_an_answer_that_is_not_kept_is_asked_for_again_and_nobody_else_is(
    stage: Stage,
) -> None:
    provider = Provider(ANSWER)
    produce = await lost(stage, provider)
    provider.forget()
    await provider.give()
    reader = await finish(await stage.engine(produce))
    assert (reader.text, reader.kinds[-1], errors_in(reader)) == ("Hello there", COMPLETED, [])
    assert (len(provider.prompts), len(provider.attached)) == (2, 1)
    assert [*await steps_of(stage)][1:] == ["readiness", "event:answers"]
    assert await is_in(stage, "completed")
