"""LangGraph on Perdure: a checkpointer in any store, and graphs that answer durable turns.

Needs `pip install 'perdure[langgraph]'`.
"""

from __future__ import annotations

try:
    from perdure.engines.langgraph.saver import PerdureSaver
    from perdure.engines.langgraph.turns import GraphTurns
except ModuleNotFoundError as error:
    raise ImportError("graphs need LangGraph: pip install 'perdure[langgraph]'") from error

__all__ = ["GraphTurns", "PerdureSaver"]
