"""The names that a user imports from `perdure`, and what importing them may cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

import perdure
from perdure import errors

PUBLIC_NAMES = [
    "AgentRuntimeError",
    "AgentTaskSpec",
    "Attachment",
    "AttachmentsNotShownError",
    "AwaitEventTimeoutError",
    "BackendTimeoutError",
    "BackendTransportError",
    "ChatTurnEngine",
    "ChatTurnHooks",
    "ChatTurnIdentity",
    "Collected",
    "CursorError",
    "D1",
    "D1DurableRunStore",
    "DURABLE_SCHEMA_SQL",
    "DURABLE_SCHEMA_VERSION",
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
    "KeyRing",
    "LeaseHeldError",
    "LeaseLostError",
    "LocalKeys",
    "MemoryStore",
    "NotSerializableError",
    "OverloadedError",
    "PerdureError",
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
    "Schedule",
    "SchemaError",
    "Sealer",
    "SessionBusyError",
    "SessionKey",
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
    "Turn",
    "UnfinishedStepError",
    "UsageError",
    "ValuePlace",
    "ValueSealedError",
    "ValueTooLargeError",
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
]
"""A name is added with a line in the changelog, and goes only after a release that warns."""

HEAVY_MODULES = ["anyio", "httpx2", "http.client", "sqlite3", "ssl", "starlette", "uvicorn"]


def test_the_public_names_are_the_listed_ones() -> None:
    assert sorted(perdure.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_the_name_can_be_imported(name: str) -> None:
    assert getattr(perdure, name) is not None


def test_every_error_of_a_run_is_public() -> None:
    of_runs = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.DurableRunError)
    }
    assert of_runs <= set(PUBLIC_NAMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    name = "no_such_name"
    with pytest.raises(AttributeError, match=name):
        getattr(perdure, name)


def test_the_import_loads_nothing_heavy() -> None:
    code = "import sys, perdure; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "perdure" in loaded
    assert not set(HEAVY_MODULES).intersection(loaded)
