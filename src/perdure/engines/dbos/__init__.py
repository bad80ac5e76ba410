"""Perdure on DBOS: its workflows run our tasks, its steps, timers and messages stand behind them.

Needs `pip install 'perdure[dbos]'`.
"""

from __future__ import annotations

from perdure.engines.dbos.tasks import emit, run_on_dbos, task_workflow

__all__ = ["emit", "run_on_dbos", "task_workflow"]
