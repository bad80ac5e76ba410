"""Every exception of the package: one root, one namespace of stable codes."""

from __future__ import annotations

from typing import Any, ClassVar


class PerdureError(Exception):
    """Something that Perdure refuses or could not do.

    `code` never changes its meaning; `retryable` says whether the same call may succeed later
    without a change; `hint` names the way out.
    """

    code: ClassVar[str] = "internal"
    retryable: bool = False
    hint: str = "Look for the reference id in the server's log."


class UsageError(PerdureError, ValueError):
    """A value that the caller gave is not acceptable; the message names it."""

    code = "bad_request"
    hint = "Correct the named value and call again."


class AttachmentsNotShownError(UsageError):
    """A message has attachments, and its producer cannot show any to the model."""

    code = "attachments_not_shown"
    hint = "Send it without attachments, or give the producer an `attachment_part`."


class DurableRunError(PerdureError):
    """A durable run cannot go on as asked."""

    code = "durable_run"
    hint = "Read the message; the run itself is unchanged."


class LeaseHeldError(DurableRunError):
    """Another live worker holds the run."""

    code = "lease_held"
    retryable = True
    hint = "Wait until it finishes, or until its lease lapses, and call again."


class LeaseLostError(DurableRunError):
    """This worker no longer holds the run; nothing of this write was recorded."""

    code = "lease_lost"
    hint = "Stop working on this run: another worker goes on with it."


class RunInputMismatchError(DurableRunError):
    """The run id is taken by a run with another manifest; nothing was changed."""

    code = "manifest_mismatch"
    hint = "Use a new run id (or turn) for a new input."


class DivergenceError(DurableRunError):
    """The task took another step than the one recorded at this position."""

    code = "step_divergence"
    hint = "Restore the code that recorded the history, or start a new run; retry goes on."


class StepInputMismatchError(DivergenceError):
    """A recorded step was replayed with another fingerprint."""

    code = "step_input_mismatch"
    hint = "Give the step the input it was recorded with, or start a new run."


