"""Backends and readers for the tests of streamed tasks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, cast

from perdure.agent.backend import AgentBackendContext, AgentBackendInput, IterableBackend
from perdure.agent.sessions import RuntimeSession
from perdure.agent.stream_events import BackendStreamEvent, FinalEvent, TextDeltaEvent

Step = Any


class Played(IterableBackend):
    """Plays a script: events are yielded, exceptions raised, functions called and awaited.

    `stopped` has the reasons that `stop` was called with, `closed` counts ended streams.
    """

    def __init__(self, *script: Step, kind: str = "played", **hooks: Any) -> None:
        self.script = script
        self.inputs: list[AgentBackendInput] = []
        self.contexts: list[AgentBackendContext] = []
        self.stopped: list[str] = []
        self.closed = 0
        hooks.setdefault("stop", self._stop)
        super().__init__(kind, self._play, **hooks)

    def _stop(self, session: RuntimeSession, reason: str) -> None:
        self.stopped.append(reason)

    async def _play(
        self, input: AgentBackendInput, context: AgentBackendContext
    ) -> AsyncIterator[BackendStreamEvent]:
        self.inputs.append(input)
        self.contexts.append(context)
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if callable(step):
                    await cast("Any", step)()
                else:
                    yield step
        finally:
            self.closed += 1


def said(*pieces: str) -> list[TextDeltaEvent]:
    return [TextDeltaEvent(text=piece) for piece in pieces]


async def read(stream: AsyncGenerator[Any, None], into: list[Any] | None = None) -> list[Any]:
    """Read to the end; `into` keeps what came before a failure."""
    events = [] if into is None else into
    async for event in stream:
        events.append(event)
    return events


def types(events: Sequence[Any]) -> str:
    return " ".join(event.type for event in events)


def final_of(events: Sequence[Any]) -> FinalEvent:
    """Return the last event, after checking that it is the only `final`."""
    assert [event.type for event in events].count("final") == 1
    final = events[-1]
    assert isinstance(final, FinalEvent)
    return final
