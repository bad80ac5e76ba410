"""A store that passes every call on: each goes through one of its two hooks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from perdure.core.limits import LEASE_MS
from perdure.core.records import SessionKey
from perdure.store.forwarding import ForwardingStore
from perdure.store.memory import MemoryStore
from perdure.store.protocol import RunStore
from perdure.testing.samples import HANDLER, ended, manifest

T = TypeVar("T")


class Listening(ForwardingStore):
    """Notes what goes through its hooks."""

    def __init__(self, inner: RunStore) -> None:
        super().__init__(inner)
        self.heard: list[str] = []

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T:
        self.heard.append("read")
        return await super()._read(call)

    async def _write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        self.heard.append(name)
        return await super()._write(name, call)

    def for_tenant(self, tenant: str) -> Listening:
        return Listening(self._inner.for_tenant(tenant))


async def test_calls_that_may_write_go_through_their_hook_by_name() -> None:
    store = Listening(MemoryStore())
    await store.enqueue("run", manifest(), handler=HANDLER, session=SessionKey("s", 3))
    claim = await store.start_or_resume("run", manifest(), worker_id="w")
    assert claim.lease is not None
    assert await store.renew([claim.lease], LEASE_MS) == {claim.lease: False}
    assert (await store.emit_event("run", "key", 1))[0]
    assert (await store.request_stop("run")).stop_requested_at is not None
    await store.write(claim.lease, ended())
    assert await store.claim_due([HANDLER], worker_id="w", lease_ms=LEASE_MS, limit=1) == []
    assert await store.claim_deliveries([HANDLER], limit=1) == []
    assert await store.delete("run")
    assert store.heard == [
        "enqueue",
        "start_or_resume",
        "renew",
        "emit_event",
        "request_stop",
        "write",
        "claim_due",
        "claim_deliveries",
        "delete",
    ]


async def test_calls_that_write_nothing_go_through_the_other_hook() -> None:
    inner = MemoryStore()
    for index in range(3):
        key = SessionKey("s", index)
        await inner.enqueue(f"run-{index}", manifest(), handler=HANDLER, session=key)
    store = Listening(inner)
    found = await store.list_runs(session_id="s", after="run-0", limit=1)
    assert [run.run_id for run in found] == ["run-1"]
    assert await store.read_run("run-0") == await inner.read_run("run-0")
    assert await store.read_steps("run-0") == []
    assert await store.load_event("run-0", "key") is None
    assert await store.read_frames("run-0") == []
    assert (await store.read_details("run-0")).attempts == []
    await store.wait_for_change("run-0", timeout_ms=0)
    await store.close()
    assert store.heard == ["read"] * 8


async def test_it_is_the_handle_and_the_tenant_of_the_store_beneath() -> None:
    inner = MemoryStore()
    view = Listening(inner).for_tenant("acme")
    assert (view.handle, view.tenant) == (inner.handle, "acme")


async def test_a_renewer_is_opened_only_where_the_store_beneath_has_one() -> None:
    class WithRenewer(Listening):
        open_renewer = ForwardingStore._open_inner_renewer

    class Bare(ForwardingStore):
        def for_tenant(self, tenant: str) -> Bare:
            return Bare(self._inner.for_tenant(tenant))

    renewer = WithRenewer(MemoryStore()).open_renewer()
    assert renewer.renew([], LEASE_MS) == {}
    renewer.close()
    with pytest.raises(TypeError, match="does not renew from threads"):
        WithRenewer(Bare(MemoryStore())).open_renewer()
