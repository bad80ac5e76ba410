"""Rows of runtime runs in the database of the durable runs, in any RunStore."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from perdure.agent.runtime_run import RuntimeRunRow
from perdure.core.records import AgentTaskSpec, RunManifest
from perdure.core.wire import from_wire, to_wire
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.errors import LeaseHeldError, RunNotFoundError
from perdure.store.protocol import RunStore

RUN_PREFIX: Final = "agent-run:"
"""How the id of the run begins that keeps a row."""

_KEY: Final = "row:{:010d}"


class DurableRunRows:
    """Keeps the rows of runtime runs in a RunStore; hand it to `start_runtime_run` as `adapter`.

    Each row is a run of its own (`agent-run:<id>`). A row that is written again stands behind
    the earlier one, and counts in its place.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store

    async def upsert(self, row: RuntimeRunRow) -> None:
        """Keep the row, in place of what was kept under its id."""
        run_id, wire = RUN_PREFIX + row.id, to_wire(row)
        task = AgentTaskSpec(row.task_id, "Keep the row of a run of an agent")
        # Who else writes it for the first time holds its lease: then it is there.
        with suppress(LeaseHeldError):
            await run_durable(
                self._store,
                run_id=run_id,
                manifest=RunManifest("agent-runs", task),
                task=_nothing,
            )
        number = len((await self._store.read_details(run_id)).events) + 1
        while not (await self._store.emit_event(run_id, _KEY.format(number), wire))[0]:
            number += 1

    async def get(self, id: str) -> RuntimeRunRow | None:
        """Return the row of the run, or None."""
        try:
            events = (await self._store.read_details(RUN_PREFIX + id)).events
        except RunNotFoundError:
            return None
        newest = max(events, key=lambda event: event.key, default=None)
        return None if newest is None else from_wire(RuntimeRunRow, newest.payload)


async def _nothing(context: DurableContext) -> None:
    """A run that keeps a row has nothing to do."""
