"""The types of what leaves of a readiness report: its wire form, as far as `sanitize` keeps it."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class SanitizedKnowledgeRequirement(TypedDict):
    """What leaves of one thing that a task needs to know.

    `description` is there with `include_requirement_descriptions`, except for a secret, and
    `evidenceIds` with `include_evidence_ids`.
    """

    id: str
    requiredFor: list[str]
    category: str
    acquisitionMode: str
    importance: str
    freshness: str
    sensitivity: str
    confidenceNeeded: float
    currentConfidence: float
    evidenceCount: int
    fallbackPolicy: str
    description: NotRequired[str]
    evidenceIds: NotRequired[list[str]]


class SanitizedKnowledgeReadinessReport(TypedDict):
    """What leaves of a readiness report; `evidenceIds` is there with `include_evidence_ids`.

    `reason` is `[redacted]` without `include_text`: it may be in a provider's own words.
    """

    taskId: str
    readinessScore: float
    recommendedAction: str
    severity: str
    reason: str
    blockingMissingRequirements: list[SanitizedKnowledgeRequirement]
    nonBlockingGaps: list[SanitizedKnowledgeRequirement]
    evidenceCount: int
    missingRequirementIds: list[str]
    evidenceIds: NotRequired[list[str]]
