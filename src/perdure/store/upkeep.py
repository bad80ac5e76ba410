"""What people and programs that look after a store ask of it, beside RunStore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from perdure.core.records import DeliveryRecord, DeliveryState, RunRecord, RunState
from perdure.errors import UsageError
from perdure.store.ledger import Grouping, UsagePage, UsageQuery, UsageSum
from perdure.store.protocol import RunStore


class RunQuery(NamedTuple):
    """Which runs are wanted: those that have everything that is not None here.

    `since` is a moment as it is stored: created then or later.
    """

    tenant: str | None = None
    state: RunState | None = None
    session_id: str | None = None
    handler: str | None = None
    since: str | None = None


class Found(NamedTuple):
    """One page of a search by stored ids; `after` goes on behind it, None: that was all.

    A page may be empty and yet not the last.
    """

    run_ids: Sequence[str]
    after: str | None


class Edge(NamedTuple):
    """The place of a run among all, the newest first: when it was created, then its stored id."""

    created_at: str
    run_id: str


class Survey(NamedTuple):
    """A store at a glance, by its own clock `now`.

    `newest_at` is the latest moment at which a run was written. `due_at` is the earliest moment
    at which a waiting delivery was due, None if none waits.
    """

    now: str
    runs: Mapping[RunState, int]
    newest_at: str | None
    waiting: int
    due_at: str | None
    dead: int


class Upkeep(Protocol):
    """Searches, counts and clean-ups over the runs of all tenants.

    Ids in and out are stored ids, with their tenant (`identity.logical_id` takes them apart).
    """

    async def now(self) -> str:
        """Return the moment that it is by the store's clock."""
        ...

    async def find_runs(
        self, wanted: RunQuery, *, after: str | None = None, limit: int = 50
    ) -> Sequence[RunRecord]:
        """Return the wanted runs, the newest first, behind the run `after`.

        Raises RunNotFoundError for an unknown `after`.
        """
        ...

    async def skip_runs(
        self, count: int, *, tenant: str | None = None, after: str | None = None
    ) -> Edge | None:
        """Return where `count` runs behind the run `after` end, the newest first.

        None: there are not so many. `tenant` counts only its runs. It costs little, so that a
        search can be cut off before it has looked at everything. Raises RunNotFoundError for an
        unknown `after`.
        """
        ...

    async def find_framed(self, ended_by: str, *, after: str | None = None, limit: int) -> Found:
        """Return completed and stopped runs with frames that ended at `ended_by` or before."""
        ...

    async def find_ended(self, ended_by: str, *, after: str | None = None, limit: int) -> Found:
        """Return what `remove_ended` would delete."""
        ...

    async def remove_ended(self, run_ids: Sequence[str], ended_by: str) -> Sequence[str]:
        """Delete those of the runs that are over and done with; return their ids.

        That is what has completed, stopped or failed at `ended_by` or before, has no delivery
        that waits, and is in no session with a turn that has not ended by then. Each is judged
        and deleted in one transaction.
        """
        ...

    async def find_deliveries(
        self, state: DeliveryState, *, after: DeliveryRecord | None = None, limit: int = 50
    ) -> Sequence[DeliveryRecord]:
        """Return deliveries by run and position, behind `after`. What waits or is dead is found
        without a look at what was delivered.
        """
        ...

    async def retry_delivery(self, run_id: str, position: int) -> DeliveryRecord | None:
        """Make a delivery due now, and a dead one wait again, with all of its tries.

        Returns it; None, and nothing is changed, if it was delivered or is not there.
        """
        ...

    async def survey(self) -> Survey:
        """Count what there is. It reads every run."""
        ...

    async def sum_usage(
        self, by: Grouping | None, wanted: UsageQuery, *, limit: int | None = None
    ) -> Sequence[UsageSum]:
        """Return what the wanted model calls came to, by their latest call, the newest first.

        `by` None makes one sum of all, or none if there is no call. A call that an attempt which
        is over has left open is unknown. `limit` is the number of sums. It reads every wanted
        call.
        """
        ...

    async def find_unpriced(
        self, wanted: UsageQuery, *, after: str | None = None, limit: int = 1_000
    ) -> UsagePage:
        """Return settled calls of which model and tokens are known, and the cost is not."""
        ...


@runtime_checkable
class UpkeepStore(Protocol):
    """A store that can be looked after, as all of this package can."""

    def upkeep(self) -> Upkeep: ...


def upkeep_of(store: RunStore) -> Upkeep:
    """Return the upkeep of a store; UsageError for one that has none."""
    if isinstance(store, UpkeepStore):
        return store.upkeep()
    raise UsageError(
        f"a {type(store).__name__} cannot be searched or cleaned up: it has no upkeep()"
    )
