"""LangGraph on Perdure: a checkpointer in any store. Needs `pip install 'perdure[langgraph]'`."""

from __future__ import annotations

try:
    from perdure.engines.langgraph.saver import PerdureSaver
except ModuleNotFoundError as error:
    raise ImportError("graphs need LangGraph: pip install 'perdure[langgraph]'") from error

__all__ = ["PerdureSaver"]
