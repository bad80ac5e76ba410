"""Which runs a list shows: what the query asks for, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, get_args
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from perdure.core.identity import check_tenant
from perdure.core.records import RunRecord, RunState
from perdure.core.wording import id_of, moment_of
from perdure.errors import UsageError
from perdure.store.upkeep import Edge, RunQuery, Upkeep
from perdure.web.dashboard.access import Viewer

PAGE: Final = 50
"""So many runs a page has."""
LOOKED: Final = 4_000
"""So many runs are looked at for one page at most, where no index leads to the wanted ones."""
STATES: Final[tuple[RunState, ...]] = get_args(RunState)
DEFAULT_TENANT: Final = "@"
"""Stands for the default tenant in a query, where nothing stands for all of them."""
_FIELDS: Final = ("state", "handler", "session", "tenant", "since")


class Search(NamedTuple):
    """What is asked for: as it was written, and as the store takes it."""

    fields: dict[str, str]
    wanted: RunQuery
    after: str | None

    @property
    def is_narrowed(self) -> bool:
        """Whether only some of the runs are asked for."""
        return bool(self.fields)

    @property
    def shown(self) -> dict[str, str]:
        """Return what stands in each field; '' where nothing is asked for."""
        return dict.fromkeys(_FIELDS, "") | self.fields

    def in_state(self, state: str) -> Search:
        """Return the same search among the runs in a state; '': in any."""
        fields = {name: text for name, text in self.fields.items() if name != "state"}
        return self._replace(fields={"state": state, **fields} if state else fields)

    def query(self, after: str | None = None) -> str:
        """Return the query of a page of the same search."""
        fields = self.fields if after is None else {**self.fields, "after": after}
        return f"?{urlencode(fields)}" if fields else ""


class Page(NamedTuple):
    """Some of what was found. `after` goes on behind it, None: that was all.

    `looked_to` is the moment down to which all runs were looked at, if there may be more behind.
    """

    runs: Sequence[RunRecord]
    after: str | None
    looked_to: str | None = None


def search_of(params: QueryParams, viewer: Viewer, now: str) -> Search:
    """Return what a query asks for, of what the viewer may see. Raises UsageError."""
    fields = {name: params[name].strip() for name in _FIELDS if params.get(name, "").strip()}
    if viewer.tenant is not None:
        fields.pop("tenant", None)
    state = fields.get("state")
    if state is not None and state not in STATES:
        raise UsageError(f"there is no state {state!r:.40} (known: {', '.join(STATES)})")
    wanted = RunQuery(
        tenant=_tenant_of(fields.get("tenant")) if viewer.tenant is None else viewer.tenant,
        state=state,
        session_id=fields.get("session"),
        handler=fields.get("handler"),
        since=moment_of(fields["since"], now) if "since" in fields else None,
    )
    return Search(fields, wanted, params.get("after") or None)


def _tenant_of(text: str | None) -> str | None:
    if text is None:
        return None
    return "" if text == DEFAULT_TENANT else check_tenant(text)


async def find_page(upkeep: Upkeep, search: Search) -> Page:
    """Return a page of a search. Raises RunNotFoundError if the run that it begins behind is gone.

    Where no index leads to the wanted runs, a page ends after a look at LOOKED runs: it may be
    short, or empty, and yet not the last.
    """
    wanted, after = search.wanted, search.after
    edge = None
    if not _is_led(wanted):
        edge = await upkeep.skip_runs(LOOKED, tenant=wanted.tenant, after=after)
        if edge is not None and (wanted.since or "") <= edge.created_at:
            wanted = wanted._replace(since=edge.created_at)
        else:
            edge = None
    found = list(await upkeep.find_runs(wanted, after=after, limit=PAGE + 1))
    if len(found) > PAGE:
        return Page(found[:PAGE], id_of(found[PAGE - 1]))
    if edge is None:
        return Page(found, None)
    # Of several runs of the edge's moment, those behind it were found too.
    behind = min([edge, *(Edge(run.created_at, id_of(run)) for run in found)])
    return Page(found, behind.run_id, edge.created_at)


def _is_led(wanted: RunQuery) -> bool:
    """Return whether the store comes to the wanted runs without a look at many others."""
    if wanted.session_id is not None:
        return wanted.tenant is not None
    if wanted.handler is not None:
        return False
    return wanted.state != "stopped"
