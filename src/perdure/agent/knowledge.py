"""The records of readiness: what a task needs to know, what is missing, and how to get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from perdure.core.finite import is_fraction
from perdure.core.records import JsonValue
from perdure.core.secret import Secret
from perdure.errors import ValidationError

Category = Literal[
    "user_specific",
    "company_specific",
    "domain_specific",
    "codebase_specific",
    "market_specific",
    "regulatory",
    "tool_api",
    "credential_or_secret",
    "runtime_environment",
    "preference",
    "historical_context",
]
AcquisitionMode = Literal[
    "ask_user",
    "search_web",
    "query_connector",
    "inspect_repo",
    "run_command",
    "infer_low_confidence",
    "not_available",
]
PlanMode = Literal[
    "ask_user",
    "search_web",
    "query_connector",
    "inspect_repo",
    "run_command",
    "build_domain_wiki",
]
Importance = Literal["blocking", "high", "medium", "low"]
Freshness = Literal["static", "monthly", "weekly", "daily", "realtime"]
Sensitivity = Literal["public", "private", "secret"]
FallbackPolicy = Literal["block", "ask", "continue_with_caveat", "use_default"]
Severity = Literal["info", "warning", "error", "critical"]
AnswerType = Literal["free_text", "select_one", "multi_select", "file_upload", "credential", "url"]
RecommendedAction = Literal[
    "run_agent",
    "ask_user",
    "collect_web_data",
    "query_connectors",
    "inspect_repo",
    "build_domain_wiki",
    "continue_with_caveat",
    "abort_or_rescope",
]
ReadinessStatus = Literal["ready", "blocked", "caveat"]

Answer = str | Secret
"""What a user answered; the answer to a question for a credential is a Secret."""

_CHOICES: Final[Mapping[str, Any]] = {
    "category": Category,
    "acquisition_mode": AcquisitionMode,
    "importance": Importance,
    "freshness": Freshness,
    "sensitivity": Sensitivity,
    "fallback_policy": FallbackPolicy,
}


@dataclass(frozen=True, slots=True)
class KnowledgeRequirement:
    """One thing that a task needs to know. Confidences are from 0 to 1.

    `valid_until` is the ISO moment from which the knowledge is stale; a text that is no moment
    counts as stale. `freshness` and `last_verified_at` only inform.

    Raises ValidationError that names the requirement and the field that is not acceptable.
    """

    id: str
    description: str
    required_for: tuple[str, ...] = ()
    category: Category = "domain_specific"
    acquisition_mode: AcquisitionMode = "ask_user"
    importance: Importance = "medium"
    freshness: Freshness = "static"
    sensitivity: Sensitivity = "private"
    confidence_needed: float = 0.7
    current_confidence: float = 0.0
    evidence_ids: tuple[str, ...] = ()
    fallback_policy: FallbackPolicy = "ask"
    valid_until: str | None = None
    last_verified_at: str | None = None
    metadata: Mapping[str, JsonValue] | None = None

    def __post_init__(self) -> None:
        for name in ("id", "description"):
            self._check(name, isinstance(getattr(self, name), str), "a text")
        self._check("id", bool(self.id), "a text that is not empty")
        for name, choices in _CHOICES.items():
            allowed = get_args(choices)
            self._check(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        for name in ("confidence_needed", "current_confidence"):
            self._check(name, type(getattr(self, name)) is not bool, "a number")
            self._check(name, isinstance(getattr(self, name), int | float), "a number")
        for name in ("required_for", "evidence_ids"):
            self._check(name, isinstance(getattr(self, name), list | tuple), "a list of texts")
        until = cast("object", self.valid_until)
        self._check("valid_until", isinstance(until, str | None), "a text or None")

    def _check(self, name: str, fits: bool, wanted: str) -> None:
        if not fits:
            value = getattr(self, name)
            raise ValidationError(
                f"{name} of the requirement {self.id!r:.60} must be {wanted}, not {value!r:.40}"
            )


@dataclass(frozen=True, slots=True)
class KnowledgeBundle:
    """All that is known for a task when it was scored; `missing` is what is not."""

    task_id: str
    requirements: tuple[KnowledgeRequirement, ...] = ()
    evidence_ids: tuple[str, ...] = ()
    claim_ids: tuple[str, ...] = ()
    wiki_page_ids: tuple[str, ...] = ()
    user_answers: Mapping[str, Answer] | None = None
    missing: tuple[KnowledgeRequirement, ...] = ()
    readiness_score: float = 1.0
    metadata: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class KnowledgeReadinessReport:
    """How ready a task is: a score from 0 to 1, the gaps in the order of the requirements.

    Raises ValidationError for another score.
    """

    task_id: str
    readiness_score: float
    blocking_missing_requirements: tuple[KnowledgeRequirement, ...]
    non_blocking_gaps: tuple[KnowledgeRequirement, ...]
    recommended_action: RecommendedAction
    bundle: KnowledgeBundle
    severity: Severity
    reason: str

    def __post_init__(self) -> None:
        if not is_fraction(self.readiness_score):
            raise ValidationError(
                f"readiness_score of the report on {self.task_id!r:.60} must be from 0 to 1, "
                f"not {self.readiness_score!r:.40}"
            )


@dataclass(frozen=True, slots=True)
class UserQuestion:
    """A question to the user that closes one gap."""

    id: str
    question: str
    reason: str
    requirement_id: str
    importance: Importance
    answer_type: AnswerType = "free_text"
    impact_if_unknown: str = ""
    default_if_skipped: str | None = None
    options: tuple[str, ...] | None = None
    metadata: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class DataAcquisitionPlan:
    """What to do in one way for all the gaps that it can close."""

    id: str
    requirement_ids: tuple[str, ...]
    mode: PlanMode
    description: str
    priority: Importance
    expected_evidence_ids: tuple[str, ...] | None = None
    questions: tuple[UserQuestion, ...] | None = None
    metadata: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class KnowledgeReadinessDecision:
    """Whether a task may go on: `ready`, with a `caveat`, or `blocked`.

    `passed` is true only if it is ready; what a caveat means is up to the policy of the task.
    """

    passed: bool
    status: ReadinessStatus
    reason: str
    readiness_score: float
    recommended_action: RecommendedAction
    severity: Severity
    blocking_gap_ids: tuple[str, ...]
    non_blocking_gap_ids: tuple[str, ...]
