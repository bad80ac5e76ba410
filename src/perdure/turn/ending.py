"""How a turn ends: what is recorded of it, what must follow, and what a reader is told."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, cast

from perdure.core import effects, identity, recordjson
from perdure.core.changes import AddDelivery, CompleteStep
from perdure.core.frames import Frame
from perdure.core.jsonvalue import encode_value
from perdure.core.limits import TURN_LOG_BYTES_MAX
from perdure.core.records import DeliveryRecord, JsonValue, RunOutcome, StepRecord
from perdure.core.wording import error_text
from perdure.errors import (
    AgentRuntimeError,
    BackendTimeoutError,
    BackendTransportError,
    PerdureError,
    StepFailedError,
    ValueTooLargeError,
)
from perdure.store.protocol import RunStore
from perdure.turn.hooks import COMPLETE, PERSIST, ChatTurnHooks, FinishedTurn, has_hook
from perdure.turn.identity import ChatTurnIdentity, intent_of

logger = logging.getLogger("perdure.turn")

ANSWER_BYTES_MAX: Final = 2 * TURN_LOG_BYTES_MAX
"""Step 0 holds a turn's text twice: in its parts and as a whole."""

Status = Literal["completed", "stopped"]


class IdleTimeoutError(AgentRuntimeError):
    """Nothing came from the model for too long."""

    code = "idle_timeout"
    retryable = True
    hint = "Retry the turn, or raise `idle_timeout_ms` of the engine."


class ProducerLostError(AgentRuntimeError):
    """The answer was interrupted, and is not begun again by itself."""

    code = "producer_lost"
    retryable = True
    hint = "Retry the turn."


class Failure(NamedTuple):
    """What a reader is told of a failed turn: nothing of the inside, but where to look."""

    code: str
    message: str
    retryable: bool
    ref: str

    def frame(self) -> Frame:
        return Frame(0, 0, "failed", self._asdict())


def failure_of(error: BaseException, *, expose: bool) -> Failure:
    """Return the public form of `error` and log it in full, under the same reference id.

    The message of an exception may name hosts, paths or keys, so it is shown only where the
    product asks for that (`expose`); the package's own messages are written for users.
    """
    ref = effects.new_reference()
    logger.error("a turn failed (reference %s)", ref, exc_info=error)
    cause = error.__cause__ if isinstance(error, StepFailedError) else None
    told = cause if isinstance(cause, PerdureError) else error
    if isinstance(told, PerdureError):
        message = str(told) if expose else f"{summary_of(told)} Its reference is {ref}."
        return Failure(told.code, message, told.retryable, ref)
    message = error_text(error) if expose else f"Something went wrong. Its reference is {ref}."
    return Failure("internal", message, True, ref)


def summary_of(error: PerdureError) -> str:
    """Return what a user may know of `error`: nothing of the moment but the kind of failure."""
    if isinstance(error, BackendTimeoutError):
        return "The model did not answer in time."
    if isinstance(error, BackendTransportError):
        return _PROVIDER_FAILURES.get(error.status, _kind_of_status(error.status))
    first_line = (type(error).__doc__ or "It failed.").strip().splitlines()[0]
    # What follows a semicolon is about the message, which the user does not get to see.
    return first_line.partition(";")[0].rstrip(".") + "."


def _kind_of_status(status: int) -> str:
    if status == 0:
        return "The model could not be reached."
    if status < 400:
        return "The answer of the model broke off."
    return "The model's provider failed." if status >= 500 else "The model refused the request."


_PROVIDER_FAILURES: Final[Mapping[int, str]] = {
    401: "The model's provider refused this service's key.",
    403: "The model's provider refused this service's key.",
    404: "The model's provider does not know the model.",
    408: "The model did not answer in time.",
    429: "The model's provider is too busy.",
}


def answer_change(
    turn_index: int,
    *,
    text: str,
    part_texts: Sequence[str],
    finish_reason: str | None,
    stopped: bool,
    input_hash: str,
    tries: int,
    frames_to: int,
) -> CompleteStep:
    """Return the record of a turn's answer: its step 0. Raises ValueTooLargeError."""
    final_text = encode_value(text, name="the final text", bytes_max=ANSWER_BYTES_MAX)
    marks = ',"stopped":true' if stopped else ""
    if finish_reason is not None:
        marks += f',"finishReason":{encode_value(finish_reason, name="the finish reason")}'
    answer_text = f'{{"finalText":{final_text},"parts":[{",".join(part_texts)}]{marks}}}'
    if len(answer_text) > ANSWER_BYTES_MAX:
        raise ValueTooLargeError(f"the turn's answer has over {ANSWER_BYTES_MAX:,} bytes of JSON")
    return CompleteStep(
        0,
        intent_of(turn_index),
        answer_text,
        kind="llm",
        input_hash=input_hash,
        tries=tries,
        frames_to=frames_to,
    )


def outcome_text(turn_index: int, text: str) -> str:
    """Return the outcome of an answered turn (the reference's; it counts UTF-16 code units)."""
    chars = len(text.encode("utf-16-le", "surrogatepass")) // 2
    outcome = RunOutcome(notes=intent_of(turn_index), metadata={"chars": chars})
    return recordjson.outcome_text(outcome)


def deliveries(
    hooks: ChatTurnHooks,
    *,
    stored_id: str,
    handler: str,
    turn: ChatTurnIdentity,
    status: Status,
    text: str,
) -> list[AddDelivery]:
    """Return what must follow the end of a turn, in order, for the hooks that the product has."""
    payload = {"identity": turn._asdict(), "status": status, "finalText": text}
    payload_text = encode_value(payload, name="delivery", bytes_max=ANSWER_BYTES_MAX)
    topics = [topic for topic in (PERSIST, COMPLETE) if has_hook(hooks, topic)]
    return [
        AddDelivery(
            position, topic, handler, identity.idempotency_key(stored_id, topic), payload_text
        )
        for position, topic in enumerate(topics)
    ]


def answer_of(steps: Sequence[StepRecord]) -> Mapping[str, JsonValue]:
    """Return the recorded answer of a turn; empty while there is none."""
    result = steps[0].result if steps else None
    return cast("dict[str, JsonValue]", result) if isinstance(result, dict) else {}


def end_frame(status: str, finish_reason: JsonValue = None) -> Frame:
    """Return the frame that ends an answered turn; `finish_reason` is the model's, if known."""
    return Frame(0, 0, status, {} if finish_reason is None else {"finish": finish_reason})


def final_text_of(answer: JsonValue) -> str:
    """Return the text of a recorded answer: '' where a turn has none."""
    if not isinstance(answer, dict):
        return ""
    return str(cast("dict[str, JsonValue]", answer).get("finalText", ""))


async def finished_turn(store: RunStore, delivery: DeliveryRecord) -> FinishedTurn | None:
    """Return the turn that a delivery is about; None if it was deleted since."""
    turn = ChatTurnIdentity(**delivery.payload["identity"])
    _, run_id = identity.logical_id(delivery.run_id)
    tenant_store = store.for_tenant(delivery.tenant)
    run = await tenant_store.read_run(run_id)
    if run is None:
        return None
    answer = answer_of(await tenant_store.read_steps(run_id))
    return FinishedTurn(
        identity=turn,
        status=delivery.payload["status"],
        final_text=delivery.payload["finalText"],
        parts=answer.get("parts", []),
        record=run,
        idempotency_key=delivery.key,
        finish_reason=answer.get("finishReason"),
    )
