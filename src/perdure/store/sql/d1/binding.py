"""What of D1's binding is used, and how its answers are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol, cast


class D1Statement(Protocol):
    """A statement with its parameters: text or None, where None is NULL."""

    def bind(self, *values: Any) -> D1Statement: ...
    def first(self) -> Awaitable[Any]: ...
    def all(self) -> Awaitable[Any]: ...
    def run(self) -> Awaitable[Any]: ...


class D1Binding(Protocol):
    """The surface of a D1 database as a Worker has it: `env.DB`, or what stands in for it.

    `batch` runs the statements as one transaction and returns one result for each. A result has
    `results`, a list of rows by column, as an attribute or as an item. Whatever it raises is told
    apart by its text.
    """

    def prepare(self, sql: str) -> D1Statement: ...
    def batch(self, statements: Sequence[Any]) -> Awaitable[Any]: ...


class BlockingBinding(Protocol):
    """A connection for one thread that is not the loop's."""

    def batch(self, statements: Sequence[tuple[str, Sequence[str | None]]]) -> Sequence[Any]: ...
    def close(self) -> None: ...


class Connecting(ABC):
    """A binding with connections of its own, also for other threads.

    A class, not a protocol: a JavaScript object may seem to have every attribute.
    """

    @abstractmethod
    def connect(self) -> BlockingBinding:
        """Return a connection for one thread that is not the loop's."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of all connections but those that `connect` has returned."""


def rows_of(result: Any) -> list[tuple[Any, ...]]:
    """Return the rows of one result, the columns in the order in which they were asked for."""
    if isinstance(result, dict):
        result = cast("dict[str, Any]", result)["results"]
    else:
        result = result.results
    found: Sequence[Mapping[str, Any]] = result or ()
    return [tuple(map(_exact, row.values())) for row in found]


def _exact(value: Any) -> Any:
    """Return a number as it is stored: of ours, all are whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
