"""The ledger: what model calls came to, where a lost answer is unknown and never nothing."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.core.changes import IntendUsage, Release, SettleUsage
from perdure.core.identity import stored_id
from perdure.core.limits import LEASE_MS
from perdure.core.records import SessionKey
from perdure.store.ledger import GROUPINGS, Grouping, UsageEntry, UsageQuery, UsageSum
from perdure.store.protocol import RunStore
from perdure.store.upkeep import Upkeep, upkeep_of
from perdure.testing.lab import StoreLab, case, same
from perdure.testing.samples import ended, hold

DAY_MS = 24 * 60 * 60 * 1_000
_ALL = UsageQuery()


def _used(number: int, call: int = 0) -> SettleUsage:
    """Return a settlement whose sums tell which calls are in them."""
    return SettleUsage(
        call,
        tokens_in=number,
        tokens_out=10 * number,
        tokens_cached=100 * number,
        tokens_reasoning=1_000 * number,
        tokens_cache_written=10_000 * number,
    )


def _paid(number: int, call: int = 0, *, currency: str | None = "USD") -> SettleUsage:
    return _used(number, call)._replace(
        cost_nanos=5_000_000_000 * number, currency=currency, price_version="t-1"
    )


async def _answered(
    store: RunStore,
    run_id: str,
    *settled: SettleUsage,
    model: str | None = "m",
    session: SessionKey | None = None,
) -> None:
    """Let a run make these calls, and end."""
    lease = await hold(store, run_id, session=session)
    intents = [IntendUsage(each.call, provider="p", model=model) for each in settled]
    await store.write(lease, *intents)
    await store.write(lease, *settled, ended("completed"))


async def _keys(
    upkeep: Upkeep, by: Grouping | None, wanted: UsageQuery = _ALL
) -> list[tuple[str | None, str | None, int]]:
    return [(each.key, each.tenant, each.calls) for each in await upkeep.sum_usage(by, wanted)]


async def _unpriced(
    upkeep: Upkeep, wanted: UsageQuery = _ALL, *, limit: int = 2
) -> Sequence[UsageEntry]:
    """Return all calls that a table may price, over all pages, by run, attempt and call."""
    page = await upkeep.find_unpriced(wanted, limit=limit)
    found = list(page.entries)
    while page.after is not None:
        page = await upkeep.find_unpriced(wanted, after=page.after, limit=limit)
        found += page.entries
    return sorted(found, key=lambda each: (each.run_id, each.usage.epoch, each.usage.call))


@case
async def calls_are_added_up_with_what_is_known_of_them(lab: StoreLab) -> None:
    store = await lab.open()
    first_at = lab.clock.iso()
    later = _paid(4, 2)._replace(price_version="t-2")
    await _answered(store, "a", _paid(1), _used(2, 1), later)
    lab.clock.advance(7)
    await _answered(store, "b", SettleUsage(0, tokens_out=8))
    whole = UsageSum(
        calls=4,
        settled=4,
        tokens_in=7,
        tokens_out=78,
        tokens_cached=700,
        tokens_reasoning=7_000,
        tokens_cache_written=70_000,
        uncounted=1,
        cost_nanos={"USD": 25_000_000_000},
        unpriced=2,
        first_at=first_at,
        last_at=lab.clock.iso(),
        price_versions=("t-1", "t-2"),
    )
    same(list(await upkeep_of(store).sum_usage(None, _ALL)), [whole], "the sum of all")


@case
async def what_no_provider_has_told_is_unknown_and_no_zero(lab: StoreLab) -> None:
    store = await lab.open()
    upkeep = upkeep_of(store)
    await _answered(store, "a", SettleUsage(0, tokens_in=3, tokens_out=2, tokens_reasoning=0))
    [told] = await upkeep.sum_usage(None, _ALL)
    same((told.tokens_in, told.tokens_out), (3, 2), "what was told")
    same((told.tokens_cached, told.tokens_cache_written), (None, None), "what was not")
    same(told.tokens_reasoning, 0, "a zero that was told")
    await _answered(store, "b", SettleUsage(0, tokens_cached=1))
    [whole] = await upkeep.sum_usage(None, _ALL)
    same((whole.tokens_in, whole.tokens_cached), (3, 1), "the sums of those that tell")
    of_run = {each.key: each for each in await upkeep.sum_usage("run", _ALL)}
    same(of_run["b"].tokens_in, None, "of a run that tells nothing of it")


@case
async def an_empty_ledger_has_no_sums(lab: StoreLab) -> None:
    upkeep = upkeep_of(await lab.open())
    same(list(await upkeep.sum_usage(None, _ALL)), [], "the sum of all")
    same(list(await upkeep.sum_usage("day", _ALL)), [], "the days")
    same(list(await _unpriced(upkeep)), [], "what a table may price")


@case
async def a_call_whose_answer_was_lost_is_unknown_and_not_nothing(lab: StoreLab) -> None:
    store = await lab.open()
    upkeep = upkeep_of(store)
    lost = await hold(store)
    await store.write(lost, IntendUsage(0, model="m"), IntendUsage(1, model="m"))
    [before] = await upkeep.sum_usage(None, _ALL)
    same((before.calls, before.running, before.unknown), (2, 2, 0), "while they are made")
    lab.clock.advance(LEASE_MS)
    lease = await hold(store, worker_id="bob")
    await store.write(lease, IntendUsage(0, model="m"))
    await store.write(lease, _paid(1))
    [after] = await upkeep.sum_usage(None, _ALL)
    counts = (after.calls, after.settled, after.unknown, after.running)
    same(counts, (3, 1, 2, 0), "after a takeover: calls, settled, unknown, running")
    same((after.uncounted, after.unpriced), (2, 2), "what is not known of them")
    await store.settle_usage(lost, _paid(2))
    [late] = await upkeep.sum_usage(None, _ALL)
    same((late.settled, late.unknown, late.tokens_in), (2, 1, 3), "after the bill came late")


@case
async def a_call_that_was_given_up_is_unknown(lab: StoreLab) -> None:
    store = await lab.open()
    lease = await hold(store)
    await store.write(lease, IntendUsage(0), IntendUsage(1), IntendUsage(2))
    await store.write(lease, SettleUsage(0, "unknown"))
    [given_up] = await upkeep_of(store).sum_usage(None, _ALL)
    same((given_up.unknown, given_up.running), (1, 2), "unknown, running")
    await store.write(lease, Release())
    [released] = await upkeep_of(store).sum_usage(None, _ALL)
    same((released.unknown, released.running), (3, 0), "after the end of the attempt")


@case
async def calls_are_grouped_by_run_session_tenant_day_and_model(lab: StoreLab) -> None:
    acme, store = await lab.open(tenant="acme"), await lab.open()
    upkeep = upkeep_of(store)
    days = [lab.clock.iso()[:10]]
    await _answered(store, "a", _used(1), session=SessionKey("s", 0))
    lab.clock.advance(1)
    await _answered(acme, "a", _used(2), _used(3, 1), session=SessionKey("s", 0))
    lab.clock.advance(DAY_MS)
    days.append(lab.clock.iso()[:10])
    await _answered(store, "b", _used(4), session=SessionKey("s", 1))
    lab.clock.advance(1)
    await _answered(store, "c", _used(5), model=None)
    theirs = stored_id("acme", "a")
    same(
        await _keys(upkeep, "run"),
        [("c", "", 1), ("b", "", 1), (theirs, "acme", 2), ("a", "", 1)],
        "the runs, the newest first",
    )
    same(
        await _keys(upkeep, "session"),
        [(None, "", 1), ("s", "", 2), ("s", "acme", 2)],
        "the sessions",
    )
    same(await _keys(upkeep, "tenant"), [("", "", 3), ("acme", "acme", 2)], "the tenants")
    same(await _keys(upkeep, "day"), [(days[1], None, 2), (days[0], None, 3)], "the days")
    same(await _keys(upkeep, "model"), [(None, None, 1), ("m", None, 4)], "the models")
    same(await _keys(upkeep, None), [(None, None, 5)], "the sum of all")


@case
async def only_the_wanted_calls_are_added_up(lab: StoreLab) -> None:
    acme, store = await lab.open(tenant="acme"), await lab.open()
    upkeep = upkeep_of(store)
    moments: list[str] = []
    for number, at in enumerate((store, acme, store, acme)):
        moments.append(lab.clock.iso())
        session = SessionKey(f"s-{number % 3}", number)
        await _answered(at, f"run-{number}", _used(10**number), session=session)
        lab.clock.advance(5)

    async def tokens(wanted: UsageQuery) -> int:
        sums = await upkeep.sum_usage(None, wanted)
        entries = await _unpriced(upkeep, wanted)
        found = sum(each.usage.tokens_in or 0 for each in entries)
        counted = sum(each.tokens_in or 0 for each in sums)
        same(found, counted, f"unpriced calls of {wanted}")
        return found

    same(await tokens(_ALL), 1_111, "all")
    same(await tokens(UsageQuery(tenant="")), 101, "the default tenant")
    same(await tokens(UsageQuery(tenant="acme")), 1_010, "a tenant")
    same(await tokens(UsageQuery(tenant="nobody")), 0, "nobody")
    same(await tokens(UsageQuery(session_id="s-0")), 1_001, "a session's id")
    same(await tokens(UsageQuery(tenant="acme", session_id="s-0")), 1_000, "a session")
    same(await tokens(UsageQuery(tenant="acme", session_id="s-2")), 0, "another one's session")
    same(await tokens(UsageQuery(since=moments[1])), 1_110, "since a moment")
    same(await tokens(UsageQuery(until=moments[2])), 11, "before a moment")
    same(await tokens(UsageQuery("acme", None, moments[1], moments[3])), 10, "a tenant in between")
    same(
        await tokens(UsageQuery("acme", "s-0", moments[3], moments[3])), 0, "a session, and no time"
    )


@case
async def the_newest_sums_are_kept_where_there_are_many(lab: StoreLab) -> None:
    store = await lab.open()
    for run_id in ("b", "c", "a"):
        lab.clock.advance(1)
        paid = (_paid(1), _paid(1, 1, currency="EUR"), _paid(1, 2, currency=None))
        await _answered(store, run_id, *paid)
    sums = await upkeep_of(store).sum_usage("run", _ALL, limit=2)
    same([each.key for each in sums], ["a", "c"], "the newest two runs")
    costs = dict.fromkeys(("?", "EUR", "USD"), 5_000_000_000)
    same([dict(each.cost_nanos) for each in sums], [costs, costs], "their costs by currency")
    same([each.calls for each in sums], [3, 3], "their calls")
    same(list(await upkeep_of(store).sum_usage("run", _ALL, limit=0)), [], "none of them")


@case
async def as_many_sums_as_are_wanted_are_the_first_of_all(lab: StoreLab) -> None:
    default = await lab.open()
    stores = [default, default.for_tenant("acme")]
    for number in range(12):
        lab.clock.advance(number % 3 // 2)
        session = None if number == 2 else SessionKey(f"s-{number % 4}", number)
        calls = [_used(1, call) for call in range(number % 2 + 1)]
        await _answered(stores[number % 2], f"r-{number % 7}-{number}", *calls, session=session)
    upkeep = upkeep_of(default)
    newest = (await upkeep.sum_usage(None, _ALL))[0].last_at
    for by in GROUPINGS:
        for wanted in (_ALL, UsageQuery(since=newest), UsageQuery(tenant="acme")):
            whole = list(await upkeep.sum_usage(by, wanted))
            for limit in range(1, len(whole) + 2):
                some = list(await upkeep.sum_usage(by, wanted, limit=limit))
                same(some, whole[:limit], f"the newest {limit} by {by} of {wanted}")


@case
async def calls_that_a_table_may_price_are_found(lab: StoreLab) -> None:
    acme, store = await lab.open(tenant="acme"), await lab.open()
    await _answered(acme, "a", _used(1), _paid(2, 1), _used(3, 2), session=SessionKey("s", 0))
    lab.clock.advance(1)
    await _answered(store, "b", _used(4), SettleUsage(1, tokens_in=1), _used(5, 2))
    await _answered(store, "c", _used(6), model=None)
    await store.write(await hold(store, "d"), IntendUsage(0, model="m"))
    found = await _unpriced(upkeep_of(store))
    theirs = stored_id("acme", "a")
    same(
        [(each.run_id, each.tenant, each.session_id, each.usage.call) for each in found],
        [
            (theirs, "acme", "s", 0),
            (theirs, "acme", "s", 2),
            ("b", "", None, 0),
            ("b", "", None, 2),
        ],
        "the calls",
    )
    usage = [*(await acme.read_details("a")).usage, *(await store.read_details("b")).usage]
    same([each.usage for each in found], [usage[number] for number in (0, 2, 3, 5)], "the records")
