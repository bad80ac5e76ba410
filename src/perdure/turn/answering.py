"""The producer that most products begin with: ask a model, with the conversation so far."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from perdure.backends.protocol import AttachableBackend, Backend, Prompt
from perdure.core.frames import Frame
from perdure.core.records import JsonValue
from perdure.errors import BackendTransportError
from perdure.turn.handout import Turn
from perdure.turn.joining import join

logger = logging.getLogger("perdure.turn")

GO_ON: Final = (
    "Your last answer was cut off by a technical failure. Go on exactly where it ended: do not "
    "repeat any of it, do not begin anew, and do not mention the interruption."
)
"""What a model is asked that may not be handed the beginning of its own answer."""

Message = Mapping[str, JsonValue]


class BackendProducer:
    """A producer that answers each turn by one call of `backend`.

    The model is given `instructions` (as the system message), the history of the turn and the
    user's message; the turn's own `model` counts before that of the backend. An attempt after a
    crash asks again, under the same idempotency key. `provider` and `model` stand in the usage
    row that is written before the call, so that a bill whose answer was lost can be found.

    An interrupted answer is joined again (`attach`) if the backend is an AttachableBackend. With
    `on_interrupted="continue"` (`continue_partial`) the model is shown what there is of it and
    asked by a user message to go on. `accepts_prefill` declares that the model goes on by itself
    behind a last message of the assistant, as few do, so that it need not be asked.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        instructions: str | None = None,
        accepts_prefill: bool = False,
    ) -> None:
        self.provider = backend.name
        self.model = backend.model
        self._backend = backend
        self._instructions = instructions
        self._accepts_prefill = accepts_prefill

    def __call__(self, turn: Turn) -> AsyncIterator[Frame]:
        return self._answer(Prompt(self._asked(turn), turn.model, turn.idempotency_key))

    async def attach(self, turn: Turn) -> AsyncIterator[Frame] | None:
        """Join the answer upstream; None where the backend cannot, or has another answer."""
        backend = self._backend
        if not isinstance(backend, AttachableBackend):
            return None
        try:
            return await join(backend.attach(turn.upstream), turn.partial)
        except BackendTransportError as error:
            logger.info("an answer cannot be joined again: %s", error)
            return None

    def continue_partial(self, turn: Turn) -> AsyncIterator[Frame]:
        """Ask the model to go on behind what readers have.

        It is another question, so it has another idempotency key, the same for the same partial.
        """
        messages = [*self._asked(turn), *partial_messages(turn.partial.parts)]
        if not self._accepts_prefill:
            messages.append({"role": "user", "content": GO_ON})
        key = f"{turn.idempotency_key}:{len(turn.partial.text)}"
        return self._answer(Prompt(messages, turn.model, key))

    async def cancel(self, handle: JsonValue) -> None:
        """End the answer upstream that nobody waits for."""
        if isinstance(self._backend, AttachableBackend):
            await self._backend.cancel(handle)

    def _asked(self, turn: Turn) -> list[Message]:
        messages: list[Message] = []
        if self._instructions is not None:
            messages.append({"role": "system", "content": self._instructions})
        messages.extend(turn.history)
        messages.append({"role": "user", "content": turn.user_message})
        return messages

    async def _answer(self, prompt: Prompt) -> AsyncIterator[Frame]:
        frames = self._backend.stream(prompt)
        async with AsyncExitStack() as stack:
            # The call upstream must end with the turn, not when the garbage is collected.
            aclose = getattr(frames, "aclose", None)
            if aclose is not None:
                stack.push_async_callback(aclose)
            async for frame in frames:
                yield frame


def partial_messages(parts: Iterable[Mapping[str, JsonValue]]) -> list[Message]:
    """Return the beginning of an answer as messages: its text, and tools that have answered.

    Reasoning, and a tool call without a result, are left out.
    """
    messages: list[Message] = []
    known = list(parts)
    results = {part["call"]: part for part in known if part["k"] == "tool_result"}
    spoken: list[str] = []
    for part in known:
        if part["k"] == "text":
            spoken.append(part["d"])
        elif part["k"] == "tool_call" and part["call"] in results:
            messages += _tool_messages(part, results[part["call"]], "".join(spoken))
            spoken.clear()
    if spoken:
        messages.append({"role": "assistant", "content": "".join(spoken)})
    return messages


def _tool_messages(
    call: Mapping[str, JsonValue], result: Mapping[str, JsonValue], spoken: str
) -> list[Message]:
    function = {"name": call["name"], "arguments": json.dumps(call["args"])}
    calls: list[Any] = [{"id": call["call"], "type": "function", "function": function}]
    told = result["error"] if "error" in result else result["result"]
    return [
        {"role": "assistant", "content": spoken or None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": call["call"], "content": json.dumps(told)},
    ]


def answer_with(
    backend: Backend, *, instructions: str | None = None, accepts_prefill: bool = False
) -> BackendProducer:
    """Return a producer that answers each turn by one call of `backend`.

    `instructions` is the system message. With `on_interrupted="continue"` an interrupted answer is
    gone on with: the model is asked by a user message, unless `accepts_prefill` declares that it
    goes on by itself behind the beginning of its answer.
    """
    return BackendProducer(backend, instructions=instructions, accepts_prefill=accepts_prefill)
