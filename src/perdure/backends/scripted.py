"""A backend that needs no network: canned conversations for people, exact scripts for tests."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Final, NamedTuple

from perdure.backends.canned import canned_answer, content_text
from perdure.backends.protocol import Prompt
from perdure.backends.telling import telling
from perdure.core.frames import DELTA_KINDS, Frame, upstream_end, usage

TOOL_TOKENS: Final = 12
"""A canned tool takes as long as this many tokens."""

_PIECE = re.compile(r" ?\w{1,6}|[^\w\s]{1,3}|\s+")


class Pause(NamedTuple):
    """A moment of silence in a script."""

    pause_ms: float


ScriptItem = Frame | Exception | Pause | asyncio.Event
"""A frame is yielded, an exception raised, a pause slept through, an event waited for."""

Script = Iterable[ScriptItem] | Callable[[Prompt], Iterable[ScriptItem]]


def word_pieces(text: str) -> list[str]:
    """Return the tokens of this backend: short pieces of words that join to `text` again."""
    return _PIECE.findall(text)


class ScriptedBackend:
    """Answers offline, the same question always with the same frames.

    Without a script it holds a small conversation: it picks an answer by what the last user
    message asks for (weather, a sum, code, a table, languages, a long story), quotes the message
    and counts the earlier turns. Every token waits for `token_delay_ms` milliseconds.

    `script` gives the frames instead: a sequence that is played for every call, or a function
    that gets the prompt. It is played as it stands: no `usage` or `upstream_end` is added.
    `calls` counts the calls that were begun.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        token_delay_ms: float = 0,
        model: str = "scripted-1",
    ) -> None:
        self.name = "scripted"
        self.model = model
        self.calls = 0
        self._script = script if script is None or callable(script) else tuple(script)
        self._token_delay = token_delay_ms / 1_000

    def stream(self, prompt: Prompt) -> AsyncGenerator[Frame, None]:
        """Yield the answer to `prompt`, token by token."""
        asked = prompt.model or self.model
        return telling(self._answer(prompt), provider=self.name, model=asked)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to give back."""

    async def _answer(self, prompt: Prompt) -> AsyncGenerator[Frame, None]:
        self.calls += 1
        for item in self._items(prompt):
            match item:
                case Frame():
                    if item.kind in DELTA_KINDS:
                        await asyncio.sleep(self._token_delay)
                    yield item
                case Pause():
                    await asyncio.sleep(item.pause_ms / 1_000)
                case asyncio.Event():
                    await item.wait()
                case _:
                    raise item

    def _items(self, prompt: Prompt) -> Iterable[ScriptItem]:
        if self._script is None:
            return self._conversation(prompt)
        return self._script(prompt) if callable(self._script) else self._script

    def _conversation(self, prompt: Prompt) -> Iterator[ScriptItem]:
        tokens_in = sum(_count(content_text(message.get("content"))) for message in prompt.messages)
        tokens_out = tokens_reasoning = 0
        for frame in canned_answer(prompt.messages):
            if frame.kind == "tool_result":
                yield Pause(self._token_delay * 1_000 * TOOL_TOKENS)
                tokens_in += _count(json.dumps(frame.data["result"]))
            elif frame.kind == "tool_call":
                tokens_out += _count(json.dumps(frame.data["args"]))
            if frame.kind not in DELTA_KINDS:
                yield frame
                continue
            pieces = word_pieces(frame.data["delta"])
            tokens_out += len(pieces)
            tokens_reasoning += len(pieces) if frame.kind == "reasoning" else 0
            for piece in pieces:
                yield Frame(0, 0, frame.kind, {**frame.data, "delta": piece})
        yield usage(
            provider=self.name,
            model=prompt.model or self.model,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            tokens_reasoning=tokens_reasoning,
        )
        yield upstream_end("stop")


def _count(text: str) -> int:
    return len(word_pieces(text))
