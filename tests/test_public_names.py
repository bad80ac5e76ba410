"""The names that a user imports from `perdure`, and what importing them may cost."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import perdure
from perdure import agent, backends, errors, observe

PUBLIC_NAMES = [
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
"""A name is added with a line in the changelog, and goes only after a release that warns."""

HEAVY_MODULES = ["anyio", "httpx2", "http.client", "sqlite3", "ssl", "starlette", "uvicorn"]


def test_the_public_names_are_the_listed_ones() -> None:
    assert sorted(perdure.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("package", [agent, backends, observe])
def test_a_package_loads_the_names_that_it_lists(package: ModuleType) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        assert value is getattr(package, name)
        assert name in vars(package)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(package, "no_such_name")  # noqa: B009 it is no name


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
