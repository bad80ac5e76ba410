"""AgentTurns: an agent of Pydantic AI as the producer of durable chat turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from pydantic_ai import Agent, ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart

from perdure.core import frames
from perdure.core.frames import Frame
from perdure.engines.pydantic_ai.durability import PerdureDurability
from perdure.engines.pydantic_ai.shown import plain
from perdure.engines.pydantic_ai.work import AgentWork, working
from perdure.engines.showing import Showing
from perdure.errors import UsageError
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of

OUTPUT_FRAME: Final = "output"
"""The name of the `data` frame with an agent's output that is no text."""

AnyAgent = Agent[Any, Any]


class AgentTurns:
    """Answers durable turns by an agent: `ChatTurnEngine(store, produce=AgentTurns(agent))`.

    Readers see text and reasoning while the model speaks, tool calls and their results, what a
    human is asked and decides, and in a `data` frame "output" what the agent returns that is no
    text. What was recorded is not asked for again after a crash, and a tool is at most once unless
    its metadata say otherwise.

    `history_of` gives the messages before the turn's own (the texts of the turns before), and
    `deps_of` the agent's dependencies; other `options` are those of `Agent.run`.

    Raises UsageError for an agent without a PerdureDurability.
    """

    def __init__(
        self,
        agent: AnyAgent,
        *,
        history_of: Callable[[Turn], Sequence[ModelMessage]] | None = None,
        deps_of: Callable[[Turn], Any] | None = None,
        **options: Any,
    ) -> None:
        if PerdureDurability.from_agent(agent) is None:
            raise UsageError(
                f"the agent {agent.name!r:.60} has no PerdureDurability among its capabilities"
            )
        self._agent = agent
        self._history_of = history_of or texts_before
        self._deps_of = deps_of
        self._options = options

    async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        """Answer a turn."""
        showing = Showing()
        work = AgentWork(turn, run_id_of(turn.identity), turn=turn, showing=showing)

        async def answer() -> None:
            options = dict(self._options)
            if self._deps_of is not None:
                options["deps"] = self._deps_of(turn)
            with working(work):
                result = await self._agent.run(
                    turn.user_message, message_history=self._history_of(turn), **options
                )
            if not isinstance(result.output, str):
                await showing.show(frames.data(OUTPUT_FRAME, plain(result.output)))

        async for frame in showing.frames(answer()):
            yield frame


def texts_before(turn: Turn) -> list[ModelMessage]:
    """Return what was said in the turns before, without the tools that were used."""
    messages: list[ModelMessage] = []
    for message in turn.history:
        said = str(message["content"])
        if message["role"] == "user":
            messages.append(ModelRequest(parts=[UserPromptPart(said)]))
        elif said:
            messages.append(ModelResponse(parts=[TextPart(said)]))
    return messages
