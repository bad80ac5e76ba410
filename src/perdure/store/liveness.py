"""Liveness: how a store tells a holder that is dead from one that is only slow."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from perdure.store.lockfolder import LockFolder


P = ParamSpec("P")
T = TypeVar("T")


class Liveness(Protocol):
    """The lock that a handle holds while its process lives, and a look at the locks of others.

    A name is drawn at random and is locked before any claim carries it, so one that is found
    dead stays dead.
    """

    async def name(self) -> str | None:
        """Return the name of this handle's lock, which is held from now on; None: it has none.

        The leases of a handle without a lock have to lapse.
        """
        ...

    async def dead(self, names: Collection[str]) -> Collection[str]:
        """Return those of `names` whose processes have died. In doubt a name is left out."""
        ...


class NoLiveness:
    """What a store has whose locks cannot tell: every lease has to lapse."""

    async def name(self) -> str | None:
        return None

    async def dead(self, names: Collection[str]) -> Collection[str]:
        return ()


class FolderLiveness:
    """The locks of a folder, for an event loop, which files must not block."""

    def __init__(self, locks: LockFolder) -> None:
        self._locks = locks

    async def name(self) -> str | None:
        if self._locks.is_settled:
            return self._locks.name
        return await _aside(self._locks.take)

    async def dead(self, names: Collection[str]) -> Collection[str]:
        return await _aside(self._locks.dead, names) if names else ()

    def release(self) -> None:
        """Let go of this handle's lock."""
        self._locks.release()


async def _aside(call: Callable[P, T], *values: P.args, **named: P.kwargs) -> T:
    """Return what `call` returns, from a thread if this machine has one more."""
    try:
        return await asyncio.to_thread(call, *values, **named)
    except RuntimeError:
        # A lock is a few calls of the system: better in the loop than not at all.
        return call(*values, **named)


def folder_liveness(path: str) -> FolderLiveness | None:
    """Return the liveness whose locks are in the folder `path`; None where there is no flock."""
    if os.name != "posix":
        return None
    from perdure.store.lockfolder import LockFolder

    return FolderLiveness(LockFolder(path))
