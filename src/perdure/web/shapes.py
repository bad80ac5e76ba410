"""The bodies of requests and answers as types, for documents that describe the service."""

from __future__ import annotations

from typing import Any, Literal

from perdure.core.limits import ATTACHMENTS_MAX

try:
    from pydantic import BaseModel, ConfigDict, Field, model_validator
except ImportError as error:
    raise ImportError("typed bodies need Pydantic: pip install 'perdure[fastapi]'") from error

State = Literal[
    "queued", "running", "sleeping", "waiting", "parked", "completed", "stopped", "failed"
]

MESSAGE = "What is the weather in Lisbon?"
ANSWER = "It is clear in Lisbon."
APPROVAL = "approval:loop:1.1"
BEGUN, ENDED = "2026-01-31T09:05:07.042Z", "2026-01-31T09:05:12.310Z"


class Shape(BaseModel):
    """A JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Attachment(Shape):
    """A file that comes with a message, by reference: the service never sees the file."""

    id: str = Field(min_length=1, description="By which the product finds the file.")
    mediaType: str = Field(min_length=1)
    name: str | None = None
    sizeBytes: int | None = None
    sha256: str | None = None
    url: str | None = Field(default=None, description="Where it can be fetched; never `data:`.")


class Submission(Shape):
    """One message of a user, and its place in the conversation."""

    turnIndex: int = Field(ge=0, description="The turn's place in its session, from 0 on.")
    message: str | None = Field(
        default=None,
        min_length=1,
        description="What the user says; only `regenerate` goes without it.",
    )
    model: str | None = Field(
        default=None, min_length=1, description="The model to ask; null: the service's own."
    )
    attachments: list[Attachment] | None = Field(
        default=None, max_length=ATTACHMENTS_MAX, description="Files that the message comes with."
    )
    retry: bool = Field(default=False, description="Run a failed or parked turn again.")
    revision: int = Field(
        default=0, ge=0, description="Another answer, or another message, in the turn's place."
    )
    regenerate: bool = Field(
        default=False, description="Make the next revision, with the message that the turn has."
    )
    busy: Literal["reject", "queue", "replace"] | None = Field(
        default=None, description="What becomes of it while another turn is in flight."
    )

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"turnIndex": 0, "message": MESSAGE},
            "anyOf": [
                {"required": ["message"]},
                {"required": ["regenerate"], "properties": {"regenerate": {"const": True}}},
            ],
        }
    )

    @model_validator(mode="after")
    def fits_together(self) -> Submission:
        """Refuse a turn without a message, and a new revision that is named or a retry."""
        if self.regenerate and (self.retry or "revision" in self.model_fields_set):
            raise ValueError("`regenerate` goes without `revision` and `retry`")
        if not self.regenerate and self.message is None:
            raise ValueError("the field `message` is missing")
        return self


class Usage(Shape):
    """What one model call used; null is unknown, never zero."""

    attempt: int
    call: int
    state: str
    provider: str | None
    model: str | None
    tokensIn: int | None
    tokensOut: int | None
    tokensCached: int | None
    tokensCacheWritten: int | None
    tokensReasoning: int | None


class Delivery(Shape):
    """A hook that follows the turn."""

    topic: str
    state: str
    tries: int
    deliveredAt: str | None


class Turn(Shape):
    """A turn: its state, what there is of its answer, what it used, what followed."""

    sessionId: str
    turnIndex: int
    revision: int
    state: State
    reason: str | None = Field(description="Why it is parked.")
    attempt: int
    message: str | None
    attachments: list[Attachment]
    text: str = Field(description="The answer, as far as there is one.")
    parts: list[dict[str, Any]]
    finishReason: str | None = Field(description="Why the model's answer ended.")
    error: dict[str, Any] | None
    createdAt: str
    completedAt: str | None
    usage: list[Usage]
    deliveries: list[Delivery]

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                **{"sessionId": "kitchen", "turnIndex": 0, "revision": 0, "state": "completed"},
                **{"reason": None, "attempt": 1, "message": MESSAGE, "text": ANSWER},
                "attachments": [],
                "parts": [{"type": "text", "id": "p1", "text": ANSWER}],
                "finishReason": "stop",
                **{"error": None, "createdAt": BEGUN, "completedAt": ENDED},
                "usage": [],
                "deliveries": [],
            }
        }
    )


class Place(Shape):
    """The place of a turn in its session."""

    turnIndex: int
    revision: int


class TurnLine(Place):
    """A turn as it stands in a list."""

    state: State
    attempt: int
    message: str | None
    createdAt: str
    completedAt: str | None
    parent: Place | None = Field(description="The turn behind which it stands.")
    isCurrent: bool = Field(description="Whether it is part of the conversation as it stands.")


class Message(Shape):
    """A message as the model is given it."""

    role: Literal["user", "assistant"]
    content: str
    attachments: list[Attachment] | None = None


class Session(Shape):
    """A conversation. An answer in flight is not among the messages."""

    sessionId: str
    messages: list[Message]
    turns: list[TurnLine]
    inFlight: TurnLine | None = Field(description="The turn that is being answered.")
    next: Place = Field(description="The place of what is said next.")

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "sessionId": "kitchen",
                "messages": [
                    {"role": "user", "content": MESSAGE},
                    {"role": "assistant", "content": ANSWER},
                ],
                "turns": [
                    {
                        **{"turnIndex": 0, "revision": 0, "state": "completed", "attempt": 1},
                        **{"message": MESSAGE, "createdAt": BEGUN, "completedAt": ENDED},
                        **{"parent": None, "isCurrent": True},
                    }
                ],
                "inFlight": None,
                "next": {"turnIndex": 1, "revision": 0},
            }
        }
    )


class ApprovalRequest(Shape):
    """A call of a tool that waits for a human."""

    event: str = Field(description="What the decision names.")
    call: str
    tool: str
    arguments: dict[str, Any]
    askedAt: str
    timeoutMs: int | None = Field(description="Then it is a no; null: it waits for ever.")


class Approvals(Shape):
    """The calls of a turn that wait for a human."""

    approvals: list[ApprovalRequest]

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "approvals": [
                    {
                        **{"event": APPROVAL, "call": "c1", "tool": "refund"},
                        **{"arguments": {"amount": 500}, "askedAt": BEGUN, "timeoutMs": None},
                    }
                ]
            }
        }
    )


class Decision(Shape):
    """What a human decides about a call."""

    event: str = Field(min_length=1, description="That of the request.")
    approved: bool
    reason: str | None = Field(default=None, min_length=1, description="The model is told.")
    arguments: dict[str, Any] | None = Field(
        default=None, description="Call the tool with these instead; only when approved."
    )

    model_config = ConfigDict(
        json_schema_extra={"example": {"event": APPROVAL, "approved": False, "reason": "too much"}}
    )


class Decided(Shape):
    """Whether this answer was the first, which counts for ever."""

    accepted: bool
    decision: dict[str, Any] | None = Field(
        description="The answer that counts; null: the time to decide was over."
    )


class Erased(Shape):
    """What was deleted."""

    sessions: int
    turns: int


class ErrorDetail(Shape):
    """What went wrong, and the way out."""

    code: str
    message: str
    hint: str
    turn: str | None = Field(default=None, description="Where the turn is instead.")


class Refusal(Shape):
    """The one form that errors have."""

    error: ErrorDetail


class Health(Shape):
    """The service answers."""

    status: Literal["ok"]
