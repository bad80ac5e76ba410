"""Upkeep: what is found, what may go, and what a clean-up must never take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from perdure.core.changes import Suspend
from perdure.core.identity import stored_id
from perdure.core.limits import DELIVERY_BACKOFF_MAX_MS, DELIVERY_TRIES_MAX, LEASE_MS
from perdure.core.records import DeliveryRecord, RunRecord, RunState, SessionKey
from perdure.errors import RunNotFoundError
from perdure.store.protocol import RunStore
from perdure.store.upkeep import Edge, RunQuery, Upkeep, upkeep_of
from perdure.testing.lab import (
    Snapshot,
    StoreLab,
    case,
    check,
    read,
    refused,
    same,
    snapshot,
    unchanged,
)
from perdure.testing.phases import SCENES, stage
from perdure.testing.samples import (
    HANDLER,
    completed,
    delivery,
    ended,
    finish,
    hold,
    manifest,
    row,
)

DAY_MS = 24 * 60 * 60 * 1_000


def _ids(runs: Sequence[RunRecord]) -> list[str]:
    return [stored_id(run.tenant, run.run_id) for run in runs]


async def _all_pages(upkeep: Upkeep, what: str, ended_by: str, *, limit: int = 2) -> list[str]:
    """Return what a search finds, over all of its pages."""
    find = upkeep.find_framed if what == "framed" else upkeep.find_ended
    found = await find(ended_by, limit=limit)
    ids = list(found.run_ids)
    while found.after is not None:
        found = await find(ended_by, after=found.after, limit=limit)
        ids += found.run_ids
    return sorted(ids)


@case
async def the_newest_runs_of_all_tenants_are_found_first(lab: StoreLab) -> None:
    acme, store = await lab.open(tenant="acme"), await lab.open()
    for run_id, at in (("b", store), ("a", acme), ("c", store), ("d", acme)):
        await hold(at, run_id)
        lab.clock.advance(1)
    upkeep = upkeep_of(store)
    whole = ["@acme/d", "c", "@acme/a", "b"]
    same(_ids(await upkeep.find_runs(RunQuery())), whole, "the runs")
    for run in await upkeep.find_runs(RunQuery()):
        same(run, await read(store.for_tenant(run.tenant), run.run_id), "a run, as it is read")
    pages: list[str] = []
    while page := await upkeep.find_runs(RunQuery(), after=pages[-1] if pages else None, limit=3):
        pages += _ids(page)
    same(pages, whole, "the runs in pages of 3")
    with refused(RunNotFoundError):
        await upkeep.find_runs(RunQuery(), after="nobody")


@case
async def some_of_the_newest_runs_are_skipped(lab: StoreLab) -> None:
    acme, store = await lab.open(tenant="acme"), await lab.open()
    moments: dict[str, str] = {}
    for run_id, at in (("b", store), ("a", acme), ("c", store), ("d", acme)):
        await hold(at, run_id)
        moments[run_id] = lab.clock.iso()
        lab.clock.advance(1)
    upkeep = upkeep_of(store)
    same(await upkeep.skip_runs(1), Edge(moments["d"], "@acme/d"), "the end of the newest")
    same(await upkeep.skip_runs(3), Edge(moments["a"], "@acme/a"), "the end of three")
    same(await upkeep.skip_runs(4), Edge(moments["b"], "b"), "the end of all")
    same(await upkeep.skip_runs(5), None, "the end of more than there are")
    same(await upkeep.skip_runs(0), None, "the end of none")
    same(
        await upkeep.skip_runs(2, after="@acme/d"), Edge(moments["a"], "@acme/a"), "two behind one"
    )
    same(await upkeep.skip_runs(2, tenant="acme"), Edge(moments["a"], "@acme/a"), "two of a tenant")
    same(await upkeep.skip_runs(2, tenant="acme", after="c"), None, "two of a tenant behind one")
    same(await upkeep.skip_runs(1, tenant="", after="c"), Edge(moments["b"], "b"), "of the default")
    with refused(RunNotFoundError):
        await upkeep.skip_runs(1, after="nobody")


@case
async def runs_are_found_by_what_they_have(lab: StoreLab) -> None:
    acme, store = await lab.open(tenant="acme"), await lab.open()
    await finish(store, "old", session=SessionKey("s", 0))
    lab.clock.advance(1_000)
    since = lab.clock.iso()
    await hold(store, "turn", session=SessionKey("s", 1))
    await hold(acme, "turn", session=SessionKey("s", 1))
    await hold(store, "other", handler="other")
    upkeep = upkeep_of(store)

    async def found(wanted: RunQuery) -> list[str]:
        return sorted(_ids(await upkeep.find_runs(wanted)))

    same(await found(RunQuery(tenant="acme")), ["@acme/turn"], "the runs of a tenant")
    same(await found(RunQuery(tenant="")), ["old", "other", "turn"], "those of the default tenant")
    same(
        await found(RunQuery(session_id="s")),
        ["@acme/turn", "old", "turn"],
        "those of a session's id",
    )
    same(await found(RunQuery(session_id="s", tenant="")), ["old", "turn"], "those of a session")
    same(await found(RunQuery(handler="other")), ["other"], "those of a handler")
    same(
        await found(RunQuery(since=since)), ["@acme/turn", "other", "turn"], "those since a moment"
    )
    same(await found(RunQuery(since=since, session_id="s", tenant="")), ["turn"], "all of that")
    same(await found(RunQuery(tenant="nobody")), [], "those of nobody")


@case
async def runs_are_found_by_their_state(lab: StoreLab) -> None:
    store = await lab.open()
    wanted: dict[str, list[str]] = {state: [] for state in get_args(RunState)}
    for scene in SCENES:
        if scene != "none":
            await stage(lab, scene, scene)
            wanted[(await read(store, scene)).state].append(scene)
    upkeep = upkeep_of(store)
    for state in get_args(RunState):
        found = await upkeep.find_runs(RunQuery(state=state))
        same(sorted(_ids(found)), sorted(wanted[state]), f"the {state} runs")
    survey = await upkeep.survey()
    counted = {state: len(runs) for state, runs in wanted.items() if runs}
    same(dict(survey.runs), counted, "the count of the runs")


@case
async def frames_may_go_once_their_turn_has_an_end_for_long(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "early", row(1, "a"))
    await finish(store, "stopped", row(1, "a"), state="stopped")
    await finish(store, "failed", row(1, "a"), state="failed")
    await finish(store, "bare", completed(0))
    parked, held = await hold(store, "parked"), await hold(store, "held")
    await store.write(parked, row(1, "a"), Suspend("parked"))
    await store.write(held, row(1, "a"))
    ended_by = lab.clock.iso()
    lab.clock.advance(1)
    await finish(store, "late", row(1, "a"))
    upkeep = upkeep_of(store)
    same(await _all_pages(upkeep, "framed", ended_by), ["early", "stopped"], "what may go")
    await store.delete("early", frames_only=True)
    same(await _all_pages(upkeep, "framed", ended_by), ["stopped"], "what may go after that")
    found = await _all_pages(upkeep, "framed", lab.clock.iso(), limit=1)
    same(found, ["late", "stopped"], "what may go later")


@case
async def what_is_over_for_long_may_be_removed(lab: StoreLab) -> None:
    store, acme = await lab.open(), await lab.open(tenant="acme")
    for run_id, state in (("a", "completed"), ("b", "stopped"), ("c", "failed")):
        await finish(store, run_id, state=state)
    await finish(acme, "a")
    ended_by = lab.clock.iso()
    lab.clock.advance(1)
    await finish(store, "late")
    kept = await snapshot(store, "late")
    upkeep = upkeep_of(store)
    whole = ["@acme/a", "a", "b", "c"]
    same(await _all_pages(upkeep, "ended", ended_by), whole, "what may go")
    removed = await upkeep.remove_ended([*whole, "late", "nobody"], ended_by)
    same(sorted(removed), whole, "what was removed")
    for run_id in ("a", "b", "c"):
        same(await snapshot(store, run_id), Snapshot(None, [], None, []), "what is left")
    await unchanged(store, "late", kept)
    same(await _all_pages(upkeep, "ended", ended_by), [], "what may go after that")


@case
async def what_may_still_go_on_is_never_removed(lab: StoreLab) -> None:
    store = await lab.open()
    runs: list[str] = []
    for scene in SCENES:
        if scene not in ("none", "completed", "stopped", "failed"):
            await stage(lab, scene, scene)
            runs.append(scene)
    lab.clock.advance(LEASE_MS * 100)
    before = {run_id: await snapshot(store, run_id) for run_id in runs}
    upkeep = upkeep_of(store)
    same(await _all_pages(upkeep, "ended", lab.clock.iso()), [], "what may go")
    same(list(await upkeep.remove_ended(runs, lab.clock.iso())), [], "what was removed")
    for run_id in runs:
        await unchanged(store, run_id, before[run_id])


@case
async def a_run_with_a_waiting_delivery_is_not_removed(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", delivery(0))
    ended_by = lab.clock.iso()
    upkeep = upkeep_of(store)
    same(await _all_pages(upkeep, "ended", ended_by), [], "what may go")
    same(list(await upkeep.remove_ended(["run"], ended_by)), [], "what was removed")
    (claimed,) = await store.claim_deliveries([HANDLER], limit=1)
    same(
        list(await upkeep.remove_ended(["run"], ended_by)), [], "what was removed of a claimed one"
    )
    await store.settle_delivery(claimed)
    same(await _all_pages(upkeep, "ended", ended_by), ["run"], "what may go once it was made")
    same(list(await upkeep.remove_ended(["run"], ended_by)), ["run"], "what was removed at last")


@case
async def a_session_goes_as_a_whole_or_not_at_all(lab: StoreLab) -> None:
    store, acme = await lab.open(), await lab.open(tenant="acme")
    for turn in range(2):
        await finish(store, f"s-{turn}", session=SessionKey("s", turn))
        await finish(store, f"t-{turn}", session=SessionKey("t", turn))
    await finish(acme, "s-0", session=SessionKey("s", 0))
    ended_by = lab.clock.iso()
    lab.clock.advance(1)
    lease = await hold(store, "s-2", session=SessionKey("s", 2))
    upkeep = upkeep_of(store)
    others = ["@acme/s-0", "t-0", "t-1"]
    same(await _all_pages(upkeep, "ended", ended_by), others, "what may go beside a live turn")
    same(list(await upkeep.remove_ended(["s-0"], ended_by)), [], "what was removed")
    await store.write(lease, ended("completed"))
    same(await _all_pages(upkeep, "ended", ended_by), others, "what may go beside a late turn")
    whole = sorted([*others, "s-0", "s-1", "s-2"])
    same(await _all_pages(upkeep, "ended", lab.clock.iso()), whole, "what may go later")


@case
async def a_failed_run_that_was_retried_is_not_removed(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "run", state="failed")
    ended_by = lab.clock.iso()
    await store.enqueue("run", manifest(), handler=HANDLER, retry=True)
    same(list(await upkeep_of(store).remove_ended(["run"], ended_by)), [], "what was removed")
    same((await read(store, "run")).state, "queued", "the state of the run")


async def _fail_until_dead(lab: StoreLab, store: RunStore) -> DeliveryRecord:
    for _ in range(DELIVERY_TRIES_MAX):
        (claimed,) = await store.claim_deliveries([HANDLER], limit=1)
        await store.settle_delivery(claimed, error="no")
        lab.clock.advance(DELIVERY_BACKOFF_MAX_MS)
    (dead,) = (await store.read_details("run")).deliveries
    same(dead.state, "dead", "the state after the last try")
    return dead


@case
async def a_dead_delivery_that_is_retried_has_all_of_its_tries_again(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await finish(store, "run", delivery(0))
    dead = await _fail_until_dead(lab, store)
    upkeep = upkeep_of(store)
    same(list(await upkeep.find_deliveries("dead")), [dead], "the dead ones")
    again = await upkeep.retry_delivery(lease.run_id, 0)
    if again is None:
        raise AssertionError("a dead delivery should be retried")
    same((again.state, again.tries, again.due_at), ("waiting", 0, lab.clock.iso()), "it")
    same(list(await upkeep.find_deliveries("dead")), [], "the dead ones after that")
    await _fail_until_dead(lab, store)
    await upkeep.retry_delivery(lease.run_id, 0)
    (claimed,) = await store.claim_deliveries([HANDLER], limit=1)
    await store.settle_delivery(claimed)
    same(await upkeep.retry_delivery(lease.run_id, 0), None, "the retry of one that was made")
    for run_id, position in ((lease.run_id, 1), ("nobody", 0)):
        same(await upkeep.retry_delivery(run_id, position), None, "the retry of none")


@case
async def a_waiting_delivery_that_is_retried_is_due_at_once(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await finish(store, "run", delivery(0))
    (claimed,) = await store.claim_deliveries([HANDLER], limit=1)
    await store.settle_delivery(claimed, error="no")
    same(list(await store.claim_deliveries([HANDLER], limit=1)), [], "what is due")
    again = await upkeep_of(store).retry_delivery(lease.run_id, 0)
    check(again is not None and again.tries == 1, "its tries should still count")
    (claimed,) = await store.claim_deliveries([HANDLER], limit=1)
    same(claimed.tries, 2, "its tries")


@case
async def deliveries_are_found_by_their_state_page_by_page(lab: StoreLab) -> None:
    store, acme = await lab.open(), await lab.open(tenant="acme")
    for at, run_id in ((store, "a"), (store, "b"), (acme, "c")):
        await finish(at, run_id, delivery(0), delivery(1))
    (claimed,) = await store.claim_deliveries([HANDLER], limit=1, run_id="a")
    await store.settle_delivery(claimed)
    upkeep = upkeep_of(store)
    places: list[tuple[str, int]] = []
    last: DeliveryRecord | None = None
    while page := await upkeep.find_deliveries("waiting", after=last, limit=2):
        places += [(found.run_id, found.position) for found in page]
        last = page[-1]
    whole = [("@acme/c", 0), ("@acme/c", 1), ("a", 1), ("b", 0), ("b", 1)]
    same(places, whole, "what waits")
    made = await upkeep.find_deliveries("delivered")
    same([(found.run_id, found.position) for found in made], [("a", 0)], "what was made")


@case
async def a_survey_counts_what_there_is(lab: StoreLab) -> None:
    store = await lab.open()
    upkeep = upkeep_of(store)
    empty = await upkeep.survey()
    same(len(empty.runs), 0, "the states of an empty store")
    same((empty.newest_at, empty.due_at), (None, None), "its moments")
    await finish(store, "run", delivery(0))
    await _fail_until_dead(lab, store)
    first = lab.clock.iso()
    await finish(store, "next", delivery(0))
    lab.clock.advance(DAY_MS)
    await finish(store, "last", delivery(0))
    survey = await upkeep.survey()
    same(dict(survey.runs), {"completed": 3}, "the runs")
    same((survey.waiting, survey.dead, survey.due_at), (2, 1, first), "the deliveries")
    same((survey.newest_at, survey.now), (lab.clock.iso(), lab.clock.iso()), "its moments")
    same(await upkeep.now(), lab.clock.iso(), "the store's time")
