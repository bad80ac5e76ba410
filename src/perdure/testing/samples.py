"""Small runs and changes that the contract's cases are told with."""

from __future__ import annotations

import json
from collections.abc import Sequence

from perdure.core.changes import (
    AddDelivery,
    AppendFrames,
    BeginStep,
    Change,
    CompleteStep,
    EndRun,
    FailStep,
    Restart,
)
from perdure.core.frames import Frame, encode_row, text
from perdure.core.limits import LEASE_MS
from perdure.core.records import AgentTaskSpec, JsonValue, Lease, RunManifest, SessionKey
from perdure.store.protocol import RunStore

HANDLER = "letters"


def manifest(question: str = "What is left of it?") -> RunManifest:
    """Return a manifest; another question gives another hash."""
    return RunManifest(
        project_id="lab",
        task=AgentTaskSpec(id="answer", intent="Answer a letter", domain="letters"),
        input={"question": question},
    )


async def hold(
    store: RunStore,
    run_id: str = "run",
    *,
    worker_id: str = "ann",
    lease_ms: int = LEASE_MS,
    handler: str | None = HANDLER,
    session: SessionKey | None = None,
    retry: bool = False,
) -> Lease:
    """Claim the run of the sample manifest and return the lease, which must be granted."""
    claim = await store.start_or_resume(
        run_id,
        manifest(),
        worker_id=worker_id,
        lease_ms=lease_ms,
        handler=handler,
        session=session,
        retry=retry,
    )
    if claim.lease is None:
        raise AssertionError(f"the claim of run {run_id!r} was answered without a lease")
    return claim.lease


def begun(position: int = 0, *, tries: int = 1) -> BeginStep:
    """Return the begin of the sample step at `position`."""
    return BeginStep(position, f"step-{position}", tries=tries)


def completed(position: int = 0, result: JsonValue = "done", *, tries: int = 1) -> CompleteStep:
    """Return the completion of the sample step at `position`."""
    return CompleteStep(position, f"step-{position}", json.dumps(result), tries=tries)


def failed(position: int = 0, message: str = "It broke", *, tries: int = 1) -> FailStep:
    """Return the failure of the sample step at `position`."""
    error = json.dumps({"message": message, "code": "broken"})
    return FailStep(position, f"step-{position}", error, tries=tries)


def row(first_seq: int, *deltas: str) -> AppendFrames:
    """Return a row of text frames, one for each delta."""
    body = encode_row([text(delta, "p1") for delta in deltas])
    return AppendFrames(first_seq, first_seq + len(deltas) - 1, body)


def restart_row(first_seq: int, *kept: str) -> Restart:
    """Return a row that opens a new attempt's output and goes on with the kept texts."""
    opening = Frame(0, 0, "restarted", {"attempt": 2, "reason": "lease_expired", "from": None})
    body = encode_row([opening, *(text(delta, "p1") for delta in kept)])
    return Restart(first_seq, first_seq + len(kept), body)


def delivery(
    position: int = 0, *, handler: str = HANDLER, payload: JsonValue = None
) -> AddDelivery:
    """Return a delivery for the outbox."""
    return AddDelivery(position, "persist", handler, f"key-{position}", json.dumps(payload))


def ended(state: str = "completed") -> EndRun:
    """Return the end of a run: completed, stopped or failed."""
    if state == "completed":
        return EndRun("completed", json.dumps({"pass": True, "notes": "well"}))
    if state == "stopped":
        return EndRun("stopped", reason="user")
    return EndRun("failed", reason="step_failed", error_text=json.dumps({"message": "It broke"}))


async def finish(
    store: RunStore,
    run_id: str,
    *changes: Change,
    state: str = "completed",
    session: SessionKey | None = None,
) -> Lease:
    """Claim the run, apply `changes`, end it, and return the lease that did so."""
    lease = await hold(store, run_id, session=session)
    await store.write(lease, *changes, ended(state))
    return lease


def text_of(frames: Sequence[Frame]) -> str:
    """Return the joined deltas of `frames`."""
    return "".join(frame.data["delta"] for frame in frames)
