"""Pydantic AI on Perdure: one capability that makes agents durable, and agents that answer turns.

Needs `pip install 'perdure[pydantic-ai]'`.
"""

from __future__ import annotations

try:
    from perdure.engines.pydantic_ai.durability import PerdureDurability
    from perdure.engines.pydantic_ai.operations import StepConfig
    from perdure.engines.pydantic_ai.turns import AgentTurns
    from perdure.engines.pydantic_ai.work import durably
except ModuleNotFoundError as error:
    raise ImportError("agents need Pydantic AI: pip install 'perdure[pydantic-ai]'") from error

__all__ = ["AgentTurns", "PerdureDurability", "StepConfig", "durably"]
