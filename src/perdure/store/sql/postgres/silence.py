"""How long a server may say nothing before its connection is given up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict

from perdure.core.effects import monotonic_ms
from perdure.store.sql.database import Statement

ANSWER_MS: Final = 12_000
"""A connection on which an answer is due, and nothing came for so long, is given up."""
CONNECT_TIMEOUT_S: Final = 10
LENGTHY: Final = frozenset(
    {
        "count_deliveries",
        "count_runs",
        "delete_run",
        "expire_frames",
        "find_newest_calls",
        "find_session_unpriced",
        "find_unpriced",
        "remove_ended",
        "remove_session",
        "sum_runs",
        "sum_sessions",
        "sum_usage",
    }
)
"""Statements whose work grows with the store: the kernel alone watches over their connection."""

# A network that is gone is noticed by the kernel too, also where no answer is due: 10 s of quiet,
# then three questions in 15 s; or 15 s in which what was sent is not acknowledged.
_NETWORK: Final = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

T = TypeVar("T")


def silent() -> errors.ConnectionTimeout:
    """Return what is said of a connection that was given up."""
    return errors.ConnectionTimeout(f"no answer for {ANSWER_MS / 1_000:g} s")


def is_silent(error: BaseException) -> bool:
    """Return whether nobody answers, so that whoever waits behind would wait in vain."""
    return isinstance(error, errors.ConnectionTimeout)


def takes_long(statements: Sequence[Statement]) -> bool:
    """Return whether the server may work on this list for longer than `ANSWER_MS`."""
    return not LENGTHY.isdisjoint([statement.name for statement in statements])


def network_parameters(conninfo: str) -> dict[str, int]:
    """Return libpq's parameters of the network that `conninfo` does not set itself."""
    given = conninfo_to_dict(conninfo)
    return {name: value for name, value in _NETWORK.items() if name not in given}


@asynccontextmanager
async def answered(
    connection: psycopg.AsyncConnection[tuple[Any, ...]],
) -> AsyncGenerator[None, None]:
    """Cut the connection off if the block lasts longer than `ANSWER_MS`."""
    is_cut = False

    def cut() -> None:
        nonlocal is_cut
        is_cut = True
        # A cancel would wait for the server once more.
        with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
            same.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(ANSWER_MS / 1_000, cut)
    try:
        yield
    except psycopg.Error as error:
        if is_cut:
            raise silent() from error
        raise
    finally:
        timer.cancel()


class ThreadConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection of a thread, whose every wait for the server is limited to `ANSWER_MS`."""

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        return super().wait(_limited(gen, monotonic_ms() + ANSWER_MS), *args, **kwargs)


def _limited(work: PQGen[T], until_ms: float) -> Generator[Any, Any, T]:
    try:
        wanted = next(work)
        while True:
            ready = yield wanted
            if not ready and monotonic_ms() > until_ms:
                work.close()
                raise silent()
            wanted = work.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result
