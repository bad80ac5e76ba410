"""Opening the store that a command is about, and finding the run that it names."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from perdure.cli.arguments import without_password
from perdure.core.effects import monotonic_ms
from perdure.core.identity import check_tenant, logical_id, stored_id
from perdure.core.records import RunRecord
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.opening import open_store, path_of
from perdure.store.protocol import RunStore

BEGIN_HINT: Final = "Name one with --store, or begin one with `perdure serve`."
POLL_MS: Final = 250
"""How long a command waits for a hint that may be lost, before it looks by itself."""


@asynccontextmanager
async def opened(
    options: argparse.Namespace, *, migrate: bool = False
) -> AsyncGenerator[RunStore, None]:
    """Open the store of `--store`, which must be there: to look at one never makes it.

    Raises UsageError, SchemaError (it is not migrated either), StoreError.
    """
    url: str = options.store
    check_is_there(url)
    store = await open_store(url, migrate=migrate)
    try:
        yield store
    finally:
        await store.close()


def check_is_there(url: str) -> None:
    """Raise UsageError if there is no store at the address."""
    if url.startswith("memory:"):
        unseen = UsageError("a store in memory is within the process that made it")
        unseen.hint = "Name another one with --store."
        raise unseen
    path = path_of(url)
    if path is not None and not os.path.exists(path):
        missing = UsageError(f"there is no store at {without_password(url)!r:.200}")
        missing.hint = BEGIN_HINT
        raise missing


class Place(NamedTuple):
    """A run, and the view of its tenant."""

    store: RunStore
    run_id: str
    stored_id: str

    async def read(self) -> RunRecord:
        """Return the run; RunNotFoundError if it is not there."""
        run = await self.store.read_run(self.run_id)
        if run is None:
            raise unknown(self.store.tenant, self.run_id)
        return run

    async def wait_until(
        self, wanted: Callable[[RunRecord], bool], *, timeout_ms: float
    ) -> RunRecord:
        """Return the run once it is as wanted, or as it is when the time is over."""
        deadline_ms = monotonic_ms() + timeout_ms
        while not wanted(run := await self.read()):
            rest_ms = deadline_ms - monotonic_ms()
            if rest_ms <= 0:
                break
            pause_ms = max(1, round(min(rest_ms, POLL_MS)))
            await self.store.wait_for_change(self.run_id, timeout_ms=pause_ms)
        return run


def place_of(store: RunStore, options: argparse.Namespace) -> Place:
    """Return the run that RUN and `--tenant` name."""
    tenant, run_id = logical_id(options.run_id)
    if options.tenant is not None:
        if tenant not in ("", options.tenant):
            raise UsageError(f"{options.run_id!r:.200} is not of the tenant {options.tenant!r:.80}")
        tenant = check_tenant(options.tenant)
    return Place(store.for_tenant(tenant), run_id, stored_id(tenant, run_id))


def unknown(tenant: str, run_id: str) -> RunNotFoundError:
    """Return the error that says where was looked for a run."""
    where = f"tenant {tenant!r}" if tenant else "the default tenant"
    return RunNotFoundError(f"there is no run {run_id!r} of {where}")


def ran(work: Callable[[argparse.Namespace], Awaitable[int]], options: argparse.Namespace) -> int:
    """Run the coroutine of a command to its end, and return its exit code."""

    async def whole() -> int:
        return await work(options)

    return asyncio.run(whole())
