"""The public test kit; it imports no test framework.

`STORE_CASES` and `check_run_store` prove that a store keeps the contract of `RunStore`;
`SCHEDULE_CASES` are for one that keeps schedules too, `UPKEEP_CASES` for one with `upkeep()` and
`ERASURE_CASES` for one with `erasure()`.
`backend_conformance` proves the same of an execution backend for agent tasks (`BACKEND_CASES`),
`session_store_conformance` of a store for its sessions (`SESSION_STORE_CASES`, and
`COMPARING_SESSION_STORE_CASES` for one with `put_if`), and `trace_store_conformance` of a store for
its traces (`TRACE_STORE_CASES`).
`host_conformance` proves that an engine runs the same tasks with the same results (`HOST_CASES`;
its worker serves `HOST_TASKS`).
`crash_everywhere` proves that a piece of work survives a crash at each of its writes, and
`check_replay` that changed code still fits what older code recorded. With pytest, the fixtures of
`perdure.pytest_plugin` give each test its stores.
"""

from __future__ import annotations

from perdure.testing.backend_lab import BackendLab, OpenBackend, Plan, PlannedAnswer
from perdure.testing.backends import BACKEND_CASES, backend_conformance
from perdure.testing.clock import ManualClock
from perdure.testing.contract import (
    ERASURE_CASES,
    SCHEDULE_CASES,
    STORE_CASES,
    UPKEEP_CASES,
    NewLab,
    check_run_store,
)
from perdure.testing.faults import Crash, CrashPoint, CrashReport, Scenario, crash_everywhere
from perdure.testing.host_lab import HostEnd, HostLab, NewHostLab
from perdure.testing.host_tasks import HOST_TASKS
from perdure.testing.hosts import HOST_CASES, host_conformance
from perdure.testing.lab import Case, OpenHandle, StoreLab
from perdure.testing.replaying import check_replay
from perdure.testing.session_store_lab import NewSessionStoreLab, SessionStoreLab
from perdure.testing.session_stores import (
    COMPARING_SESSION_STORE_CASES,
    SESSION_STORE_CASES,
    session_store_conformance,
)
from perdure.testing.trace_store_lab import NewTraceStoreLab, TraceStoreLab
from perdure.testing.trace_stores import TRACE_STORE_CASES, trace_store_conformance

__all__ = [
    "BACKEND_CASES",
    "COMPARING_SESSION_STORE_CASES",
    "ERASURE_CASES",
    "HOST_CASES",
    "HOST_TASKS",
    "SCHEDULE_CASES",
    "SESSION_STORE_CASES",
    "STORE_CASES",
    "TRACE_STORE_CASES",
    "UPKEEP_CASES",
    "BackendLab",
    "Case",
    "Crash",
    "CrashPoint",
    "CrashReport",
    "HostEnd",
    "HostLab",
    "ManualClock",
    "NewHostLab",
    "NewLab",
    "NewSessionStoreLab",
    "NewTraceStoreLab",
    "OpenBackend",
    "OpenHandle",
    "Plan",
    "PlannedAnswer",
    "Scenario",
    "SessionStoreLab",
    "StoreLab",
    "TraceStoreLab",
    "backend_conformance",
    "check_replay",
    "check_run_store",
    "crash_everywhere",
    "host_conformance",
    "session_store_conformance",
    "trace_store_conformance",
]
