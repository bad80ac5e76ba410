"""Rows of runtime runs in the database of the durable runs, in any RunStore."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from perdure.agent.kept_runs import has_ended, keep_entry, keep_run, run_for
from perdure.agent.runtime_run import RuntimeRunRow
from perdure.core.records import AgentTaskSpec, RunManifest, SessionKey
from perdure.core.wire import from_wire, to_wire
from perdure.durable.traces import kept_name
from perdure.errors import RunNotFoundError
from perdure.store.protocol import RunStore

RUN_PREFIX: Final = "agent-run:"
"""How the id of the run begins that keeps a row."""

_KEYS: Final = "row:"


class DurableRunRows:
    """Keeps the rows of runtime runs in a RunStore; hand it to `start_runtime_run` as `adapter`.

    Each row is a run of its own (`agent-run:<workspace>/<id>`): rows of two workspaces share
    nothing, also where their ids are the same. A row that is written again stands behind the
    earlier one, and counts in its place.

    Rows belong to the store's tenant (`store.for_tenant`), and to `owner_id` if one is given: then
    `erase_user` deletes them, and to every other owner there is no such row.
    """

    def __init__(self, store: RunStore, *, owner_id: str | None = None) -> None:
        self._store = store
        self._owner_id = owner_id

    async def upsert(self, row: RuntimeRunRow) -> None:
        """Keep the row, in place of what its workspace has kept under its id.

        Raises RunNotFoundError for an id whose row belongs to another owner.
        """
        run_id = row_run_id(row.workspace_id, row.id)
        if not has_ended(await run_for(self._store, run_id, self._owner_id)):
            task = AgentTaskSpec(row.task_id, "Keep the row of a run of an agent")
            manifest = RunManifest("agent-runs", task)
            await keep_run(self._store, run_id, manifest, session=self._session(run_id))
        number = len((await self._store.read_details(run_id)).events) + 1
        await keep_entry(self._store, run_id, _KEYS, number, to_wire(row))

    async def get(self, id: str, *, workspace_id: str) -> RuntimeRunRow | None:
        """Return the row of the workspace's run, or None."""
        run_id = row_run_id(workspace_id, id)
        try:
            await run_for(self._store, run_id, self._owner_id)
            events = (await self._store.read_details(run_id)).events
        except RunNotFoundError:
            return None
        newest = max(events, key=lambda event: event.key, default=None)
        return None if newest is None else from_wire(RuntimeRunRow, newest.payload)

    def _session(self, run_id: str) -> SessionKey | None:
        return None if self._owner_id is None else SessionKey(run_id, 0, owner_id=self._owner_id)


def row_run_id(workspace_id: str, id: str) -> str:
    """Return the id of the run that keeps the row of a workspace's run."""
    return kept_name(RUN_PREFIX, f"{quote(workspace_id, safe='')}/{id}")
