"""What the cases of a host work with: a worker that can be killed, and runs of tasks on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from perdure.core.records import JsonValue

HostState = Literal["completed", "failed", "cancelled"]


class HostEnd(NamedTuple):
    """How a run ended: with a value, or with the text of what went wrong."""

    state: HostState
    value: JsonValue = None
    message: str = ""


class HostLab(Protocol):
    """An engine, and a worker on it, in a process of its own, that serves `HOST_TASKS`.

    `folder` is on the machine of the worker: the notes of runs lie there.
    """

    @property
    def folder(self) -> Path: ...

    async def start(self, task: str, run_id: str, input: Mapping[str, JsonValue]) -> None:
        """Begin a run, which no other run of this lab has the id of."""
        ...

    async def emit(self, run_id: str, key: str, payload: JsonValue) -> None:
        """Send the run an event; it may not have begun to wait for it."""
        ...

    async def cancel(self, run_id: str) -> None:
        """Have the engine cancel, or stop, the run."""
        ...

    async def end(self, run_id: str) -> HostEnd:
        """Return how the run ended, once it has."""
        ...

    async def kill_worker(self) -> None:
        """Kill the worker's process without a warning (SIGKILL), and return when it is dead."""
        ...

    async def start_worker(self) -> None:
        """Start another worker in its place."""
        ...


NewHostLab = Callable[[], AbstractAsyncContextManager[HostLab]]
"""Makes a lab with a worker that is ready; a case is run within it. It may be the same lab again:
no case begins a run under an id that another one has used."""
