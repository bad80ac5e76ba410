"""Records of runs for an evaluation: what an adapter's `project_run_records` may give."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal, cast

from perdure.core.finite import is_finite, is_fraction
from perdure.core.records import JsonValue
from perdure.core.wire import from_wire, to_wire
from perdure.errors import UsageError, ValidationError

_SNAPSHOT: Final = re.compile(r"(?<!\d)(\d{4}-?\d{2}-?\d{2}|\d{4})(?!\d)")
_AMOUNTS: Final = (
    "wall_ms",
    "cost_usd",
    "queue_ms",
    "token_usage.input",
    "token_usage.output",
    "token_usage.cached",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """What a run used, in tokens."""

    input: float
    output: float
    cached: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScores:
    """What a run came to: a score of the search or of the holdout at least, and raw numbers."""

    raw: Mapping[str, float]
    search_score: float | None = None
    holdout_score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeMetadata:
    """Who judged a run, and how sure of it."""

    model: str
    prompt_version: str
    confidence: float
    fallback: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRunRecord:
    """One run as an evaluation compares it; the runtime carries it and reads `scenario_id` only.

    `model` names a dated snapshot, so that the record still means something when the name has
    moved on.
    """

    run_id: str
    experiment_id: str
    candidate_id: str
    seed: float
    model: str
    prompt_hash: str
    config_hash: str
    commit_sha: str
    wall_ms: float
    cost_usd: float
    token_usage: TokenUsage
    outcome: RunScores
    split_tag: Literal["search", "dev", "holdout"]
    queue_ms: float | None = None
    judge_metadata: JudgeMetadata | None = None
    failure_mode: str | None = None
    scenario_id: str | None = None


def validate_run_record(
    value: EvaluationRunRecord | Mapping[str, JsonValue],
) -> EvaluationRunRecord:
    """Return the record, which may be given in wire form.

    Raises ValidationError that names the first field which is missing or not acceptable.
    """
    try:
        record = from_wire(EvaluationRunRecord, to_wire(value))
    except UsageError as error:
        raise ValidationError(str(error)) from error
    for field in fields(record):
        if getattr(record, field.name) == "":
            raise ValidationError(f"{field.name} of a run record must not be empty")
    if not _SNAPSHOT.search(record.model):
        raise ValidationError(f"model must name a dated snapshot, not {record.model!r:.60}")
    scores = record.outcome
    if scores.search_score is None and scores.holdout_score is None:
        raise ValidationError("outcome needs a search_score or a holdout_score")
    for name, number in _numbers(record).items():
        if number is not None and not is_finite(number):
            raise ValidationError(f"{name} of a run record must be finite, not {number!r:.40}")
        if name in _AMOUNTS and number is not None and number < 0:
            raise ValidationError(f"{name} of a run record must be from 0, not {number!r:.40}")
    judge = record.judge_metadata
    if judge is not None and not is_fraction(judge.confidence):
        raise ValidationError(
            f"judge_metadata.confidence of a run record must be from 0 to 1, not "
            f"{judge.confidence!r:.40}"
        )
    return record


def _numbers(record: EvaluationRunRecord) -> dict[str, float | None]:
    usage, scores = record.token_usage, record.outcome
    own = ("seed", "wall_ms", "cost_usd", "queue_ms")
    return {
        **{name: cast("float | None", getattr(record, name)) for name in own},
        **{f"token_usage.{name}": getattr(usage, name) for name in ("input", "output", "cached")},
        **{f"outcome.{name}": getattr(scores, name) for name in ("search_score", "holdout_score")},
        **{f"outcome.raw.{name}": number for name, number in scores.raw.items()},
    }
