"""The line of parents: behind which turn a turn stands, chosen once, or named."""

from __future__ import annotations

from perdure.core.limits import LEASE_MS
from perdure.core.records import SessionKey
from perdure.store.protocol import RunStore
from perdure.testing.lab import StoreLab, case, read, same
from perdure.testing.samples import HANDLER, ended, finish, hold, manifest


def _turn(index: int, *, revision: int = 0) -> SessionKey:
    return SessionKey("s", index, revision)


async def _swept(store: RunStore) -> list[str]:
    claims = await store.claim_due([HANDLER], worker_id="sweeper", lease_ms=LEASE_MS, limit=10)
    return sorted(claim.run.run_id for claim in claims)


@case
async def the_parent_of_a_turn_is_the_latest_answer_before_it(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "first", session=_turn(0))
    same((await read(store, "first")).parent_run_id, None, "the parent of a first turn")
    await finish(store, "old", session=_turn(1))
    await finish(store, "new", state="stopped", session=_turn(1, revision=2))
    await finish(store, "bad", state="failed", session=_turn(1, revision=3))
    await finish(store, "worse", state="failed", session=_turn(2))
    await finish(store, "later", session=_turn(9))
    await finish(store, "elsewhere", session=SessionKey("other", 2))
    same((await read(store, "old")).parent_run_id, "first", "the parent of turn 1")
    same((await read(store, "new")).parent_run_id, "first", "the parent of its revision")
    same((await read(store, "later")).parent_run_id, "new", "the parent of turn 9")
    await finish(store, "third", session=_turn(3))
    same((await read(store, "third")).parent_run_id, "new", "the parent of turn 3")


@case
async def the_parent_of_a_turn_is_chosen_once(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "first", session=_turn(0))
    await store.write(await hold(store, "second", session=_turn(1)), ended("failed"))
    await finish(store, "first-again", session=_turn(0, revision=1))
    await hold(store, "second", session=_turn(1), retry=True)
    same((await read(store, "second")).parent_run_id, "first", "the parent after a retry")
    lab.clock.advance(LEASE_MS)
    await hold(store, "second", session=_turn(1))
    same((await read(store, "second")).parent_run_id, "first", "the parent after a takeover")


@case
async def a_parent_that_the_caller_names_is_kept(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "a", session=_turn(0))
    await finish(store, "b", session=_turn(0, revision=1))
    await finish(store, "c", session=SessionKey("s", 1, 0, None, "a"))
    same((await read(store, "c")).parent_run_id, "a", "the parent that was named")


@case
async def the_parent_of_a_queued_turn_is_chosen_when_it_begins(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "first", session=_turn(0))
    lease = await hold(store, "second", session=_turn(1))
    await store.enqueue("third", manifest(), handler=HANDLER, session=_turn(2))
    same((await read(store, "third")).parent_run_id, None, "the parent of a turn that waits")
    await store.write(lease, ended("stopped"))
    await store.write(await hold(store, "third", session=_turn(2)), ended("failed"))
    same((await read(store, "third")).parent_run_id, "second", "the parent of the turn")
    await finish(store, "second-again", session=_turn(1, revision=1))
    await store.enqueue("third", manifest(), handler=HANDLER, session=_turn(2), retry=True)
    same(await _swept(store), ["third"], "the turn that begins again")
    same((await read(store, "third")).parent_run_id, "second", "its parent after a retry")


@case
async def a_turn_that_is_stopped_in_line_stands_behind_the_one_in_flight(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "first", session=_turn(0))
    lease = await hold(store, "second", session=_turn(1))
    await store.enqueue("third", manifest(), handler=HANDLER, session=_turn(2))
    await store.enqueue("fourth", manifest(), handler=HANDLER, session=_turn(3))
    # Who stops it does not wait for the session: it names none.
    await store.write(await hold(store, "fourth"), ended("stopped"))
    await store.write(await hold(store, "third"), ended("stopped"))
    await store.write(lease, ended())
    await finish(store, "fifth", session=_turn(4))
    parents = [
        (await read(store, run_id)).parent_run_id
        for run_id in ("second", "third", "fourth", "fifth")
    ]
    same(parents, ["first", "second", "third", "fourth"], "the line of parents")


@case
async def a_parent_that_was_named_for_a_queued_turn_is_kept(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "a", session=_turn(0))
    await finish(store, "b", session=_turn(0, revision=1))
    for index, parent in enumerate(("a", ""), start=1):
        key = SessionKey("s", index, 0, None, parent)
        run_id = f"turn-{index}"
        await store.enqueue(run_id, manifest(), handler=HANDLER, session=key)
        same(await _swept(store), [run_id], "the turn that begins")
        same((await read(store, run_id)).parent_run_id, parent or None, "its parent")
        lab.clock.advance(LEASE_MS)
        await store.write(await hold(store, run_id), ended("completed"))


@case
async def a_turn_may_be_said_to_have_no_parent(lab: StoreLab) -> None:
    store = await lab.open()
    await finish(store, "first", session=_turn(0))
    key = SessionKey("s", 1, 0, None, "")
    for _ in range(2):
        await hold(store, "alone", session=key)
        same((await read(store, "alone")).parent_run_id, None, "its parent")
        same(list(await store.list_runs(ancestors_of="alone")), [], "its ancestors")
        lab.clock.advance(LEASE_MS)
