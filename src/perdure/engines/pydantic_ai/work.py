"""The run or the turn that agents work in, and the numbers of what they do there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from perdure.agent.calls import Recording
from perdure.durable.context import DurableContext
from perdure.durable.scope import may_begin_steps
from perdure.engines.showing import Showing
from perdure.errors import UsageError
from perdure.turn.handout import Turn

_work: ContextVar[AgentWork | None] = ContextVar("perdure_agent_work", default=None)

CALL: Final = "tool-call"
"""What Pydantic AI calls a part of an answer that asks for a function tool."""


class AgentWork:
    """A durable run, or a turn with what shows its frames, while agents work in it.

    Each model request has a number in it, and each tool call that of its request and its place
    there: so a step's intent is that of one call, whichever is begun first.
    """

    def __init__(
        self,
        run: Recording,
        run_id: str,
        *,
        turn: Turn | None = None,
        showing: Showing | None = None,
    ) -> None:
        self.run = run
        self.run_id = run_id
        self.turn = turn
        self.showing = showing
        self.is_claimed = False
        """Whether an agent with a PerdureDurability has run in it."""
        self._counts = Counter[str]()
        self._numbers: dict[str, str] = {}

    def next_number(self, what: str) -> int:
        """Return the next number of what is counted by this name."""
        self._counts[what] += 1
        return self._counts[what]

    def note_calls(self, agent: str, request: int, response: Mapping[str, Any]) -> None:
        """Number the tool calls of a recorded response to a request of the agent."""
        calls = [part for part in response["parts"] if part["part_kind"] == CALL]
        for place, call in enumerate(calls, 1):
            self._numbers[f"{agent} {call['tool_call_id']}"] = f"{request}.{place}"

    def number_of(self, agent: str, call: str | None) -> str:
        """Return the number of a tool call by its id; one that no model made has its id."""
        return self._numbers.get(f"{agent} {call}", f"0.{call}")


def current_work() -> AgentWork | None:
    """Return the work that an agent's operations are steps of, None in the body of a step.

    An agent that is run by a step, a tool for instance, is part of what that step does.
    """
    return _work.get() if may_begin_steps() else None


def claim_work() -> None:
    """Note that an agent with a PerdureDurability runs, be it in the body of a step."""
    work = _work.get()
    if work is not None:
        work.is_claimed = True


@contextmanager
def working(work: AgentWork) -> Generator[None]:
    """Make it the work that agents belong to."""
    token = _work.set(work)
    try:
        yield
    finally:
        _work.reset(token)


@contextmanager
def durably(context: DurableContext) -> Generator[None]:
    """Make the agents that run within, and have a PerdureDurability, part of a durable run.

    Agents may run one after the other, and call others in their tools. Those that are to run at
    once need a run each, or a step: their steps would take positions in an order that nothing
    fixes, which parks the run when it is replayed.

    Raises UsageError at its end if no agent with a PerdureDurability has run within, since what
    others did there, outside of any step, is not recorded.
    """
    work = AgentWork(context, context.run_id)
    with working(work):
        yield
    if not work.is_claimed:
        raise UsageError(
            "no agent within durably() has a PerdureDurability: "
            "Agent(…, capabilities=[PerdureDurability()])"
        )
