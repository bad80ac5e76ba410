"""Floor 4: the one door for code that does not await: scripts, Flask, Django.

All of it runs on one event loop in a thread of its own, which the first use starts.
"""

from __future__ import annotations

from perdure.sync.doors import (
    SyncEngine,
    SyncStore,
    SyncSubmittedTurn,
    emit_event,
    open_store,
    run_durable,
)
from perdure.sync.loop import Items
from perdure.sync.tasks import run_agent_task_sync
from perdure.sync.threads import in_thread

__all__ = [
    "Items",
    "SyncEngine",
    "SyncStore",
    "SyncSubmittedTurn",
    "emit_event",
    "in_thread",
    "open_store",
    "run_agent_task_sync",
    "run_durable",
]
