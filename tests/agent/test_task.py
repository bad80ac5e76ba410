"""A task is gated by what it knows, done by its adapter, and told to the end, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from perdure.agent.adapter import AgentTaskContext
from perdure.agent.cancel import CancelSignal
from perdure.agent.evals import ControlEvalResult, objective_eval
from perdure.agent.events import QuestionsEnd
from perdure.agent.hooks import ControlOptions
from perdure.agent.knowledge import KnowledgeReadinessReport, KnowledgeRequirement
from perdure.agent.preflight import ReadinessPolicy
from perdure.agent.readiness import score_knowledge_readiness
from perdure.agent.steps import Continue, ControlDecision, Stop, StopDecision
from perdure.agent.task import run_agent_task
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.core.secret import Secret
from perdure.core.wire import to_wire
from perdure.errors import UsageError, ValidationError
from perdure.store.memory import MemoryStore
from tests.agent.robots import Climber, Librarian, Sink

TASK = AgentTaskSpec("climb", "Climb the ladder", domain="ladders")
COLOUR = KnowledgeRequirement("colour", "the colour of the ladder", fallback_policy="block")
KEY = KnowledgeRequirement("key", "the key of the shed", sensitivity="secret")
CAVEAT = KnowledgeRequirement(
    "wind", "the wind", acquisition_mode="search_web", fallback_policy="continue_with_caveat"
)


def needing(*requirements: KnowledgeRequirement) -> AgentTaskSpec:
    return TASK._replace(required_knowledge=requirements)


async def test_6_3_r1_a_ready_task_is_done_and_told_in_order() -> None:
    sink, climber = Sink(), Climber(aim=2)
    result = await run_agent_task(TASK, climber, on_event=sink)
    assert (result.status, result.control.passed, climber.rung) == ("completed", True, 2)
    assert sink.types == [
        "task_start",
        "readiness_start",
        "readiness_end",
        "control_start",
        "control_step",
        "control_step",
        "control_end",
        "task_end",
    ]
    assert result.knowledge.bundle.metadata == {"domain": "ladders"}


async def test_6_3_r4_the_readiness_eval_comes_first_and_the_context_has_the_task() -> None:
    climber = Climber(aim=2)
    await run_agent_task(TASK, climber)
    last = climber.contexts[-1]
    assert (last.task, last.knowledge.readiness_score) == (TASK, 1)
    assert [each.id for each in last.history[0].evals_before] == ["knowledge-ready", "high"]


async def test_4_7_r1_r2_what_is_asked_and_acquired_opens_the_gate() -> None:
    proven = KnowledgeRequirement(
        "proof",
        "a proof",
        acquisition_mode="search_web",
        fallback_policy="block",
        evidence_ids=("e1",),
    )
    sink, librarian = Sink(), Librarian("red", ["e1", "e1"])
    result = await run_agent_task(
        needing(COLOUR, proven), Climber(), knowledge=librarian, on_event=sink
    )
    assert result.status == "completed"
    assert sink.types[:10] == [
        "task_start",
        "readiness_start",
        "readiness_end",
        "questions_start",
        "questions_end",
        "acquisition_start",
        "acquisition_end",
        "readiness_start",
        "readiness_end",
        "control_start",
    ]
    assert result.user_answers == {"question_colour": "red"}
    assert result.acquired_evidence_ids == ("e1",)
    assert [question.id for question in result.questions] == ["question_colour"]
    assert result.open_questions == ()
    assert result.knowledge.bundle.user_answers == {"question_colour": "red"}


async def test_6_3_r5_r6_a_blocked_task_neither_decides_nor_acts() -> None:
    climber = Climber()
    result = await run_agent_task(needing(COLOUR), climber)
    assert result.status == "blocked"
    assert (result.control.blocked, result.control.stop_cause) == (True, "knowledge")
    assert result.control.failure_class == "knowledge_readiness_blocked"
    assert result.control.reason.startswith("knowledge readiness blocked: ")
    assert result.control.score == 0
    assert (climber.executed["decide"], climber.executed["act"]) == (0, 0)
    assert climber.executed["observe"] == 1


class Stubborn(Climber):
    """Says that it passes, whatever it knows."""

    def should_stop(self, context: AgentTaskContext) -> StopDecision:
        return StopDecision(stop=True, passed=True, reason="I say so")


async def test_bb_5_a_blocked_task_cannot_be_passed_by_its_stop_policy() -> None:
    result = await run_agent_task(needing(COLOUR), Stubborn())
    assert (result.status, result.control.passed) == ("blocked", False)
    assert (await run_agent_task(TASK, Stubborn())).status == "completed"


class Fetcher(Climber):
    """While it is blocked it fetches the evidence, and is then let in."""

    def on_knowledge_blocked(
        self, context: AgentTaskContext, questions: Sequence[Any], plans: Sequence[Any]
    ) -> ControlDecision:
        self.plans = list(plans)
        return Continue({"climb": 0, "fetch": True})

    def get_evidence_ids(
        self, action: JsonValue, result: JsonValue, context: AgentTaskContext
    ) -> list[str]:
        return ["found"] if "fetch" in action else []


async def test_bb_7_evidence_that_an_action_finds_opens_the_gate() -> None:
    needed = KnowledgeRequirement(
        "map",
        "a map",
        acquisition_mode="inspect_repo",
        fallback_policy="block",
        evidence_ids=("found",),
    )
    sink, fetcher = Sink(), Fetcher(aim=1)
    result = await run_agent_task(needing(needed), fetcher, on_event=sink)
    assert result.status == "completed"
    assert [plan.id for plan in fetcher.plans] == ["acquire_inspect_repo"]
    assert result.acquired_evidence_ids == ("found",)
    assert fetcher.executed["decide"] == 1
    assert sink.types.count("readiness_end") == 2


class Blind:
    """Lacks two of the four methods that an adapter has."""

    observe = Climber.observe
    act = Climber.act


@pytest.mark.parametrize("durable", [False, True])
async def test_3_2_who_is_no_adapter_is_refused_before_anything_is_recorded(durable: bool) -> None:
    store = MemoryStore()
    where = (store, "climb:1") if durable else None
    with pytest.raises(ValidationError, match=r"'Blind' is no AgentAdapter.*validate, decide"):
        await run_agent_task(TASK, cast("Any", Blind()), durable=where)
    assert await store.read_run("climb:1") is None


class Polite(Climber):
    def on_knowledge_blocked(
        self, context: AgentTaskContext, questions: Sequence[Any], plans: Sequence[Any]
    ) -> ControlDecision:
        return Stop("Please tell me the colour first.", passed=True)


async def test_bb_5_a_blocked_task_is_blocked_in_whatever_words() -> None:
    result = await run_agent_task(needing(COLOUR), Polite())
    assert (result.status, result.control.passed) == ("blocked", False)
    assert result.control.reason == "Please tell me the colour first."


@pytest.mark.parametrize(("on_caveat", "status"), [("continue", "completed"), ("block", "blocked")])
async def test_6_3_r7_bb_5_what_a_caveat_means_is_up_to_the_policy(
    on_caveat: Any, status: str
) -> None:
    policy = ReadinessPolicy(on_caveat=on_caveat)
    result = await run_agent_task(needing(CAVEAT), Climber(), readiness=policy)
    assert (result.status, result.decision.status) == (status, "caveat")


class Idle(Climber):
    """Has nothing to validate."""

    def validate(self, context: AgentTaskContext) -> list[ControlEvalResult]:
        return []


async def test_6_3_r8_bb_6_a_task_without_evals_of_its_own_does_not_pass_by_itself() -> None:
    idle = Idle(aim=2)
    result = await run_agent_task(TASK, idle)
    assert (result.status, idle.executed["act"]) == ("completed", 2)


async def test_bb_3_credentials_are_secrets_from_their_entry_on() -> None:
    sink = Sink()
    librarian = Librarian("open sesame")
    result = await run_agent_task(needing(KEY), Climber(), knowledge=librarian, on_event=sink)
    assert result.user_answers == {"question_key": Secret("open sesame")}
    assert "open sesame" not in repr(sink.events) + repr(result) + str(to_wire(result))
    (answered,) = [event for event in sink.events if isinstance(event, QuestionsEnd)]
    assert answered.user_answers["question_key"] == Secret("open sesame")


class Wrong(Librarian):
    async def answer_questions(self, questions: Any, task: AgentTaskSpec) -> Mapping[str, Any]:
        return {"question_other": "x"}


class Broken(Librarian):
    def build_readiness(self, task: AgentTaskSpec) -> KnowledgeReadinessReport:
        raise ConnectionError("the library is closed")


@pytest.mark.parametrize(
    ("provider", "error"), [(Wrong(), UsageError), (Broken(), ConnectionError)]
)
async def test_4_7_r5_bb_4_a_failing_provider_is_raised_after_the_last_event(
    provider: Librarian, error: type[Exception]
) -> None:
    sink = Sink()
    with pytest.raises(error):
        await run_agent_task(needing(COLOUR), Climber(), knowledge=provider, on_event=sink)
    assert sink.types[-1] == "task_end"
    assert sink.types.count("task_end") == 1
    assert to_wire(sink.events[-1])["status"] == "failed"


class Refreshing(Librarian):
    """Builds the reports itself."""

    def build_readiness(self, task: AgentTaskSpec) -> KnowledgeReadinessReport:
        return score_knowledge_readiness(task.id, [COLOUR])

    async def refresh_readiness(
        self,
        task: AgentTaskSpec,
        report: KnowledgeReadinessReport,
        user_answers: Mapping[str, Any],
        acquired_evidence_ids: Sequence[str],
    ) -> KnowledgeReadinessReport:
        self.executed["refresh"] += 1
        return score_knowledge_readiness(task.id, [])


async def test_4_7_r3_a_provider_may_build_and_refresh_the_report_itself() -> None:
    provider = Refreshing()
    result = await run_agent_task(TASK, Climber(), knowledge=provider)
    assert (result.status, provider.executed["refresh"]) == ("completed", 1)


async def test_6_3_r2_bb_4_a_broken_sink_does_not_disturb_the_task() -> None:
    sink = Sink("task_start", "control_step")
    result = await run_agent_task(TASK, Climber(aim=1), on_event=sink)
    assert result.status == "completed"
    assert result.sink_errors == (
        "task_start: the pipe is closed",
        "control_step: the pipe is closed",
    )


async def test_6_3_r9_a_task_that_is_cancelled_before_it_begins_is_aborted() -> None:
    signal, sink, climber = CancelSignal(), Sink(), Climber()
    signal.cancel("never mind")
    result = await run_agent_task(TASK, climber, signal=signal, on_event=sink)
    assert (result.status, result.control.stop_cause) == ("aborted", "cancelled")
    assert sink.types == ["task_start", "readiness_start", "task_end"]
    assert not climber.executed


class Sleeper(Climber):
    async def act(self, action: JsonValue, context: AgentTaskContext) -> JsonValue:
        await asyncio.Event().wait()


async def test_bb_5_a_task_that_runs_out_of_time_has_failed() -> None:
    """Only who cancels it aborts it."""
    task = TASK._replace(budget={"maxWallMs": 20})
    result = await run_agent_task(task, Sleeper())
    assert (result.status, result.control.stop_cause) == ("failed", "wall_time")
    assert result.control.failure_class == "timeout"


class Recording(Climber):
    def project_run_records(self, control: Any, task: AgentTaskSpec) -> list[JsonValue]:
        return [{"run_id": "r1"}, {"run_id": "r2", "scenario_id": "own"}]


async def test_6_3_r12_records_without_a_scenario_get_that_of_the_run() -> None:
    options = ControlOptions(scenario_id="s")
    result = await run_agent_task(TASK, Recording(), control=options)
    assert [record["scenario_id"] for record in result.run_records] == ["s", "own"]


@pytest.mark.parametrize(
    ("task", "culprit"),
    [
        (AgentTaskSpec("", "x"), "task.id"),
        (AgentTaskSpec("x", ""), "task.intent"),
        (TASK._replace(required_knowledge=[7]), "required_knowledge"),
        (TASK._replace(required_knowledge=[COLOUR, COLOUR]), "twice"),
        (TASK._replace(budget={"steps": 3}), "steps"),
    ],
)
async def test_6_3_r11_a_bad_task_is_refused_before_anything_is_told(
    task: AgentTaskSpec, culprit: str
) -> None:
    sink = Sink()
    with pytest.raises(UsageError, match=culprit):
        await run_agent_task(task, Climber(), on_event=sink)
    assert not sink.events


async def test_3_1_requirements_may_be_given_in_wire_form() -> None:
    wire = {"id": "colour", "description": "the colour", "fallbackPolicy": "block"}
    task = TASK._replace(required_knowledge=[wire])
    assert (await run_agent_task(task, Climber())).status == "blocked"


async def test_bb_8_a_loop_that_gets_nowhere_is_told_by_its_options() -> None:
    def harmful(context: AgentTaskContext) -> list[ControlEvalResult]:
        return [objective_eval("low", False, severity="error")]

    climber = Climber(aim=99)
    climber.validate = harmful  # type: ignore[method-assign]  # a climber that sees no height
    result = await run_agent_task(TASK, climber)
    assert (result.status, result.control.stop_cause) == ("failed", "steps")


class Forgetful(Climber):
    """Acts, and then cannot tell what it has found; says so, or gives what is no list of ids."""

    def __init__(self, found: object) -> None:
        super().__init__(aim=1)
        self._found = found

    def get_evidence_ids(self, action: Any, result: Any, context: AgentTaskContext) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


@pytest.mark.parametrize(
    ("found", "told"), [(OSError("no disk"), "no disk"), ("e1", "list of ids"), ([7], "7")]
)
async def test_bb_7_an_action_whose_evidence_cannot_be_told_stays_done(
    found: object, told: str
) -> None:
    sink, climber = Sink(), Forgetful(found)
    result = await run_agent_task(TASK, climber, on_event=sink)
    assert (result.status, climber.executed["act"]) == ("completed", 1)
    assert [step.action_outcome.ok for step in result.control.steps if step.action_outcome] == [
        True
    ]
    (error,) = result.control.runtime_errors
    assert (error.phase, error.step_index) == ("act", 0)
    assert told in error.message
    assert sink.types[-3:] == ["control_step", "control_end", "task_end"]


async def test_a_task_that_is_cancelled_while_it_looks_again_keeps_its_step() -> None:
    signal = CancelSignal()

    class Endless(Librarian):
        async def refresh_readiness(self, *_: Any) -> KnowledgeReadinessReport:
            signal.cancel("never mind")
            await asyncio.Event().wait()
            raise AssertionError("it was not cut off")

    sink, climber = Sink(), Forgetful(["e1"])
    result = await run_agent_task(TASK, climber, knowledge=Endless(), signal=signal, on_event=sink)
    assert (result.status, result.control.stop_cause) == ("aborted", "cancelled")
    assert len(result.control.steps) == 1
    assert sink.types[-2:] == ["control_end", "task_end"]
