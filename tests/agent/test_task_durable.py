"""A durable task goes on after a crash and makes no recorded call a second time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.agent.adapter import AgentTaskContext
from perdure.agent.cancel import CancelSignal
from perdure.agent.hooks import ControlOptions
from perdure.agent.knowledge import KnowledgeRequirement
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.readiness import score_knowledge_readiness
from perdure.agent.steps import ControlDecision
from perdure.agent.task import AgentTaskRunResult, run_agent_task
from perdure.backends.protocol import Prompt
from perdure.backends.scripted import ScriptedBackend
from perdure.core import frames
from perdure.core.records import AgentTaskSpec, JsonValue, Retry, RunManifest, RunRecord
from perdure.core.secret import Secret
from perdure.core.wire import to_wire
from perdure.durable.context import DurableContext
from perdure.durable.runner import emit_event, run_durable
from perdure.durable.steps import current_step
from perdure.durable.worker import Worker
from perdure.store.memory import MemoryStore
from perdure.store.memorydata import MemoryData
from perdure.store.protocol import RunStore
from perdure.testing.replaying import check_replay
from perdure.testing.samples import manifest
from tests.agent.robots import Climber, Librarian, Sink

COLOUR = KnowledgeRequirement("colour", "the colour of the ladder", fallback_policy="block")
KEY = KnowledgeRequirement("key", "the key of the shed", sensitivity="secret")
TASK = AgentTaskSpec("climb", "Climb the ladder", required_knowledge=[COLOUR, KEY])


@pytest.fixture
def store() -> RunStore:
    return MemoryStore(MemoryData())


def shape(result: AgentTaskRunResult) -> tuple[Any, ...]:
    control = result.control
    return (
        result.status,
        control.passed,
        control.score,
        control.run_id,
        [(step.index, step.decision, step.after_state) for step in control.steps],
        result.user_answers,
        result.knowledge.bundle.user_answers,
    )


async def until_it_waits(store: RunStore) -> RunRecord:
    while True:
        run = await store.read_run("run")
        if run is not None and run.state == "waiting":
            return run
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("needed", [KEY, to_wire(KEY)], ids=["record", "wire"])
async def test_a_worker_takes_a_task_with_what_it_must_know(
    store: RunStore, needed: JsonValue
) -> None:
    task = AgentTaskSpec("climb", "Climb the ladder", required_knowledge=[needed])
    asking = ReadinessPolicy(answers_event="answers")

    async def climb(context: DurableContext) -> str:
        result = await run_agent_task(task, Climber(), readiness=asking, durable=context)
        return result.status

    worker = Worker(store, tasks={"climb": climb})
    await worker.submit("climb", run_id="run", manifest=RunManifest("ladders", task))
    working = asyncio.create_task(worker.run())
    waiting = await until_it_waits(store)
    assert waiting.manifest is not None
    assert waiting.manifest.task.required_knowledge == (to_wire(KEY),)
    await emit_event(store, "run", "answers", {"question_key": Secret("k").recorded()})
    while (run := await store.read_run("run")) is None or run.state != "completed":
        await store.wait_for_change("run", timeout_ms=1_000)
    assert run.outcome is not None
    assert run.outcome.passed
    assert run.outcome.notes == "completed: every check passed or is harmless"
    await worker.drain()
    await working


class Adviser(Climber):
    """Asks a model before each decision."""

    async def decide(self, context: AgentTaskContext) -> ControlDecision:
        said = frames.usage(provider="p", model="m", tokens_in=7, tokens_out=3)
        async for _ in ScriptedBackend([said, frames.upstream_end("stop")]).stream(Prompt([])):
            pass
        return await super().decide(context)


@pytest.mark.parametrize(
    ("adapter", "kind", "calls"),
    [(Adviser, "llm", ["settled"]), (Climber, "llm", ["unknown"]), (Climber, "logic", [])],
)
async def test_the_model_of_a_decision_is_in_the_ledger_and_no_other(
    store: RunStore, adapter: type[Climber], kind: Any, calls: list[str]
) -> None:
    options = ControlOptions(decide_kind=kind)
    task = AgentTaskSpec("climb", "Climb the ladder")
    await run_agent_task(task, adapter(aim=1), control=options, durable=(store, "run"))
    rows = (await store.read_details("run")).usage
    assert [row.state for row in rows] == calls
    assert [row.tokens_in for row in rows if row.state == "settled"] == [7] * calls.count("settled")


async def test_a_replay_of_a_done_task_calls_nobody(store: RunStore) -> None:
    first, librarian = Climber(), Librarian("open sesame")
    done = await run_agent_task(TASK, first, knowledge=librarian, durable=(store, "run"))
    second, other, sink = Climber(), Librarian("something else"), Sink()
    again = await run_agent_task(
        TASK, second, knowledge=other, on_event=sink, durable=(store, "run")
    )
    assert shape(again) == shape(done)
    assert not second.executed
    assert not other.executed
    assert sink.types[0] == "task_start"
    assert sink.types[-1] == "task_end"
    assert again.user_answers == {
        "question_colour": "open sesame",
        "question_key": Secret("open sesame"),
    }
    assert again.control.wall_ms == done.control.wall_ms


async def test_the_steps_say_what_was_called(store: RunStore) -> None:
    await run_agent_task(TASK, Climber(aim=1), knowledge=Librarian("x"), durable=(store, "run"))
    steps = [(step.intent, step.kind) for step in await store.read_steps("run")]
    assert steps == [
        ("readiness", "readiness"),
        ("questions", "logic"),
        ("acquisition", "tool"),
        ("observe:0", "logic"),
        ("validate:0", "logic"),
        ("decide:0", "llm"),
        ("act:0", "tool"),
        ("observe:1", "logic"),
        ("validate:1", "logic"),
    ]


async def test_answers_may_come_from_outside_by_an_event(store: RunStore) -> None:
    policy = ReadinessPolicy(answers_event="answers")
    sink = Sink()
    work = asyncio.ensure_future(
        run_agent_task(TASK, Climber(), on_event=sink, readiness=policy, durable=(store, "run"))
    )
    assert (await until_it_waits(store)).lease_holder_id is None
    answers = {"question_colour": "red", "question_key": "sesame", "question_stray": "?"}
    await emit_event(store, "run", "answers", answers)
    result = await work
    assert result.status == "completed"
    assert result.user_answers == {"question_colour": "red", "question_key": Secret("sesame")}
    assert "questions_end" in sink.types


ANSWERED = {"question_colour": "red", "question_key": Secret("sesame")}


@pytest.mark.parametrize(("key", "warns"), [(Secret("sesame").recorded(), False), ("sesame", True)])
async def test_an_event_gives_credentials_in_either_form_and_plain_ones_are_told(
    store: RunStore, caplog: pytest.LogCaptureFixture, key: JsonValue, warns: bool
) -> None:
    policy = ReadinessPolicy(answers_event="answers")
    work = asyncio.ensure_future(
        run_agent_task(TASK, Climber(), readiness=policy, durable=(store, "run"))
    )
    await until_it_waits(store)
    await emit_event(store, "run", "answers", {"question_colour": "red", "question_key": key})
    assert (await work).user_answers == ANSWERED
    assert ("plain credentials (['question_key']" in caplog.text) is warns
    assert "sesame" not in caplog.text


@pytest.mark.parametrize("key", [Secret("sesame").recorded(), "sesame"])
async def test_a_replay_reads_credentials_as_records_have_them_now_and_had_them_before(
    store: RunStore, key: JsonValue
) -> None:
    async def record(context: DurableContext) -> None:
        readiness = to_wire(score_knowledge_readiness("climb", [COLOUR, KEY], now_ms=0))
        answers = {"question_colour": "red", "question_key": key}
        called = {"atMs": 0, "durationMs": 0.0, "cut": None}
        await context.step("readiness", lambda: {**called, "value": readiness}, kind="readiness")
        await context.step("questions", lambda: {**called, "value": answers})
        raise ConnectionError

    async def go_on(context: DurableContext) -> AgentTaskRunResult:
        return await run_agent_task(TASK, Climber(), knowledge=librarian, durable=context)

    librarian = Librarian("asked again")
    whole: Any = {"run_id": "run", "manifest": manifest()}
    with pytest.raises(ConnectionError):
        await run_durable(store, task=record, **whole)
    assert (await run_durable(store, task=go_on, **whole)).result.user_answers == ANSWERED
    assert not librarian.executed["answer"]


async def test_a_task_whose_questions_nobody_answers_in_time_is_blocked(store: RunStore) -> None:
    policy = ReadinessPolicy(answers_event="answers", answers_timeout_ms=5)
    result = await run_agent_task(TASK, Climber(), readiness=policy, durable=(store, "run"))
    assert (result.status, result.user_answers) == ("blocked", {})
    run = await store.read_run("run")
    assert run is not None
    assert run.outcome is not None
    assert (run.state, run.outcome.passed) == ("completed", False)
    assert (run.outcome.notes or "").startswith("blocked: ")


async def test_a_cancelled_task_stays_cancelled(store: RunStore) -> None:
    signal = CancelSignal()

    class Bored(Climber):
        async def act(self, action: JsonValue, context: AgentTaskContext) -> JsonValue:
            signal.cancel("bored")
            return await super().act(action, context)

    plain = TASK._replace(required_knowledge=())
    done = await run_agent_task(plain, Bored(aim=5), signal=signal, durable=(store, "run"))
    again = await run_agent_task(plain, Climber(aim=5), durable=(store, "run"))
    assert done.status == "aborted"
    assert shape(again) == shape(done)


async def test_a_time_limit_that_cut_a_call_holds_in_a_replay(store: RunStore) -> None:
    class Slow(Climber):
        async def act(self, action: JsonValue, context: AgentTaskContext) -> JsonValue:
            await asyncio.Event().wait()

    task = TASK._replace(required_knowledge=(), budget={"max_wall_ms": 30})
    done = await run_agent_task(task, Slow(), durable=(store, "run"))
    again = await run_agent_task(task, Climber(), durable=(store, "run"))
    assert done.control.stop_cause == "wall_time"
    assert shape(again) == shape(done)


async def test_a_failed_call_fails_again_in_a_replay_without_being_made(store: RunStore) -> None:
    plain = TASK._replace(required_knowledge=())
    broken = Climber(failing={"decide": "no line"})
    done = await run_agent_task(plain, broken, durable=(store, "run"))
    again = await run_agent_task(plain, Climber(), durable=(store, "run"))
    assert done.status == "failed"
    assert [error.message for error in done.control.runtime_errors] == ["no line"]
    assert again.control.runtime_errors == done.control.runtime_errors


async def test_a_decision_is_tried_again_as_often_as_it_may(store: RunStore) -> None:
    class Shaky(Climber):
        async def decide(self, context: AgentTaskContext) -> ControlDecision:
            self.executed["tries"] += 1
            if self.executed["tries"] == 1:
                raise ConnectionError("busy")
            return await super().decide(context)

    options = ControlOptions(decide_retry=Retry(tries_max=2, backoff_ms=1))
    shaky = Shaky(aim=1)
    plain = TASK._replace(required_knowledge=())
    result = await run_agent_task(plain, shaky, control=options, durable=(store, "run"))
    assert (result.status, result.control.runtime_errors) == ("completed", ())


async def test_an_action_knows_its_idempotency_key(store: RunStore) -> None:
    keys: list[str] = []

    class Keyed(Climber):
        async def act(self, action: JsonValue, context: AgentTaskContext) -> JsonValue:
            call = current_step()
            assert call is not None
            keys.append(call.idempotency_key)
            return await super().act(action, context)

    plain = TASK._replace(required_knowledge=())
    await run_agent_task(plain, Keyed(aim=2), durable=(store, "run"))
    assert len(set(keys)) == 2


async def test_changed_code_is_checked_against_a_recorded_task(store: RunStore) -> None:
    plain = TASK._replace(required_knowledge=())
    await run_agent_task(plain, Climber(aim=1), durable=(store, "run"))

    async def task(context: Any) -> str:
        return (await run_agent_task(plain, Climber(aim=1), durable=context)).status

    assert await check_replay(store, "run", task) == "completed"


class Fickle(Climber):
    """Finds other evidence in each attempt; once it has acted it may hang when it looks again."""

    def __init__(self, found: str, *, hangs: bool = False) -> None:
        super().__init__(aim=1)
        self.is_hanging = asyncio.Event()
        self._found = found
        self._hangs = hangs

    def get_evidence_ids(self, action: Any, result: Any, context: AgentTaskContext) -> list[str]:
        self.executed["evidence"] += 1
        return [self._found]

    async def observe(self, context: AgentTaskContext) -> JsonValue:
        if self._hangs and self.executed["act"]:
            self.is_hanging.set()
            await asyncio.Event().wait()
        return await super().observe(context)


async def test_what_an_action_has_found_is_asked_once_across_a_crash(store: RunStore) -> None:
    plain = TASK._replace(required_knowledge=())
    first = Fickle("first", hangs=True)
    attempt = asyncio.ensure_future(run_agent_task(plain, first, durable=(store, "run")))
    await first.is_hanging.wait()
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    second = Fickle("second")
    second.rung = 1
    result = await run_agent_task(plain, second, durable=(store, "run"))
    assert (result.status, result.acquired_evidence_ids) == ("completed", ("first",))
    assert (second.executed["act"], second.executed["evidence"]) == (0, 0)
    assert "evidence:0" in [step.intent for step in await store.read_steps("run")]


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ({"question_colour": 7, "question_stray": "canary"}, "question_colour, question_stray"),
        (["canary"], "but a list"),
        (None, "but a NoneType"),
    ],
)
async def test_an_event_that_answers_nothing_is_told_in_the_log_by_its_keys(
    store: RunStore, caplog: pytest.LogCaptureFixture, payload: JsonValue, told: str
) -> None:
    policy = ReadinessPolicy(answers_event="answers")
    task = TASK._replace(required_knowledge=[COLOUR])
    sink = Sink()

    async def ask() -> AgentTaskRunResult:
        return await run_agent_task(
            task, Climber(), on_event=sink, readiness=policy, durable=(store, "run")
        )

    work = asyncio.ensure_future(ask())
    await until_it_waits(store)
    await emit_event(store, "run", "answers", payload)
    result = await work
    assert (result.status, result.user_answers) == ("blocked", {})
    assert told in caplog.text
    assert "canary" not in caplog.text
