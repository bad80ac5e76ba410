"""GraphTurns: a LangGraph graph as the producer of durable chat turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.types import Command, StateSnapshot

from perdure.core import frames
from perdure.core.frames import Frame
from perdure.core.records import JsonValue, StepKind
from perdure.engines.langgraph.index import Base
from perdure.engines.langgraph.nodes import Graph, GraphWork, shown_as, with_steps
from perdure.engines.langgraph.pinned import PinnedSaver
from perdure.engines.langgraph.saver import PerdureSaver
from perdure.engines.showing import Showing
from perdure.errors import UsageError
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of

INTERRUPT_FRAME: Final = "interrupt"
"""The name of the `data` frame that says what a graph asks a human."""

InputOf = Callable[[Turn, StateSnapshot], Any]
"""Makes of a turn and the state of its thread what the graph is invoked with."""


class GraphTurns:
    """Answers durable turns by a graph: `ChatTurnEngine(store, produce=GraphTurns(graph))`.

    The graph is compiled with a PerdureSaver on the engine's store; the session of a turn is its
    thread, and its user the thread's owner. Each node is a step of the turn: what it returned is
    recorded once, with the frames that it showed, and a node that was interrupted is the only one
    to run again. The thread's new checkpoint is saved once, when the graph has run; a turn that
    fails or is stopped leaves the thread as it was, and another answer to a turn begins where that
    turn began.

    Readers see the tokens of LangChain chat models, and what nodes give to LangGraph's stream
    writer: a Frame as it is, a str as text, anything else in a `data` frame named "custom". An
    `interrupt()` is shown as a `data` frame, and the next turn's message resumes it.

    `kinds` says of nodes by name what kind of step they are: "llm" for those that ask a model
    (their tokens and costs are counted), "tool" for those whose effect must not happen twice (a
    turn that was interrupted in one fails), else "logic". `input_of` says what the graph gets.
    Nodes of subgraphs that are nodes are steps too, named "outer:inner" in `kinds`.

    Raises UsageError for a graph without a PerdureSaver.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        kinds: Mapping[str, StepKind] | None = None,
        input_of: InputOf | None = None,
        config: RunnableConfig | None = None,
    ) -> None:
        saver = graph.checkpointer
        if not isinstance(saver, PerdureSaver):
            raise UsageError(
                "the graph must be compiled with a PerdureSaver on the engine's store: "
                "builder.compile(checkpointer=PerdureSaver(store))"
            )
        self._saver = saver
        self._graph = with_steps(graph)
        self._kinds: Mapping[str, StepKind] = kinds or {}
        self._input_of = input_of or message_or_answer
        self._config = config or {}

    async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        """Answer a turn."""
        session_id = turn.identity.session_id
        threads = self._saver.threads.view(turn.identity.tenant_id, turn.identity.user_id)
        run_id = run_id_of(turn.identity)

        async def begin() -> list[JsonValue]:
            return [*await threads.base_of(session_id, turn.identity.turn_index)]

        base = Base(*await turn.step("langgraph: begin", begin))
        pinned = PinnedSaver(self._saver, threads, base)
        recorded = await threads.store.read_steps(run_id)
        showing = Showing()
        work = GraphWork(turn, showing, self._saver.serde, self._kinds, recorded)
        ended: list[StateSnapshot] = []

        async def run() -> None:
            graph = self._graph.copy({"checkpointer": pinned})
            config: Any = {
                **self._config,
                "configurable": {**self._config.get("configurable", {}), "thread_id": session_id},
            }
            given = self._input_of(turn, await graph.aget_state(config))
            with work.current():
                # "messages" has chat models stream; what is shown comes from the nodes themselves.
                async for _ in graph.astream(
                    given, config, stream_mode="messages", durability="exit"
                ):
                    pass
            ended.append(await graph.aget_state(config))

        async for frame in showing.frames(run()):
            yield frame
        row = [{**entry, "turn": [turn.identity.turn_index, run_id]} for entry in pinned.entries]
        if row:
            await turn.step("langgraph: save", lambda: threads.save_turn(session_id, row, base))
        for asked in ended[0].interrupts:
            yield frames.data(INTERRUPT_FRAME, {"id": asked.id, "value": shown_as(asked.value)})


def message_or_answer(turn: Turn, state: StateSnapshot) -> Any:
    """Return the user's message, or the answer to what the graph has asked."""
    if state.interrupts:
        return Command(resume=turn.user_message)
    message = {"role": "user", "content": turn.user_message, "id": run_id_of(turn.identity)}
    return {"messages": [message]}
