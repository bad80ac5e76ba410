"""Wherever an answer is lost, or a batch is cut, the run ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from perdure.core.changes import AppendFrames, EndRun, Release, SaveHandle, Suspend
from perdure.core.records import SessionKey
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.lab import snapshot
from perdure.testing.samples import (
    HANDLER,
    begun,
    completed,
    delivery,
    failed,
    manifest,
    restart_row,
    row,
)
from tests.store.d1_server import D1Server, Fault

pytestmark = pytest.mark.node

LEASE_MS = 10_000
RUNS = ("plain", "chat:s:0", "chat:s:1", "later")
KINDS: dict[str, Fault] = {
    "the answer is lost": "after",
    "it never arrived": "before",
    "cut after one": {"cut": 1},
    "cut after three": {"cut": 3},
    "cut before the last": {"cut": -1},
}


async def live(store: RunStore, clock: ManualClock) -> list[Any]:
    """Lead a few runs through all that happens to runs; return what the calls answered."""
    answers: list[Any] = []

    async def claim(run_id: str, session: SessionKey | None = None) -> Any:
        claim = await store.start_or_resume(
            run_id,
            manifest(),
            worker_id="w1",
            lease_ms=LEASE_MS,
            handler=HANDLER,
            session=session,
            token="the-token",
        )
        answers.append((claim.run, claim.steps, claim.next_seq))
        return claim.lease

    lease = await claim("plain")
    answers.append(await store.write(lease, begun(0), row(1, "a", "b"), completed(0, 1)))
    answers.append(await store.write(lease, failed(1), SaveHandle('{"id":1}')))
    answers.append(await store.write(lease, Suspend("waiting", wake_key="go")))
    clock.advance(1_000)
    _, event = await store.emit_event("plain", "go", {"n": 1})
    answers.append(event)
    (claimed,) = await store.claim_due([HANDLER], worker_id="w2", lease_ms=LEASE_MS, limit=9)
    assert claimed.lease is not None
    answers.append((claimed.run, claimed.steps, claimed.next_seq))
    answers.append(list((await store.renew([claimed.lease], LEASE_MS)).values()))
    answers.append(await store.write(claimed.lease, restart_row(3, "kept"), Release()))
    clock.advance(1_000)
    lease = await claim("plain")
    end = (begun(1, tries=2), completed(1, 2), delivery(0), EndRun("completed", '{"pass":true}'))
    answers.append(await store.write(lease, *end))
    (due,) = await store.claim_deliveries([HANDLER], limit=9)
    answers.append(due._replace(token=None))
    await store.settle_delivery(due)

    turn = await claim("chat:s:0", SessionKey("s", 0, 0, "ann"))
    answers.append(
        await store.enqueue(
            "chat:s:1", manifest("next"), handler=HANDLER, session=SessionKey("s", 1, 0, "ann")
        )
    )
    answers.append(await store.request_stop("chat:s:0"))
    frames: list[AppendFrames] = [row(1, "x")]
    answers.append(await store.write(turn, *frames, EndRun("stopped", reason="user")))
    await store.enqueue("later", manifest(), handler="others")
    await store.delete("later")
    return answers


async def told(d1: D1Server, way: str, faults: Sequence[Fault] = ()) -> tuple[list[Any], int]:
    """Return what a life looks like with these faults, and how many batches it took."""
    database, clock = d1.clean(), ManualClock()
    store = d1.store(d1.binding(database) if way == "binding" else d1.api(database), clock)
    before = d1.fail(*faults)
    try:
        answers = await live(store, clock)
    finally:
        batches = d1.fail() - before
    shown = [await snapshot(store, run_id) for run_id in RUNS]
    await store.close()
    await d1.let_go()
    return [*answers, *map(without_tokens, shown)], batches


def without_tokens(shown: Any) -> Any:
    if shown.details is None:
        return shown
    deliveries = [each._replace(token=None) for each in shown.details.deliveries]
    return shown._replace(details=shown.details._replace(deliveries=deliveries))


async def check(d1: D1Server, way: str, kind: str, step: int) -> None:
    """Fail unless every `step`th batch may meet this fault."""
    expected, batches = await told(d1, way)
    assert batches > 20
    for place in range(0, batches, step):
        found, _ = await told(d1, way, [*[None] * place, KINDS[kind]])
        assert found == expected, f"{kind}: batch {place}"


async def test_answers_that_are_lost_here_and_there_change_nothing(d1: D1Server) -> None:
    await check(d1, "http", "the answer is lost", step=2)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("way", ["binding", "http"])
async def test_whatever_is_lost_or_cut_changes_nothing(d1: D1Server, way: str, kind: str) -> None:
    await check(d1, way, kind, step=9)


@pytest.mark.campaign
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("way", ["binding", "http"])
async def test_whatever_is_lost_or_cut_anywhere_changes_nothing(
    d1: D1Server, way: str, kind: str
) -> None:
    await check(d1, way, kind, step=1)
