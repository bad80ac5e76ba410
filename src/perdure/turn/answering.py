"""The producer that most products begin with: ask a model, with the conversation so far."""

from __future__ import annotations

from collections.abc import AsyncIterator

from perdure.backends.protocol import Backend, Prompt
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.turn.handout import Turn


class BackendProducer:
    """A producer that answers each turn by one call of `backend`.

    The model is given `instructions` (as the system message), the history of the turn and the
    user's message; the turn's own `model` counts before that of the backend. An attempt after a
    crash asks again, under the same idempotency key. `provider` and `model` stand in the usage
    row that is written before the call, so that a bill whose answer was lost can be found.
    """

    def __init__(self, backend: Backend, *, instructions: str | None = None) -> None:
        self.provider = backend.name
        self.model = backend.model
        self._backend = backend
        self._instructions = instructions

    async def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        messages: list[dict[str, JsonValue]] = []
        if self._instructions is not None:
            messages.append({"role": "system", "content": self._instructions})
        messages.extend(dict(message) for message in turn.history)
        messages.append({"role": "user", "content": turn.user_message})
        prompt = Prompt(messages, model=turn.model, idempotency_key=turn.idempotency_key)
        frames = self._backend.stream(prompt)
        try:
            async for frame in frames:
                yield frame
        finally:
            # The call upstream must end with the turn, not when the garbage is collected.
            aclose = getattr(frames, "aclose", None)
            if aclose is not None:
                await aclose()


def answer_with(backend: Backend, *, instructions: str | None = None) -> BackendProducer:
    """Return a producer that answers each turn by one call of `backend`."""
    return BackendProducer(backend, instructions=instructions)
