"""The bodies of requests and answers as types, for documents that describe the service."""

from __future__ import annotations

from typing import Any, Literal

try:
    from pydantic import BaseModel, ConfigDict, Field
except ImportError as error:
    raise ImportError("typed bodies need Pydantic: pip install 'perdure[fastapi]'") from error

State = Literal[
    "queued", "running", "sleeping", "waiting", "parked", "completed", "stopped", "failed"
]

MESSAGE = "What is the weather in Lisbon?"
ANSWER = "It is clear in Lisbon."
BEGUN, ENDED = "2026-01-31T09:05:07.042Z", "2026-01-31T09:05:12.310Z"


class Shape(BaseModel):
    """A JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Submission(Shape):
    """One message of a user, and its place in the conversation."""

    turnIndex: int = Field(ge=0, description="The turn's place in its session, from 0 on.")
    message: str = Field(min_length=1, description="What the user says.")
    model: str | None = Field(
        default=None, min_length=1, description="The model to ask; null: the service's own."
    )
    retry: bool = Field(default=False, description="Run a failed or parked turn again.")

    model_config = ConfigDict(json_schema_extra={"example": {"turnIndex": 0, "message": MESSAGE}})


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
                "parts": [{"type": "text", "id": "p1", "text": ANSWER}],
                "finishReason": "stop",
                **{"error": None, "createdAt": BEGUN, "completedAt": ENDED},
                "usage": [],
                "deliveries": [],
            }
        }
    )


class TurnLine(Shape):
    """A turn as it stands in a list."""

    turnIndex: int
    revision: int
    state: State
    attempt: int
    message: str | None
    createdAt: str
    completedAt: str | None


class Message(Shape):
    """A message as the model is given it."""

    role: Literal["user", "assistant"]
    content: str


class Session(Shape):
    """A conversation. An answer in flight is not among the messages."""

    sessionId: str
    messages: list[Message]
    turns: list[TurnLine]
    inFlight: TurnLine | None = Field(description="The turn that is being answered.")

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
                    }
                ],
                "inFlight": None,
            }
        }
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
