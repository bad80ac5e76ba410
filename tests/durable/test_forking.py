"""Forks of runs: what is kept, what runs again, who goes on, and what cannot be forked."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from perdure.core.changes import BeginStep, CompleteStep
from perdure.core.records import JsonValue
from perdure.durable.context import DurableContext
from perdure.durable.forking import ForkOrigin, fork, fork_origin, preview_fork
from perdure.durable.runner import emit_event, run_durable
from perdure.durable.steps import current_step
from perdure.errors import RunNotFoundError, RunParkedError, StepFailedError, UsageError
from perdure.store.protocol import RunStore
from tests.durable.handles import (
    MANIFEST,
    Body,
    Broken,
    crash_after,
    is_in,
    leave_behind,
    read,
    run,
    steps_of,
    until,
    within,
)
from tests.durable.workshop import working


class Letters:
    """A task of four steps, which counts what runs and can be told to fail in one of them."""

    def __init__(self, *, fails_at: str | None = None) -> None:
        self.ran: list[str] = []
        self.keys: list[str] = []
        self.fails_at = fails_at

    async def __call__(self, context: DurableContext) -> list[str]:
        return [await context.step(name, partial(self._body, name)) for name in "abcd"]

    def _body(self, name: str) -> str:
        self.ran.append(name)
        self.keys.append(current_step().idempotency_key)
        if name == self.fails_at:
            raise Broken("it broke")
        return f"{name}{len(self.ran)}"


async def test_a_fork_keeps_what_stands_before_its_step_and_runs_the_rest(store: RunStore) -> None:
    letters = Letters()
    first = await run(store, letters)
    forked = await fork(store, "run", from_step=2, new_run_id="again")
    assert (forked.run_id, forked.state, forked.manifest_hash) == (
        "again",
        "running",
        first.record.manifest_hash,
    )
    assert [(step.intent, step.status) for step in await steps_of(store, "again")] == [
        ("a", "completed"),
        ("b", "completed"),
    ]
    second = await run(store, letters, run_id="again")
    assert second.result == ["a1", "b2", "c5", "d6"]
    assert letters.ran == ["a", "b", "c", "d", "c", "d"]
    assert len(set(letters.keys)) == 6, "what runs again has other idempotency keys"
    assert (await run(store, letters)).result == first.result, "the original stays as it is"
    assert await store.read_run("run") == first.record


async def test_a_fork_knows_where_it_comes_from(store: RunStore) -> None:
    await run(store, Letters())
    forked = await fork(store, "run", from_step=2, new_run_id="again")
    assert fork_origin(forked) == ForkOrigin("run", 2)
    assert fork_origin(await read(store)) is None
    await run(store, Letters(), run_id="again")
    further = await fork(store, "again", from_step=3, new_run_id="once more")
    assert fork_origin(further) == ForkOrigin("again", 3)


@pytest.mark.parametrize(("from_step", "reran"), [(0, "abcd"), (1, "bcd"), (4, "")])
async def test_a_fork_may_keep_nothing_or_everything(
    store: RunStore, from_step: int, reran: str
) -> None:
    await run(store, Letters())
    await fork(store, "run", from_step=from_step, new_run_id="again")
    letters = Letters()
    await run(store, letters, run_id="again")
    assert "".join(letters.ran) == reran


async def test_steps_are_kept_with_all_that_is_recorded_of_them(store: RunStore) -> None:
    async def task(context: DurableContext) -> str:
        await context.step("tool", lambda: {"x": [1, None]}, kind="tool", effect="at_most_once")
        await context.step("hashed", lambda: 2.5, fingerprint={"model": "m"})
        return await context.uuid()

    await run(store, task)
    await fork(store, "run", from_step=3, new_run_id="again")
    for old, new in zip(await steps_of(store), await steps_of(store, "again"), strict=True):
        assert new == old._replace(run_id="again", completed_at=new.completed_at, epoch=new.epoch)


async def test_a_parked_run_is_forked_before_the_step_that_diverged(store: RunStore) -> None:
    await leave_behind(store, CompleteStep(0, "a", '"a"'), CompleteStep(1, "old", '"old"'))
    with pytest.raises(RunParkedError):
        await run(store, Letters())
    await fork(store, "run", from_step=1, new_run_id="again")
    assert (await run(store, Letters(), run_id="again")).result == ["a", "b1", "c2", "d3"]
    assert (await read(store)).state == "parked"


async def test_a_failed_run_is_forked_before_its_failure(store: RunStore) -> None:
    with pytest.raises(Broken):
        await run(store, Letters(fails_at="c"))
    await fork(store, "run", from_step=2, new_run_id="again")
    assert (await run(store, Letters(), run_id="again")).result == ["a1", "b2", "c1", "d2"]


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_failure_that_is_kept_is_final(store: RunStore, goes_on: bool) -> None:
    """Even where it is the last step that is kept, and where it is the only one."""
    shaky = Body("better", fails=1)

    async def task(context: DurableContext) -> list[object]:
        try:
            got: object = await context.step("shaky", shaky)
        except StepFailedError as error:
            got = error.original_message
        return [got, await context.step("behind", lambda: "behind")]

    assert (await run(store, task)).result == ["it broke", "behind"]
    await fork(store, "run", from_step=2 if goes_on else 1, new_run_id="again")
    assert (await run(store, task, run_id="again")).result == ["it broke", "behind"]
    assert shaky.calls == 1


async def test_an_event_that_was_waited_for_is_there_for_another_wait(store: RunStore) -> None:
    async def task(context: DurableContext) -> list[JsonValue]:
        first = await context.await_event("approved")
        await context.step("between", lambda: None)
        return [first, await context.await_event("approved", timeout_ms=50)]

    await leave_behind(store)
    await emit_event(store, "run", "approved", {"by": "Ada"})
    await emit_event(store, "run", "unread", 1)
    await within(run(store, task))
    preview = await preview_fork(store, "run", from_step=1)
    assert list(preview.events) == ["approved"]
    await fork(store, "run", from_step=1, new_run_id="again")
    events = (await store.read_details("again")).events
    assert [(event.key, event.payload) for event in events] == [("approved", {"by": "Ada"})]
    done = await within(run(store, task, run_id="again"))
    assert done.result == [{"by": "Ada"}, {"by": "Ada"}]


async def test_a_fork_may_have_another_input(store: RunStore) -> None:
    async def task(context: DurableContext) -> list[object]:
        kept = await context.step("kept", lambda: dict(context.input))
        return [kept, await context.step("again", lambda: dict(context.input))]

    await run(store, task)
    forked = await fork(store, "run", from_step=1, new_run_id="again", input={"question": "New?"})
    assert forked.manifest is not None
    done = await run_durable(store, run_id="again", manifest=forked.manifest, task=task)
    assert done.result == [dict(MANIFEST.input), {"question": "New?"}]


async def test_a_worker_goes_on_with_the_fork_of_its_run(store: RunStore) -> None:
    letters = Letters()
    async with working(store, {"letters": letters}) as worker:
        await worker.submit("letters", run_id="run", manifest=MANIFEST)
        await until(lambda: is_in(store, "completed"))
        await fork(store, "run", from_step=3, new_run_id="again")
        await until(lambda: is_in(store, "completed", "again"))
    assert letters.ran == ["a", "b", "c", "d", "d"]
    assert (await read(store, "again")).handler == "letters"


async def test_a_fork_stays_in_its_tenant(store: RunStore) -> None:
    acme = store.for_tenant("acme")
    await run(acme, Letters())
    with pytest.raises(RunNotFoundError):
        await fork(store, "run", from_step=1, new_run_id="again")
    await fork(acme, "run", from_step=1, new_run_id="again")
    assert (await read(acme, "again")).tenant == "acme"
    assert await store.read_run("again") is None


# Doing it again.


async def test_the_same_fork_again_is_the_same_run(store: RunStore) -> None:
    await run(store, Letters())
    first = await fork(store, "run", from_step=2, new_run_id="again")
    assert await fork(store, "run", from_step=2, new_run_id="again") == first
    done = await run(store, Letters(), run_id="again")
    assert await fork(store, "run", from_step=2, new_run_id="again") == done.record


@pytest.mark.parametrize(
    "other",
    [
        {"from_step": 3, "new_run_id": "again"},
        {"from_step": 2, "new_run_id": "other"},
        {"from_step": 2, "new_run_id": "run"},
        {"from_step": 2, "new_run_id": "again", "input": {"question": "Another?"}},
    ],
)
async def test_the_id_of_another_run_is_refused(store: RunStore, other: dict[str, Any]) -> None:
    await run(store, Letters())
    await run(store, Letters(), run_id="other")
    await fork(store, "run", from_step=2, new_run_id="again")
    before = [await store.read_steps(run_id) for run_id in ("run", "other", "again")]
    with pytest.raises(UsageError):
        await fork(store, "run", **other)
    assert [await store.read_steps(run_id) for run_id in ("run", "other", "again")] == before


# What cannot be forked.


async def test_what_cannot_be_forked_is_said_with_the_way_out(store: RunStore) -> None:
    await crash_after(
        store, CompleteStep(0, "a", "1"), BeginStep(1, "b"), CompleteStep(2, "c", "3")
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"from_step": 4}, "fork it from step 0 to 3"),
        ({"from_step": 3}, r"step 1 of the run 'run' \('b'\) is running: fork it from step 1"),
        ({"from_step": 2}, "is running"),
        ({"from_step": -1}, "from_step"),
        ({"from_step": 1, "new_run_id": None}, "needs a new_run_id"),
        ({"from_step": 1, "new_run_id": ""}, "run_id"),
    ]
    for options, culprit in cases:
        with pytest.raises(UsageError, match=culprit):
            await fork(store, "run", **{"new_run_id": "again", **options})
    assert [each.run_id for each in await store.list_runs()] == ["run"]
    forked = await fork(store, "run", from_step=1, new_run_id="again")
    assert forked.step_count == 1, "what is recorded of a live run can be kept"
    with pytest.raises(RunNotFoundError, match="unknown"):
        await fork(store, "unknown", from_step=0, new_run_id="x")


# Looking first.


async def test_a_preview_tells_what_replays_and_what_runs_again(store: RunStore) -> None:
    await run(store, Letters())
    preview = await preview_fork(store, "run", from_step=1, new_run_id="again")
    assert [step.intent for step in preview.kept] == ["a"]
    assert [step.intent for step in preview.again] == ["b", "c", "d"]
    assert (preview.new_run_id, preview.handler, preview.frames) == ("again", None, 0)
    assert await store.read_run("again") is None
    assert (await preview_fork(store, "run", from_step=4)).again == []
    with pytest.raises(UsageError, match="from step 0 to 4"):
        await preview_fork(store, "run", from_step=5)
