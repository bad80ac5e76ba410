"""The producer that most products begin with: ask a model, with the conversation so far."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from perdure.backends.protocol import Backend, Prompt
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.turn.handout import Turn


def answer_with(
    backend: Backend, *, instructions: str | None = None
) -> Callable[[Turn], AsyncIterator[Frame]]:
    """Return a producer that answers each turn by one call of `backend`.

    The model is given `instructions` (as the system message), the history of the turn and the
    user's message; the turn's own `model` counts before that of the backend. An attempt after a
    crash asks again, under the same idempotency key.
    """

    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        messages: list[dict[str, JsonValue]] = []
        if instructions is not None:
            messages.append({"role": "system", "content": instructions})
        messages.extend(dict(message) for message in turn.history)
        messages.append({"role": "user", "content": turn.user_message})
        prompt = Prompt(messages, model=turn.model, idempotency_key=turn.idempotency_key)
        frames = backend.stream(prompt)
        try:
            async for frame in frames:
                yield frame
        finally:
            # The call upstream must end with the turn, not when the garbage is collected.
            aclose = getattr(frames, "aclose", None)
            if aclose is not None:
                await aclose()

    return produce
