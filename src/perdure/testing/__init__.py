"""The public test kit; it imports no test framework.

`STORE_CASES` and `check_run_store` prove that a store keeps the contract of `RunStore`;
`SCHEDULE_CASES` are for one that keeps schedules too, `UPKEEP_CASES` for one with `upkeep()` and
`ERASURE_CASES` for one with `erasure()`.
`crash_everywhere` proves that a piece of work survives a crash at each of its writes, and
`check_replay` that changed code still fits what older code recorded. With pytest, the fixtures of
`perdure.pytest_plugin` give each test its stores.
"""

from __future__ import annotations

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
from perdure.testing.lab import Case, OpenHandle, StoreLab
from perdure.testing.replaying import check_replay

__all__ = [
    "ERASURE_CASES",
    "SCHEDULE_CASES",
    "STORE_CASES",
    "UPKEEP_CASES",
    "Case",
    "Crash",
    "CrashPoint",
    "CrashReport",
    "ManualClock",
    "NewLab",
    "OpenHandle",
    "Scenario",
    "StoreLab",
    "check_replay",
    "check_run_store",
    "crash_everywhere",
]
