"""What the cases of a backend work with: fresh backends, by what they are to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal

from perdure.agent.backend import AgentExecutionBackend

Plan = Literal["answers", "fails", "hangs"]

OpenBackend = Callable[[Plan], AbstractAsyncContextManager[AgentExecutionBackend]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedAnswer:
    """What a backend is to tell when it `answers`; what is None is not looked at.

    `tools` are the names of the tools that it calls, in order; the tokens are those of all its
    model calls together. When it fails or hangs it tells a beginning of `text`.
    """

    text: str | None = None
    tools: tuple[str, ...] | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


class BackendLab:
    """Backends to be tested, as many as a case wants.

    `open_backend(plan)` gives a fresh backend in an async context manager (`nullcontext(backend)`
    where nothing is to be closed). By its plan, each call of the backend

    - `answers`: tells the same answer every time, with some text, to its end,
    - `fails`: tells some text, then fails as a broken connection does,
    - `hangs`: tells some text, and then nothing more.

    `answer` is what it answers, for the cases that hold it to that: without it nobody sees that
    a piece is lost or told twice, or that usage is not told.
    """

    def __init__(self, open_backend: OpenBackend, *, answer: PlannedAnswer | None = None) -> None:
        self.answer = answer or PlannedAnswer()
        self._open_backend = open_backend

    def backend(self, plan: Plan = "answers") -> AbstractAsyncContextManager[AgentExecutionBackend]:
        """Return a fresh backend that does as planned."""
        return self._open_backend(plan)
