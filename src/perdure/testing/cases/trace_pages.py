"""How a trace store lists its runs page by page: the newest first, and each once."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from perdure.errors import NotFoundError, ValidationError
from perdure.observe.trace_records import TraceRun, TraceRunQuery
from perdure.observe.trace_store import TraceStore
from perdure.testing.lab import same
from perdure.testing.trace_store_lab import TraceStoreLab

AT: Final = 1_778_371_200_000


async def runs_come_in_pages_the_newest_first(lab: TraceStoreLab) -> None:
    store = await _filled(lab, 7)
    same(await _pages(store, TraceRunQuery(), 3), ["654", "321", "0"], "the pages")
    same(await _pages(store, TraceRunQuery(), 50), ["6543210"], "one page for all")
    reader = await lab.open()
    same(await _pages(reader, TraceRunQuery(), 7), ["6543210"], "a page that is just full")


async def a_page_has_only_what_is_wanted(lab: TraceStoreLab) -> None:
    store = await _filled(lab, 7)
    even = TraceRunQuery(scenario_id="even")
    same(await _pages(store, even, 2), ["64", "20"], "the pages of one scenario")
    await store.update_run("2", {"scenario_id": "odd", "status": "failed"})
    same(await _pages(store, even, 2), ["64", "0"], "the pages after a change")
    same(await _pages(store, TraceRunQuery(status="failed"), 2), ["2"], "what has failed")
    same(await _pages(store, TraceRunQuery(scenario_id="none"), 2), [], "a scenario of nobody")
    behind = await store.find_runs(even, after="5", limit=1)
    same([run.run_id for run in behind], ["4"], "behind a run that is not wanted itself")


async def a_page_behind_nothing_is_refused(lab: TraceStoreLab) -> None:
    store = await _filled(lab, 1)
    try:
        await store.find_runs(after="nobody")
    except NotFoundError:
        pass
    else:
        raise AssertionError("a page behind a run that is not there was given")
    try:
        await store.find_runs(limit=0)
    except ValidationError:
        return
    raise AssertionError("a page of no runs was given")


async def _filled(lab: TraceStoreLab, count: int) -> TraceStore:
    store = await lab.open()
    run = TraceRun(run_id="0", scenario_id="even", started_at=AT)
    for number in range(count):
        scenario = "odd" if number % 2 else "even"
        # The moment of the first is the latest: pages are in the order of appending.
        moved = replace(run, run_id=str(number), scenario_id=scenario, started_at=AT - number)
        await store.append_run(moved)
    return store


async def _pages(store: TraceStore, wanted: TraceRunQuery, limit: int) -> list[str]:
    pages: list[str] = []
    after: str | None = None
    while page := await store.find_runs(wanted, after=after, limit=limit):
        pages.append("".join(run.run_id for run in page))
        after = page[-1].run_id
    return pages
