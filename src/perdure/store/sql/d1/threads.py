"""Connections for a thread that is not the loop's: leases are renewed through them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from perdure.errors import StoreUnavailableError
from perdure.store.sql.d1.batches import Batch, Rows, refused_index, rows_of_list
from perdure.store.sql.d1.binding import BlockingBinding
from perdure.store.sql.d1.failures import translated
from perdure.store.sql.database import Refused, Row, Statement

ANSWER_S: Final = 10
"""So long a thread waits for the loop."""


class BlockingConnection:
    """Runs lists one by one, each once: a beat that failed is followed by the next."""

    def __init__(
        self,
        binding: BlockingBinding,
        render: Callable[[Sequence[Statement]], Batch],
        *,
        target: str,
    ) -> None:
        self._binding = binding
        self._render = render
        self._target = target

    def run(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run one list as one transaction. Raises Refused, StoreError."""
        batch = self._render(statements)
        try:
            return rows_of_list(statements, batch, self._binding.batch(batch.sent))
        except Refused:
            raise
        except Exception as error:
            index = refused_index(error)
            if index is not None:
                raise Refused(index) from None
            raise translated(error, self._target) from error

    def close(self) -> None:
        self._binding.close()


class Running(Protocol):
    """What runs lists on its loop."""

    def run(self, statements: Sequence[Statement]) -> Awaitable[Rows]: ...


class LoopConnection:
    """Has the loop run lists, since what it uses belongs to it."""

    def __init__(self, running: Running, loop: asyncio.AbstractEventLoop) -> None:
        self._running = running
        self._loop = loop

    def run(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run one list as one transaction. Raises Refused, StoreError."""

        async def run() -> Rows:
            return await self._running.run(statements)

        work = run()
        try:
            answer = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise StoreUnavailableError("the event loop of the store is closed") from error
        try:
            return answer.result(timeout=ANSWER_S)
        except TimeoutError as error:
            answer.cancel()
            raise StoreUnavailableError(
                f"the event loop of the store has been busy for {ANSWER_S} s"
            ) from error

    def close(self) -> None:
        """Do nothing: the connection is the loop's."""
