"""Perdure on Restate: its workflows run our tasks and turns, its objects keep the sessions.

Needs `pip install 'perdure[restate]'`.
"""

from __future__ import annotations

from perdure.engines.restate.sessions import RestateSessions, stored_id_of
from perdure.engines.restate.tasks import run_on_restate, task_workflow

__all__ = ["RestateSessions", "run_on_restate", "stored_id_of", "task_workflow"]
