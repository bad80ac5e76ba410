"""Tenants: on the same data, to each the others do not exist; workers serve them all."""

from __future__ import annotations

from perdure.core.limits import LEASE_MS
from perdure.core.records import Lease, SessionKey
from perdure.errors import RunNotFoundError, UsageError
from perdure.store.protocol import RunStore
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


@case
async def a_view_knows_its_tenant_and_shares_its_handle(lab: StoreLab) -> None:
    first, second = await lab.open(), await lab.open()
    view = first.for_tenant("acme")
    same((first.tenant, view.tenant), ("", "acme"), "the tenants")
    same(view.for_tenant("other").tenant, "other", "the tenant of a view of a view")
    same({first.handle, view.handle, view.for_tenant("x").handle}, {first.handle}, "the handle")
    check(first.handle != second.handle, "two handles are two workers")


@case
async def every_tenant_has_runs_of_its_own_under_the_same_id(lab: StoreLab) -> None:
    root = await lab.open()
    tenants = ("", "acme", "Acme", "acme ", "acme%20", "a%", "ümlaut", "a:b", "a.b")
    for number, tenant in enumerate(tenants):
        store = root.for_tenant(tenant) if tenant else root
        await finish(store, "run", completed(0, number), row(1, tenant or "default"))
    for number, tenant in enumerate(tenants):
        store = await lab.open(tenant=tenant)
        run = await read(store, "run")
        same((run.run_id, run.tenant, run.epoch), ("run", tenant, 1), "the run of a tenant")
        [step] = await store.read_steps("run")
        same((step.run_id, step.result), ("run", number), "its step")
        [frame] = await store.read_frames("run")
        same(frame.data["delta"], tenant or "default", "its frame")
        same([run.tenant for run in await store.list_runs()], [tenant], "its runs")


async def _sees_nothing(store: RunStore, before: Snapshot) -> None:
    """Check that `store` can neither see nor touch the run of another tenant."""
    same(await snapshot(store, "run"), Snapshot(None, [], None, []), "what a stranger sees")
    same(await store.load_event("run", "go"), None, "the event that a stranger sees")
    same(list(await store.list_runs(state="completed")), [], "the runs that a stranger lists")
    same(list(await store.list_runs(session_id="s")), [], "the turns that a stranger lists")
    same(await store.delete("run"), False, "a stranger's deletion")
    same(await store.delete("run", frames_only=True), False, "a stranger's deletion of frames")
    with refused(RunNotFoundError):
        await store.emit_event("run", "other", 1)
    with refused(RunNotFoundError):
        await store.request_stop("run")
    with refused(RunNotFoundError):
        await store.read_details("run")
    check(before.run is not None, "the run itself should be there")


@case
async def to_a_tenant_the_runs_of_others_do_not_exist(lab: StoreLab) -> None:
    for mine, theirs in (("acme", ""), ("", "acme"), ("acme", "acme2")):
        owner, stranger = await lab.open(tenant=mine), await lab.open(tenant=theirs)
        lease = await hold(owner, "run", session=SessionKey("s", 0))
        await owner.emit_event("run", "go", 1)
        await owner.write(lease, completed(0), row(1, "a"), delivery(0), ended("completed"))
        before = await snapshot(owner, "run")
        await _sees_nothing(stranger, before)
        await unchanged(owner, "run", before)
        await owner.delete("run")


@case
async def another_manifest_under_the_id_of_a_foreign_run_is_no_mismatch(lab: StoreLab) -> None:
    acme, other = await lab.open(tenant="acme"), await lab.open(tenant="other")
    await hold(acme)
    claim = await other.start_or_resume("run", manifest("Else?"), worker_id="bob")
    same((claim.run.epoch, claim.run.tenant), (1, "other"), "the run of the other tenant")
    await other.enqueue("queued", manifest("Else?"), handler=HANDLER)
    await acme.enqueue("queued", manifest(), handler=HANDLER)


@case
async def sessions_of_one_name_are_apart_between_tenants(lab: StoreLab) -> None:
    acme, other = await lab.open(tenant="acme"), await lab.open(tenant="other")
    await finish(acme, "turn-0", session=SessionKey("s", 0, 0, "olga"))
    await hold(acme, "turn-1", session=SessionKey("s", 1, 0, "olga"))
    await hold(other, "turn-1", session=SessionKey("s", 1, 0, "eve"))
    same((await read(other, "turn-1")).parent_run_id, None, "the parent across tenants")
    same((await read(acme, "turn-1")).parent_run_id, "turn-0", "the parent within a tenant")
    owners = [(await read(store, "turn-1")).owner_id for store in (acme, other)]
    same(owners, ["olga", "eve"], "the owners")