class StepFailedError(DurableRunError):
    """A step failed for good; the same error is raised at every replay.

    `original_message`, `original_code` and `original_type` describe what the step raised.
    """

    code = "step_failed"
    hint = "Catch it in the task, or retry the failed run."

    def __init__(
        self,
        message: str,
        *,
        intent: str = "",
        original_message: str = "",
        original_code: str | None = None,
        original_type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.intent = intent
        self.original_message = original_message or message
        self.original_code = original_code
        self.original_type = original_type


class StepTimeoutError(StepFailedError):
    """A step ran longer than its time-out."""

    code = "step_timeout"
    hint = "Raise `timeout_ms`, or make the step idempotent and retry it."


class AwaitEventTimeoutError(StepFailedError):
    """No event arrived before the deadline of the wait."""

    code = "await_event_timeout"
    hint = "Handle the time-out in the task: it is final."


class UnfinishedStepError(StepFailedError):
    """An `at_most_once` step was interrupted: whether its effect happened is unknown."""

    code = "unfinished_tool_call"
    hint = "Check the outside system, then retry the run, or declare the step idempotent."


class NotSerializableError(PerdureError, TypeError):
    """A value that must be stored is not plain JSON; the message has the path of the culprit."""

    code = "not_serializable"
    hint = "Return plain JSON values: None, bool, int, float, str, list, dict with str keys."


class ValueTooLargeError(NotSerializableError):
    """A value is over its limit."""

    code = "value_too_large"
    hint = "Store the value elsewhere and keep a reference to it."


class RunParkedError(DurableRunError):
    """The run was given up with a reason; only `retry` goes on."""

    code = "parked"
    hint = "Mend what `reason` names, then retry the run."


class RunStoppedError(DurableRunError):
    """The run was ended by a stop."""

    code = "stopped"
    hint = "Start a new run."


class RunNotFoundError(DurableRunError):
    """There is no such run (or it belongs to somebody else)."""

    code = "not_found"
    hint = "Check the id, the tenant and the store."


class SessionBusyError(DurableRunError):
    """Another turn of the session is in flight, or queued before this one."""

    code = "session_busy"
    retryable = True
    hint = "Wait for the turn in flight, or stop it."


class CursorError(PerdureError, ValueError):
    """A cursor is malformed, of another run, or past the end."""

    code = "bad_cursor"
    hint = "Read the stream from its start, without a cursor."


class TooManyTurnsError(PerdureError):
    """This process works on as many turns as it may, in all or of one tenant."""

    code = "too_many_turns"
    retryable = True
    hint = "Submit the turn again after a while, here or to another process."


class TooManyReadersError(PerdureError):
    """A turn, or this process, has as many readers as it may have."""

    code = "too_many_readers"
    retryable = True
    hint = "Close some of the open streams, then read the turn again."


class OverloadedError(PerdureError):
    """This process has too much to do just now."""

    code = "overloaded"
    retryable = True
    hint = "Send the request again after a while, here or to another process."


class FramesExpiredError(PerdureError):
    """The frames of this turn are no longer kept."""

    code = "frames_expired"
    hint = "Read the finished turn instead."


class StoreError(PerdureError):
    """The store could not answer."""

    code = "store"
    retryable = True
    hint = "Check the store, then call again."


class StoreBusyError(StoreError):
    """The store stayed locked for too long."""

    code = "store_busy"
    hint = "Call again; another process holds the write lock of the database."


class StoreFullError(StoreError):
    """There is no room left; nothing of this write was recorded."""

    code = "store_full"
    hint = "Free some disk space, then call again."


class StoreUnavailableError(StoreError):
    """The store cannot be reached."""

    code = "store_unavailable"
    hint = "Check that the database is there and may be read and written."


class StoreClosedError(StoreUnavailableError):
    """This handle was closed, and with it ended what was worked on with it."""

    code = "store_closed"
    retryable = False
    hint = "Open another handle: what was given back goes on with that."


class StoreCorruptError(StoreError):
    """The store holds something that this package never writes."""

    code = "store_corrupt"
    retryable = False
    hint = "Stop all workers and check the database's integrity."


class ValueSealedError(StoreError):
    """A stored value is sealed, and cannot be opened here; nothing was changed."""

    code = "value_sealed"
    retryable = False
    hint = "Give the key ring the key that the value was sealed under."


class SchemaError(StoreError):
    """The database has another schema than this version needs."""

    code = "schema"
    retryable = False
    hint = "Open it with `migrate=True`, or use the version that made the database."


class AgentRuntimeError(PerdureError):
    """An agent task, or what it talks to, failed."""

    code = "agent_runtime"


class ValidationError(AgentRuntimeError, UsageError):
    """A task, an event or an argument of an agent task is not acceptable; the message names it."""

    code = "validation"
    hint = "Correct the named value and call again."


class SessionMismatchError(ValidationError):
    """A session is to be resumed with another kind of backend than it was begun with."""

    hint = "Resume it with the backend it belongs to, or begin another session."

    def __init__(self, message: str, *, session_backend: str, requested_backend: str) -> None:
        super().__init__(message)
        self.session_backend = session_backend
        self.requested_backend = requested_backend


class ProfileConformanceError(ValidationError):
    """A profile did not pass its check; `result`, a ConformanceResult, is what was found."""

    hint = "Correct what the errors of the result name."

    def __init__(self, message: str, *, result: Any) -> None:
        super().__init__(message)
        self.result = result


class RuntimeRunStateError(ValidationError):
    """A method of a run handle was called in a state that forbids it; nothing was changed."""

    hint = "Complete a run once, with one status, before it is persisted."


class NotFoundError(AgentRuntimeError):
    """Something that an agent task names does not exist."""

    code = "not_found"
    hint = "Check the name."


class ConfigError(AgentRuntimeError):
    """What an agent task needs to be told in advance is missing or malformed."""

    code = "config"
    hint = "Correct the named setting."


class CaptureIntegrityError(AgentRuntimeError):
    """A run lacks the evidence that a strict check of it needs."""

    code = "capture_integrity"
    hint = "Run it again with its events kept."


class JudgeError(AgentRuntimeError):
    """Whoever judges a result failed for good."""

    code = "judge"
    hint = "Judge the result again, or by somebody else."


class VerificationError(AgentRuntimeError):
    """A verifier found that a result does not hold."""

    code = "verification"
    hint = "Look at what the verifier reports."


class ReplayError(AgentRuntimeError):
    """A record of earlier answers has none for this request."""

    code = "replay"
    hint = "Record the answers anew."


class BackendTransportError(AgentRuntimeError):
    """A call of a backend failed; `status` is 0 when there was no response.

    `body` holds 2,048 characters of what came back, and an ellipsis where there was more (for the
    log, never for a user).
    `retryable` is decided for each failure; `retry_after_ms` is the wait that the provider asked
    for, None if it named none.
    """

    code = "transport"
    retryable = True
    hint = "Check the endpoint, the key and the model's name."

    def __init__(
        self,
        message: str,
        *,
        backend: str,
        status: int = 0,
        body: str = "",
        retryable: bool = True,
        retry_after_ms: float | None = None,
    ) -> None:
        super().__init__(message)
        self.backend = backend
        self.status = status
        self.body = body
        self.retryable = retryable
        self.retry_after_ms = retry_after_ms


class BackendTimeoutError(BackendTransportError):
    """A backend did not answer, or stopped sending, within its time limit."""

    code = "backend_timeout"
    hint = "Try again, or raise the time limit of the backend."


class ToolError(AgentRuntimeError):
    """What a tool raises to tell the model what went wrong; the message is told as it stands."""

    code = "tool_failed"
    hint = "It is for the model, which may call the tool again with other arguments."


class ChatTurnError(BackendTransportError):
    """A sandbox refused a chat turn, broke it off or fell silent, or nobody knows its address."""

    hint = "Check the address of the sandbox and its authorization."


EVENT_EMIT_RACE = "event_emit_race"
"""A code of the reference that is never raised: the loser of a race gets the winner's event."""
