"""AgentTurns: agents of the OpenAI SDK as the producer of durable chat turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from agents import Runner, RunResultStreaming

from perdure.agent.tool_approval import NotifyApprover
from perdure.core.frames import Frame
from perdure.core.records import Effect
from perdure.engines.openai_agents.agents import AnyAgent
from perdure.engines.openai_agents.recording import Recorder
from perdure.engines.openai_agents.runs import AgentRun
from perdure.engines.openai_agents.session import PerdureSession
from perdure.engines.showing import Showing
from perdure.store.protocol import RunStore
from perdure.turn.handout import Turn
from perdure.turn.identity import run_id_of


class AgentTurns:
    """Answers durable turns by an agent: `ChatTurnEngine(store, produce=AgentTurns(agent))`.

    Steps and approvals are those of `run_agent`; here a tool is at most once, unless `effects`
    says otherwise, and an approval is waited for in flight. Readers see text and reasoning while
    the model speaks, tool calls and their results, handoffs, and what a human is asked.

    With `store`, the one of the engine, a conversation is kept as the SDK has it, tool calls and
    reasoning included, in a PerdureSession with the turns' session id; without, the agent gets
    the texts of the turns before. A turn that fails or is stopped adds nothing to it.
    """

    def __init__(
        self,
        agent: AnyAgent,
        *,
        store: RunStore | None = None,
        name: str = "agents",
        effects: Mapping[str, Effect] | None = None,
        notify: NotifyApprover | None = None,
        approval_timeout_ms: int | None = None,
        **options: Any,
    ) -> None:
        self._agent = agent
        self._store = store
        self._name = name
        self._effects = effects or {}
        self._notify = notify
        self._timeout_ms = approval_timeout_ms
        self._options = options

    async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        """Answer a turn."""
        showing = Showing()
        recorder = Recorder(turn, self._name, self._effects, turn=turn, showing=showing)
        running = AgentRun(recorder, self._agent, self._options, self._notify, self._timeout_ms)
        session = self._session_of(turn)
        asked: Any = {"role": "user", "content": turn.user_message}
        before: list[Any] = [*turn.history]
        if session is not None:
            before = await session.items_before(turn.identity.turn_index)
        said: list[Any] = []

        async def run(given: Any, options: Mapping[str, Any]) -> RunResultStreaming:
            result = Runner.run_streamed(running.agent, given, **options)
            async for _ in result.stream_events():
                pass  # What readers see comes from the steps, in an order that every attempt keeps.
            said[:] = result.to_input_list()[len(before) :]
            return result

        async def answer() -> None:
            async for frame in running.answer([*before, asked], run):
                await showing.show(frame)

        async for frame in showing.frames(answer()):
            yield frame
        if session is not None:
            place = turn.identity.turn_index
            run_id = run_id_of(turn.identity)
            await turn.step(f"{self._name}: keep", lambda: session.add_turn(said, place, run_id))

    def _session_of(self, turn: Turn) -> PerdureSession | None:
        if self._store is None:
            return None
        identity = turn.identity
        store = self._store.for_tenant(identity.tenant_id) if identity.tenant_id else self._store
        return PerdureSession(store, identity.session_id, owner_id=identity.user_id or None)
