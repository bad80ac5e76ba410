"""The OpenAI Agents SDK on Perdure: durable runs, agents that answer turns, and sessions.

Needs `pip install 'perdure[openai-agents]'`.
"""

from __future__ import annotations

try:
    from perdure.engines.openai_agents.runs import run_agent
    from perdure.engines.openai_agents.session import PerdureSession
    from perdure.engines.openai_agents.turns import AgentTurns
except ModuleNotFoundError as error:
    raise ImportError(
        "agents need the OpenAI Agents SDK: pip install 'perdure[openai-agents]'"
    ) from error

__all__ = ["AgentTurns", "PerdureSession", "run_agent"]
