"""What the cases of a backend work with: fresh backends, by what they are to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal

from perdure.agent.backend import AgentExecutionBackend

Plan = Literal["answers", "fails", "hangs"]

OpenBackend = Callable[[Plan], AbstractAsyncContextManager[AgentExecutionBackend]]


class BackendLab:
    """Backends to be tested, as many as a case wants.

    `open_backend(plan)` gives a fresh backend in an async context manager (`nullcontext(backend)`
    where nothing is to be closed). By its plan, each call of the backend

    - `answers`: tells the same answer every time, with some text, to its end,
    - `fails`: tells some text, then fails as a broken connection does,
    - `hangs`: tells some text, and then nothing more.
    """

    def __init__(self, open_backend: OpenBackend) -> None:
        self._open_backend = open_backend

    def backend(self, plan: Plan = "answers") -> AbstractAsyncContextManager[AgentExecutionBackend]:
        """Return a fresh backend that does as planned."""
        return self._open_backend(plan)
