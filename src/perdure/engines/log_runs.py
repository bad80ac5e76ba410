"""The runs in which a log of rows is kept: begun, found, and ended at once."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, NamedTuple, cast

from perdure.core.changes import EndRun
from perdure.core.identity import canonical_hash, derive_worker_id
from perdure.core.limits import ID_BYTES_MAX
from perdure.core.records import AgentTaskSpec, RunManifest, RunRecord, SessionKey
from perdure.core.transitions import RESTING_STATES
from perdure.errors import LeaseHeldError, RunNotFoundError, SessionBusyError, UsageError
from perdure.store.protocol import RunStore

LEASE_MS: Final = 2_000
"""A run of a log works for two writes only: so soon it is free of a process that is lost."""
POLL_MS: Final = 250
PAGE: Final = 200


class LogKind(NamedTuple):
    """What logs are kept for: how their sessions are named, and what their runs say."""

    prefix: str
    project_id: str
    intent: str

    def session_id(self, name: str) -> str:
        """Return the name of a log as a session of the store.

        Where it cannot be part of a name, its hash is.
        """
        session_id = f"{self.prefix}:{name}"
        if session_id.isprintable() and len(session_id.encode()) <= ID_BYTES_MAX - 40:
            return session_id
        return f"{self.prefix}:{canonical_hash(name)}"


class LogRuns:
    """The runs of one log. A generation is a run with rows; others note that it was used."""

    def __init__(self, store: RunStore, kind: LogKind, name: str, owner_id: str | None) -> None:
        self.session_id = kind.session_id(name)
        self._store = store
        self.owner_id = owner_id
        self._manifest = RunManifest(
            kind.project_id, AgentTaskSpec(kind.prefix, kind.intent), input={"name": name}
        )

    async def check_owner(self, run_id: str) -> None:
        """Raise RunNotFoundError if an owner was named, and the log belongs to another one."""
        if self.owner_id is None:
            return
        run = await self._store.read_run(run_id)
        if run is not None and run.owner_id not in (None, self.owner_id):
            raise RunNotFoundError(f"there is no session {self.session_id!r}")

    def id_of(self, generation: int) -> str:
        return f"{self.session_id}~{generation}"

    async def oldest(self) -> int | None:
        """Return the generation that holds: the oldest there is, since newer ones may be half."""
        return min(await self._generations(), default=None)

    async def begin_next(self) -> int:
        """Begin a generation behind all there are."""
        generation = max(await self._generations(), default=0) + 1
        while not await self.begin(self.id_of(generation), generation):
            generation += 1
        return generation

    async def begin(self, run_id: str, turn_index: int) -> bool:
        """Begin and end a run; return whether this call did it, and nobody else before."""
        while True:
            try:
                claim = await self._store.start_or_resume(
                    run_id,
                    self._manifest,
                    worker_id=derive_worker_id(),
                    lease_ms=LEASE_MS,
                    session=SessionKey(
                        self.session_id, turn_index, owner_id=self.owner_id, parent_run_id=""
                    ),
                )
            except LeaseHeldError:
                return False  # It is there, and takes rows.
            except SessionBusyError:
                await self._end_others()
                continue
            if claim.lease is not None:
                await self._store.write(claim.lease, EndRun("completed"))
            return claim.lease is not None

    async def delete(self, run_id: str) -> None:
        """Delete a run; one that somebody begins just now stays."""
        with suppress(UsageError):
            await self._store.delete(run_id)

    async def all(self) -> list[RunRecord]:
        """Return the runs of the log."""
        found: list[RunRecord] = []
        after: str | None = None
        while page := await self._store.list_runs(
            session_id=self.session_id, after=after, limit=PAGE
        ):
            found += page
            after = page[-1].run_id
        return found

    async def _generations(self) -> list[int]:
        prefix = f"{self.session_id}~"
        numbers = [run.run_id.removeprefix(prefix) for run in await self.all()]
        return [int(number) for number in numbers if number.isdecimal()]

    async def _end_others(self) -> None:
        """End what a process has begun and not ended, as soon as it is free."""
        for run in await self.all():
            if run.state in RESTING_STATES:
                continue
            try:
                claim = await self._store.start_or_resume(
                    run.run_id, self._manifest, worker_id=derive_worker_id(), lease_ms=LEASE_MS
                )
            except LeaseHeldError:
                await self._store.wait_for_change(run.run_id, timeout_ms=POLL_MS)
            except RunNotFoundError:
                continue  # Somebody deleted it.
            else:
                if claim.lease is not None:
                    await self._store.write(claim.lease, EndRun("completed"))


async def names_of(store: RunStore, kind: LogKind) -> list[str]:
    """Return the logs of the store's tenant; it looks at every run there is."""
    found: dict[str, None] = {}
    after: str | None = None
    while page := await store.list_runs(after=after, limit=PAGE):
        for run in page:
            if run.project_id == kind.project_id and run.manifest is not None:
                found[cast("str", run.manifest.input["name"])] = None
        after = page[-1].run_id
    return [*found]