@case
async def a_lease_serves_on_every_handle_and_view(lab: StoreLab) -> None:
    root = await lab.open()
    acme = await lab.open(tenant="acme")
    lease = await hold(acme)
    await root.write(lease, completed(0))
    same(dict(await root.for_tenant("other").renew([lease], LEASE_MS)), {lease: False}, "renewal")
    same(len(await acme.read_steps("run")), 1, "the steps")
    same(await root.read_run("run"), None, "the run of the default tenant")


@case
async def a_sweep_serves_every_tenant(lab: StoreLab) -> None:
    root = await lab.open()
    for tenant in ("", "acme", "other"):
        store = await lab.open(tenant=tenant)
        await store.enqueue("run", manifest(), handler=HANDLER)
    claims = await root.claim_due([HANDLER], worker_id="sweeper", lease_ms=LEASE_MS, limit=9)
    same(sorted(claim.run.tenant for claim in claims), ["", "acme", "other"], "the tenants")
    for claim in claims:
        same(claim.run.run_id, "run", "the logical id")
        if claim.lease is None:
            raise AssertionError("a sweep should come with leases")
        await root.write(claim.lease, completed(0, claim.run.tenant), ended("completed"))
    for tenant in ("", "acme", "other"):
        store = await lab.open(tenant=tenant)
        same([step.result for step in await store.read_steps("run")], [tenant], "the result")


@case
async def deliveries_of_every_tenant_are_claimed_and_name_it(lab: StoreLab) -> None:
    root = await lab.open()
    leases: dict[str, Lease] = {}
    for tenant in ("", "acme"):
        store = await lab.open(tenant=tenant)
        leases[tenant] = await finish(store, "run", delivery(0, payload=tenant))
    same(leases[""].run_id, "run", "the stored id of the default tenant")
    check(leases["acme"].run_id != "run", "the stored id of another tenant should be another")
    [found] = await root.claim_deliveries([HANDLER], limit=9, run_id=leases["acme"].run_id)
    same((found.tenant, found.payload), ("acme", "acme"), "the delivery of the named run")
    [rest] = await root.claim_deliveries([HANDLER], limit=9)
    same((rest.tenant, rest.payload), ("", ""), "the delivery of the other")
    await root.settle_delivery(found)
    acme = await lab.open(tenant="acme")
    [stored] = (await acme.read_details("run")).deliveries
    same(stored.state, "delivered", "the delivery, as its tenant sees it")


@case
async def nobody_reaches_a_foreign_run_by_its_stored_id(lab: StoreLab) -> None:
    acme = await lab.open(tenant="acme")
    lease = await finish(acme, "run", completed(0), row(1, "secret"))
    before = await snapshot(acme, "run")
    root = await lab.open()
    for store in (root, root.for_tenant("other"), acme):
        await _is_refused(store, lease.run_id)
    await _is_refused(root, "@")
    await unchanged(acme, "run", before)


async def _is_refused(store: RunStore, run_id: str) -> None:
    """Check that every call that takes a run id refuses this one."""
    calls = (
        lambda: store.start_or_resume(run_id, manifest(), worker_id="eve"),
        lambda: store.enqueue(run_id, manifest(), handler=HANDLER),
        lambda: store.emit_event(run_id, "go", 1),
        lambda: store.request_stop(run_id),
        lambda: store.read_run(run_id),
        lambda: store.read_steps(run_id),
        lambda: store.load_event(run_id, "go"),
        lambda: store.read_frames(run_id),
        lambda: store.read_details(run_id),
        lambda: store.list_runs(after=run_id),
        lambda: store.delete(run_id),
        lambda: store.delete(run_id, frames_only=True),
    )
    for call in calls:
        with refused(UsageError):
            await call()


@case
async def ids_that_cannot_be_ids_are_refused_and_leave_nothing(lab: StoreLab) -> None:
    store = await lab.open()
    for run_id in ("@", "@acme/run", "", "a\x00b", "a\nb", "\x7f", "a\ud800"):
        await _is_refused(store, run_id)
        with refused(UsageError):
            store.for_tenant(run_id or "@")
    await hold(store)
    for key in ("@go", "", "a\x00b"):
        with refused(UsageError):
            await store.emit_event("run", key, 1)
    for session_id in ("@s", "", "a\x00b"):
        with refused(UsageError):
            await hold(store, "turn", session=SessionKey(session_id, 0))
    for place in (SessionKey("s", -1), SessionKey("s", 0, -1), SessionKey("s", 2**53)):
        with refused(UsageError):
            await hold(store, "turn", session=place)
    same([run.run_id for run in await store.list_runs()], ["run"], "the runs")
