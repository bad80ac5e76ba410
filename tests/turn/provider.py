"""A provider that goes on with an answer whoever listens, and a backend that asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from perdure.backends.protocol import Prompt
from perdure.core.frames import DELTA_KINDS, Frame, upstream_begin
from perdure.core.records import JsonValue
from perdure.errors import BackendTransportError


class Provider:
    """Keeps answers by name. `given` frames of each are there; `give` lets more come."""

    def __init__(self, *answers: Sequence[Frame]) -> None:
        self.prompts: list[Prompt] = []
        self.attached: list[JsonValue] = []
        self.cancelled: list[JsonValue] = []
        self.listeners = 0
        self.given = 0
        self.held_back: str | None = None
        """The answer of which nothing more comes."""
        self.cut: Callable[[Frame], Sequence[Frame]] = lambda frame: (frame,)
        """How a frame is cut when its answer is joined again."""
        self._answers = answers
        self._kept: dict[str, Sequence[Frame]] = {}
        self._news = asyncio.Condition()

    async def give(self, count: int = 1_000) -> None:
        async with self._news:
            self.given += count
            self._news.notify_all()

    def begin(self, prompt: Prompt) -> str:
        self.prompts.append(prompt)
        name = f"answer-{len(self.prompts)}"
        self._kept[name] = self._answers[min(len(self.prompts), len(self._answers)) - 1]
        return name

    def forget(self) -> None:
        """Keep none of the answers any more."""
        self._kept.clear()

    def _is_given(self, name: str, position: int) -> bool:
        return position < self.given and name != self.held_back

    async def listen(self, name: str, *, again: bool = False) -> AsyncIterator[Frame]:
        if name not in self._kept:
            raise BackendTransportError("no such answer", backend="provider", status=404)
        self.listeners += 1
        try:
            yield upstream_begin({"answer": name})
            for position, frame in enumerate(self._kept[name]):
                async with self._news:
                    await self._news.wait_for(partial(self._is_given, name, position))
                for piece in self.cut(frame) if again else (frame,):
                    yield piece
        finally:
            self.listeners -= 1


def in_halves(frame: Frame) -> Sequence[Frame]:
    if frame.kind not in DELTA_KINDS:
        return (frame,)
    delta = frame.data["delta"]
    half = len(delta) // 2
    pieces = (delta[:half], delta[half:])
    return [frame._replace(data={**frame.data, "delta": piece}) for piece in pieces if piece]


class ProvidedBackend:
    """Asks a provider; leaving an answer does not end it."""

    def __init__(self, provider: Provider) -> None:
        self.name = "provider"
        self.model: str | None = None
        self._provider = provider

    def stream(self, prompt: Prompt) -> AsyncIterator[Frame]:
        return self._provider.listen(self._provider.begin(prompt))

    def attach(self, handle: JsonValue) -> AsyncIterator[Frame]:
        self._provider.attached.append(handle)
        return self._provider.listen(handle["answer"], again=True)

    async def cancel(self, handle: JsonValue) -> None:
        self._provider.cancelled.append(handle)

    async def aclose(self) -> None:
        """Do nothing."""
