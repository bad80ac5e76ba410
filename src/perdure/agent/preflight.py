"""The preflight: find out whether a task is ready, ask and acquire what is missing, look again."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, ItemsView, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from perdure.agent.adapter import AnswerQuestions, KnowledgeHooks, resolve
from perdure.agent.calls import Calls
from perdure.agent.evals import ControlEvalResult, Emit, blocking_knowledge_eval
from perdure.agent.events import (
    AcquisitionEnd,
    AcquisitionStart,
    AgentRuntimeEvent,
    QuestionsEnd,
    QuestionsStart,
    ReadinessEnd,
    ReadinessStart,
)
from perdure.agent.gaps import (
    acquisition_plans_for_knowledge_gaps,
    refreshed_report,
    user_questions_for_knowledge_gaps,
    wrap_answers,
)
from perdure.agent.knowledge import (
    Answer,
    DataAcquisitionPlan,
    KnowledgeReadinessDecision,
    KnowledgeReadinessReport,
    UserQuestion,
)
from perdure.agent.readiness import (
    MINIMUM_SCORE,
    Known,
    check_minimum_score,
    decide_knowledge_readiness,
    score_knowledge_readiness,
    unique,
)
from perdure.agent.spec import requirements_of
from perdure.agent.words import checked_ids
from perdure.core.effects import Clock, system_clock
from perdure.core.records import AgentTaskSpec, JsonValue
from perdure.core.secret import Secret, secret_of
from perdure.core.wire import from_wire
from perdure.errors import AwaitEventTimeoutError, UsageError, ValidationError
from perdure.observe.credentials import mask_text

logger = logging.getLogger("perdure.agent")

Events = AsyncGenerator[AgentRuntimeEvent, None]
OnCaveat = Literal["continue", "block"]


@dataclass(frozen=True, slots=True)
class ReadinessPolicy:
    """What readiness a task needs, and how its questions are answered.

    `on_caveat`: whether a score below the minimum lets the task go on, or blocks it. With
    `answers_event`, a durable task (of a run, or of an AgentTaskProducer in a turn) whose provider
    does not answer questions waits for the event of this name (`emit_event(store, run_id, name,
    {question id: answer})`), for as long as `answers_timeout_ms` says (None: for ever), without
    holding its lease. What such an event has beside texts by the ids of the questions is left
    out, and a warning in the log names the keys.
    A credential is best sent as `Secret(text).recorded()`, which no page shows.
    `clock` says what knowledge is stale, and dates the events, sessions and steps of the task.
    """

    minimum_score: float = MINIMUM_SCORE
    on_caveat: OnCaveat = "continue"
    answers_event: str | None = None
    answers_timeout_ms: int | None = None
    clock: Clock = system_clock

    def __post_init__(self) -> None:
        check_minimum_score(self.minimum_score)
        if self.on_caveat not in get_args(OnCaveat):
            choices = " or ".join(map(repr, get_args(OnCaveat)))
            raise ValidationError(f"on_caveat must be {choices}, not {self.on_caveat!r:.40}")
        name, limit_ms = cast(
            "tuple[object, object]", (self.answers_event, self.answers_timeout_ms)
        )
        if name is not None and not (isinstance(name, str) and name):
            raise ValidationError(f"answers_event must be the name of an event, not {name!r:.40}")
        if limit_ms is not None and (type(limit_ms) is not int or limit_ms < 0):
            raise ValidationError(
                f"answers_timeout_ms must be a number of milliseconds from 0 on, or None for no "
                f"limit, not {limit_ms!r:.40}"
            )


class Preflight:
    """The readiness of one task: the report in force, and all that was asked and acquired."""

    def __init__(
        self, task: AgentTaskSpec, hooks: KnowledgeHooks, policy: ReadinessPolicy, calls: Calls
    ) -> None:
        self.questions: tuple[UserQuestion, ...] = ()
        self.acquisition_plans: tuple[DataAcquisitionPlan, ...] = ()
        self.user_answers: dict[str, Answer] = {}
        self.acquired_evidence_ids: tuple[str, ...] = ()
        self._task = task
        self._requirements = requirements_of(task)
        self._hooks = hooks
        self._policy = policy
        self.calls = calls
        self._report: KnowledgeReadinessReport | None = None
        self._refreshes = 0
        waits_in_vain = policy.answers_event is not None and calls.recording is None
        if waits_in_vain and hooks.answer_questions is None:
            raise UsageError(
                f"only a durable task can wait for the event {policy.answers_event!r}: give "
                "run_agent_task durable=(store, run_id), have an AgentTaskProducer answer a turn "
                "(outside of its steps), leave answers_event out, or let the provider "
                "answer_questions"
            )

    @property
    def report(self) -> KnowledgeReadinessReport:
        """The report in force."""
        assert self._report is not None
        return self._report

    @property
    def decision(self) -> KnowledgeReadinessDecision:
        """What the report in force says by the policy's minimum."""
        return decide_knowledge_readiness(self.report, minimum_score=self._policy.minimum_score)

    @property
    def is_blocked(self) -> bool:
        """Whether the task may not go on."""
        status = self.decision.status
        return status == "blocked" or (status == "caveat" and self._policy.on_caveat == "block")

    def readiness_eval(self, emit: Emit | None = None) -> ControlEvalResult:
        """Return the report in force as an eval, of which `emit` is told."""
        minimum = self._policy.minimum_score
        return blocking_knowledge_eval(self.report, minimum_score=minimum, emit=emit)

    @property
    def open_questions(self) -> tuple[UserQuestion, ...]:
        """The questions that the report in force leaves open."""
        return user_questions_for_knowledge_gaps(self.report.blocking_missing_requirements)

    @property
    def open_plans(self) -> tuple[DataAcquisitionPlan, ...]:
        """The plans that the report in force leaves to be carried out."""
        gaps = (*self.report.blocking_missing_requirements, *self.report.non_blocking_gaps)
        return acquisition_plans_for_knowledge_gaps(gaps)

    async def run(self) -> Events:
        """Yield each event as it happens; the questions of blocking gaps come before plans.

        Raises what the provider raises, and UsageError for an answer that was not asked for.
        """
        task = self._task
        yield ReadinessStart(task)
        self._report = await self._build()
        yield ReadinessEnd(task, self.report, self.decision)
        self.questions, self.acquisition_plans = self.open_questions, self.open_plans
        if self.questions and self._can_ask:
            yield QuestionsStart(task, self.questions)
            self.user_answers = await self._ask()
            yield QuestionsEnd(task, self.questions, self.user_answers)
        if self.acquisition_plans and self._hooks.execute_acquisition_plans is not None:
            yield AcquisitionStart(task, self.acquisition_plans)
            self.acquired_evidence_ids = await self._acquire()
            yield AcquisitionEnd(task, self.acquisition_plans, self.acquired_evidence_ids)
        if self.user_answers or self.acquired_evidence_ids:
            yield ReadinessStart(task)
            await self._refresh(self.acquired_evidence_ids)
            yield ReadinessEnd(task, self.report, self.decision)

    async def add_evidence(self, evidence_ids: Sequence[str]) -> Events:
        """Look again because an action has found evidence; yield the events if it is new."""
        have = set(self.acquired_evidence_ids)
        new = tuple(each for each in unique(evidence_ids) if each not in have)
        if new:
            self.acquired_evidence_ids = (*self.acquired_evidence_ids, *new)
            yield ReadinessStart(self._task)
            await self._refresh(new)
            yield ReadinessEnd(self._task, self.report, self.decision)

    def settle_for_requirements(self) -> None:
        """Without a report, take what the requirements alone say: the task was cut short."""
        if self._report is None:
            self._report = score_knowledge_readiness(
                self._task.id, self._requirements, now_ms=self.calls.now_ms
            )

    async def _build(self) -> KnowledgeReadinessReport:
        build = self._hooks.build_readiness
        known = Known(metadata=self._metadata())

        async def built() -> KnowledgeReadinessReport:
            if build is not None:
                return _checked_report(await resolve(build(self._task)), "build_readiness")
            return score_knowledge_readiness(
                self._task.id, self._requirements, known=known, now_ms=self.calls.clock()
            )

        report: KnowledgeReadinessReport = await self.calls.value(
            "readiness", built, read=read_report, kind="readiness"
        )
        return report

    def _metadata(self) -> dict[str, JsonValue]:
        domain = {} if self._task.domain is None else {"domain": self._task.domain}
        return {**domain, **(self._task.metadata or {})}

    @property
    def _can_ask(self) -> bool:
        waits = self._policy.answers_event is not None and self.calls.recording is not None
        return self._hooks.answer_questions is not None or waits

    async def _ask(self) -> dict[str, Answer]:
        ask = self._hooks.answer_questions
        if ask is None:
            answers = await self._wait_for_answers()
        else:
            answers = await self.calls.value("questions", lambda: self._answers_of(ask))
        # Records of older versions have the credentials as texts: they become a Secret here.
        known = {key: secret_of(each) for key, each in answers.items()}
        return wrap_answers(cast("dict[str, Answer]", known), self.questions)

    async def _answers_of(self, ask: AnswerQuestions) -> dict[str, JsonValue]:
        """Return the answers as they are recorded: a later attempt needs the credentials too."""
        given = _mapping(await resolve(ask(self.questions, self._task)), "answer_questions")
        credentials = self._credentials
        answers: dict[str, JsonValue] = {}
        for key, each in given:
            is_text = key in credentials and isinstance(each, str)
            answer = Secret(each) if is_text else each
            answers[key] = answer.recorded() if isinstance(answer, Secret) else answer
        return answers

    @property
    def _credentials(self) -> set[str]:
        return {each.id for each in self.questions if each.answer_type == "credential"}

    async def _wait_for_answers(self) -> dict[str, JsonValue]:
        """Return the payload of the event, as far as it answers what was asked.

        An event cannot be corrected, so what does not belong to a question is left out.
        """
        recording, name = self.calls.recording, self._policy.answers_event
        assert recording is not None
        assert name is not None
        try:
            payload = await recording.await_event(name, timeout_ms=self._policy.answers_timeout_ms)
        except AwaitEventTimeoutError:
            return {}
        if not isinstance(payload, Mapping):
            kind = type(payload).__name__
            logger.warning("the event %r has no answers by question id, but a %s", name, kind)
            return {}
        given = cast("Mapping[str, JsonValue]", payload)
        asked = {question.id for question in self.questions}
        answers = {
            key: each
            for key, each in given.items()
            if key in asked and isinstance(secret_of(each), str | Secret)
        }
        if strays := sorted(given.keys() - answers.keys()):
            keys = mask_text(", ".join(strays))
            logger.warning("the event %r has what answers no question: %.400s", name, keys)
        plain = sorted(key for key in self._credentials if isinstance(answers.get(key), str))
        if plain:
            advice = "who sees the event sees them: send Secret(text).recorded()"
            logger.warning("the event %r has plain credentials (%s; %s)", name, plain, advice)
        return answers

    async def _acquire(self) -> tuple[str, ...]:
        execute = self._hooks.execute_acquisition_plans
        assert execute is not None
        found = await self.calls.value(
            "acquisition",
            lambda: execute(self.acquisition_plans, self._task),
            kind="tool",
            # What an interrupted one has found is acquired again, in a turn as in a run.
            effect="idempotent",
        )
        return unique(checked_ids(found, "execute_acquisition_plans"))

    async def _refresh(self, evidence_ids: Sequence[str]) -> None:
        refresh, report = self._hooks.refresh_readiness, self.report
        if refresh is None:
            self._report = refreshed_report(
                report,
                questions=self.questions,
                answers=self.user_answers,
                evidence_ids=self.acquired_evidence_ids,
                now_ms=self.calls.now_ms,
            )
            return

        async def refreshed() -> KnowledgeReadinessReport:
            new = await resolve(refresh(self._task, report, self.user_answers, evidence_ids))
            return _checked_report(new, "refresh_readiness")

        self._refreshes += 1
        new = await self.calls.value(
            f"refresh:{self._refreshes}", refreshed, read=read_report, kind="readiness"
        )
        self._report = self._with_secrets(new)

    def _with_secrets(self, report: KnowledgeReadinessReport) -> KnowledgeReadinessReport:
        """Return the report with the credentials that its recorded form does not show."""
        answers = dict(report.bundle.user_answers or {})
        known = {key: self.user_answers[key] for key in answers if key in self.user_answers}
        return replace(report, bundle=replace(report.bundle, user_answers={**answers, **known}))


def read_report(value: JsonValue) -> KnowledgeReadinessReport:
    """Return the report of its wire form. Raises UsageError."""
    return from_wire(KnowledgeReadinessReport, value)


def _checked_report(value: object, name: str) -> KnowledgeReadinessReport:
    if not isinstance(value, KnowledgeReadinessReport):
        raise UsageError(f"{name} must return a KnowledgeReadinessReport, not {value!r:.60}")
    return value


def _mapping(value: object, name: str) -> ItemsView[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} must give a mapping by question id, not {value!r:.40}")
    return cast("Mapping[str, Any]", value).items()
