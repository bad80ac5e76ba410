"""Perdure: agent runs and chat turns that survive crashes, deploys and closed tabs.

The names below are loaded when they are first used, so that importing the package costs little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.core.lazily import lazily
from perdure.errors import (
    AgentRuntimeError,
    AttachmentsNotShownError,
    AwaitEventTimeoutError,
    BackendTimeoutError,
    BackendTransportError,
    CaptureIntegrityError,
    ChatTurnError,
    ConfigError,
    CursorError,
    DivergenceError,
    DurableRunError,
    FramesExpiredError,
    JudgeError,
    LeaseHeldError,
    LeaseLostError,
    NotFoundError,
    NotSerializableError,
    OverloadedError,
    PerdureError,
    ProfileConformanceError,
    ReplayError,
    RunInputMismatchError,
    RunNotFoundError,
    RunParkedError,
    RunStoppedError,
    RuntimeRunStateError,
    SchemaError,
    SessionBusyError,
    SessionMismatchError,
    StepFailedError,
    StepInputMismatchError,
    StepTimeoutError,
    StoreBusyError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    ToolError,
    TooManyReadersError,
    TooManyTurnsError,
    UnfinishedStepError,
    UsageError,
    ValidationError,
    ValueSealedError,
    ValueTooLargeError,
    VerificationError,
)

if TYPE_CHECKING:
    from perdure.core import frames as frames
    from perdure.core.frames import Frame as Frame
    from perdure.core.identity import canonical_hash as canonical_hash
    from perdure.core.identity import canonical_json as canonical_json
    from perdure.core.identity import derive_worker_id as derive_worker_id
    from perdure.core.identity import manifest_hash as manifest_hash
    from perdure.core.identity import step_id as step_id
    from perdure.core.records import AgentTaskSpec as AgentTaskSpec
    from perdure.core.records import EventRecord as EventRecord
    from perdure.core.records import Retry as Retry
    from perdure.core.records import RunManifest as RunManifest
    from perdure.core.records import RunOutcome as RunOutcome
    from perdure.core.records import RunRecord as RunRecord
    from perdure.core.records import SessionKey as SessionKey
    from perdure.core.records import StepRecord as StepRecord
    from perdure.durable.context import DurableContext as DurableContext
    from perdure.durable.erasing import Erased as Erased
    from perdure.durable.erasing import erase_run as erase_run
    from perdure.durable.erasing import erase_session as erase_session
    from perdure.durable.erasing import erase_user as erase_user
    from perdure.durable.forking import ForkOrigin as ForkOrigin
    from perdure.durable.forking import ForkPreview as ForkPreview
    from perdure.durable.forking import fork as fork
    from perdure.durable.forking import fork_origin as fork_origin
    from perdure.durable.forking import preview_fork as preview_fork
    from perdure.durable.retention import Collected as Collected
    from perdure.durable.retention import collect_garbage as collect_garbage
    from perdure.durable.runner import RunResult as RunResult
    from perdure.durable.runner import emit_event as emit_event
    from perdure.durable.runner import run_durable as run_durable
    from perdure.durable.steps import current_step as current_step
    from perdure.durable.steps import report_usage as report_usage
    from perdure.durable.worker import Worker as Worker
    from perdure.encryption import EnvelopeSealer as EnvelopeSealer
    from perdure.encryption import KeyRing as KeyRing
    from perdure.encryption import LocalKeys as LocalKeys
    from perdure.store.erasure import erasure_of as erasure_of
    from perdure.store.files import FileStore as FileStore
    from perdure.store.guarding import redact_strings as redact_strings
    from perdure.store.memory import MemoryStore as MemoryStore
    from perdure.store.opening import open_store as open_store
    from perdure.store.priced import with_prices as with_prices
    from perdure.store.protected import protect as protect
    from perdure.store.protocol import RunStore as RunStore
    from perdure.store.scheduling import Schedule as Schedule
    from perdure.store.sealing import Sealer as Sealer
    from perdure.store.sealing import ValuePlace as ValuePlace
    from perdure.store.sql.d1.driver import D1 as D1
    from perdure.store.sql.d1.store import D1DurableRunStore as D1DurableRunStore
    from perdure.store.sql.schema import DURABLE_SCHEMA_SQL as DURABLE_SCHEMA_SQL
    from perdure.store.sql.schema import DURABLE_SCHEMA_VERSION as DURABLE_SCHEMA_VERSION
    from perdure.store.sql.sqlite import Sqlite as Sqlite
    from perdure.store.sql.store import SqlStore as SqlStore
    from perdure.turn.answering import answer_with as answer_with
    from perdure.turn.answering import attachment_text as attachment_text
    from perdure.turn.answering import image_part as image_part
    from perdure.turn.attachments import Attachment as Attachment
    from perdure.turn.durable import run_durable_turn as run_durable_turn
    from perdure.turn.engine import ChatTurnEngine as ChatTurnEngine
    from perdure.turn.engine import SubmittedTurn as SubmittedTurn
    from perdure.turn.handout import Turn as Turn
    from perdure.turn.hooks import ChatTurnHooks as ChatTurnHooks
    from perdure.turn.hooks import FinishedTurn as FinishedTurn
    from perdure.turn.identity import ChatTurnIdentity as ChatTurnIdentity
    from perdure.turn.recovery import InterruptedTurn as InterruptedTurn
    from perdure.turn.reference import durable_chat_turn_engine as durable_chat_turn_engine

__all__ = [
    "D1",
    "DURABLE_SCHEMA_SQL",
    "DURABLE_SCHEMA_VERSION",
    "AgentRuntimeError",
    "AgentTaskSpec",
    "Attachment",
    "AttachmentsNotShownError",
    "AwaitEventTimeoutError",
    "BackendTimeoutError",
    "BackendTransportError",
    "CaptureIntegrityError",
    "ChatTurnEngine",
    "ChatTurnError",
    "ChatTurnHooks",
    "ChatTurnIdentity",
    "Collected",
    "ConfigError",
    "CursorError",
    "D1DurableRunStore",
    "DivergenceError",
    "DurableContext",
    "DurableRunError",
    "EnvelopeSealer",
    "Erased",
    "EventRecord",
    "FileStore",
    "FinishedTurn",
    "ForkOrigin",
    "ForkPreview",
    "Frame",
    "FramesExpiredError",
    "InterruptedTurn",
    "JudgeError",
    "KeyRing",
    "LeaseHeldError",
    "LeaseLostError",
    "LocalKeys",
    "MemoryStore",
    "NotFoundError",
    "NotSerializableError",
    "OverloadedError",
    "PerdureError",
    "ProfileConformanceError",
    "ReplayError",
    "Retry",
    "RunInputMismatchError",
    "RunManifest",
    "RunNotFoundError",
    "RunOutcome",
    "RunParkedError",
    "RunRecord",
    "RunResult",
    "RunStoppedError",
    "RunStore",
    "RuntimeRunStateError",
    "Schedule",
    "SchemaError",
    "Sealer",
    "SessionBusyError",
    "SessionKey",
    "SessionMismatchError",
    "SqlStore",
    "Sqlite",
    "StepFailedError",
    "StepInputMismatchError",
    "StepRecord",
    "StepTimeoutError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreUnavailableError",
    "SubmittedTurn",
    "TooManyReadersError",
    "TooManyTurnsError",
    "ToolError",
    "Turn",
    "UnfinishedStepError",
    "UsageError",
    "ValidationError",
    "ValuePlace",
    "ValueSealedError",
    "ValueTooLargeError",
    "VerificationError",
    "Worker",
    "answer_with",
    "attachment_text",
    "canonical_hash",
    "canonical_json",
    "collect_garbage",
    "current_step",
    "derive_worker_id",
    "durable_chat_turn_engine",
    "emit_event",
    "erase_run",
    "erase_session",
    "erase_user",
    "erasure_of",
    "fork",
    "fork_origin",
    "frames",
    "image_part",
    "manifest_hash",
    "open_store",
    "preview_fork",
    "protect",
    "redact_strings",
    "report_usage",
    "run_durable",
    "run_durable_turn",
    "step_id",
    "with_prices",
]

__getattr__ = lazily(
    __name__,
    {
        "perdure.core": ("frames",),
        "perdure.core.frames": ("Frame",),
        "perdure.core.identity": (
            "canonical_hash",
            "canonical_json",
            "derive_worker_id",
            "manifest_hash",
            "step_id",
        ),
        "perdure.core.records": (
            "AgentTaskSpec",
            "Attachment",
            "EventRecord",
            "Retry",
            "RunManifest",
            "RunOutcome",
            "RunRecord",
            "SessionKey",
            "StepRecord",
        ),
        "perdure.durable.context": ("DurableContext",),
        "perdure.durable.erasing": ("Erased", "erase_run", "erase_session", "erase_user"),
        "perdure.durable.forking": (
            "ForkOrigin",
            "ForkPreview",
            "fork",
            "fork_origin",
            "preview_fork",
        ),
        "perdure.durable.retention": ("Collected", "collect_garbage"),
        "perdure.durable.runner": ("RunResult", "emit_event", "run_durable"),
        "perdure.durable.steps": ("current_step", "report_usage"),
        "perdure.durable.worker": ("Worker",),
        "perdure.encryption": ("EnvelopeSealer", "KeyRing", "LocalKeys"),
        "perdure.store.files": ("FileStore",),
        "perdure.store.guarding": ("redact_strings",),
        "perdure.store.memory": ("MemoryStore",),
        "perdure.store.opening": ("open_store",),
        "perdure.store.priced": ("with_prices",),
        "perdure.store.protected": ("protect",),
        "perdure.store.protocol": ("RunStore",),
        "perdure.store.scheduling": ("Schedule",),
        "perdure.store.sealing": ("Sealer", "ValuePlace"),
        "perdure.store.sql.d1.driver": ("D1",),
        "perdure.store.sql.d1.store": ("D1DurableRunStore",),
        "perdure.store.sql.schema": ("DURABLE_SCHEMA_SQL", "DURABLE_SCHEMA_VERSION"),
        "perdure.store.sql.sqlite": ("Sqlite",),
        "perdure.store.sql.store": ("SqlStore",),
        "perdure.turn.attachments": ("Attachment",),
        "perdure.store.erasure": ("erasure_of",),
        "perdure.turn.answering": ("answer_with", "attachment_text", "image_part"),
        "perdure.turn.durable": ("run_durable_turn",),
        "perdure.turn.engine": ("ChatTurnEngine", "SubmittedTurn"),
        "perdure.turn.handout": ("Turn",),
        "perdure.turn.hooks": ("ChatTurnHooks", "FinishedTurn"),
        "perdure.turn.identity": ("ChatTurnIdentity",),
        "perdure.turn.recovery": ("InterruptedTurn",),
        "perdure.turn.reference": ("durable_chat_turn_engine",),
    },
)


def __dir__() -> list[str]:
    return __all__
