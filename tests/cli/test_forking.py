"""`perdure fork`: what is kept, what is done again, and that it can be seen before."""

from __future__ import annotations

import pytest

from perdure.core.limits import LEASE_MS
from perdure.core.records import SessionKey
from perdure.store.protocol import RunStore
from perdure.testing.samples import HANDLER, completed, ended, finish, hold
from tests.cli.desk import Desk


async def three_steps(store: RunStore) -> None:
    await finish(store, "run", completed(0, "a"), completed(1, "b"), completed(2, "c"))


async def ids(store: RunStore) -> list[str]:
    return sorted(run.run_id for run in await store.list_runs())


def test_a_run_is_forked_and_a_worker_goes_on_with_it(each_desk: Desk) -> None:
    each_desk.work(three_steps)
    told = each_desk.run("fork", "run", "--from-step", "2", "--new-id", "again")
    assert (told.code, told.out) == (0, "again is forked from run: 2 kept, 1 to do again\n")

    async def claim(store: RunStore) -> list[object]:
        (claimed,) = await store.claim_due([HANDLER], worker_id="w", lease_ms=LEASE_MS, limit=9)
        return [claimed.run.run_id, *(step.result for step in claimed.steps)]

    assert each_desk.work(claim) == ["again", "a", "b"]


def test_what_would_be_done_again_is_shown_and_nothing_is_done(desk: Desk) -> None:
    desk.work(three_steps)
    arguments = ("fork", "run", "--from-step", "1", "--new-id", "again", "--dry-run")
    told = desk.run(*arguments)
    assert told.code == 0
    kept, again = told.out.split("Done again")
    assert ("step-0" in kept, "step-1" in kept) == (True, False)
    assert ("step-0" in again, "step-1" in again, "step-2" in again) == (False, True, True)
    (preview,) = desk.json(*arguments)
    assert [step["intent"] for step in preview["again"]] == ["step-1", "step-2"]
    assert (preview["newRunId"], preview["handler"]) == ("again", HANDLER)
    assert desk.work(ids) == ["run"]


def test_a_turn_is_forked_into_its_next_revision(desk: Desk) -> None:
    async def turn(store: RunStore) -> None:
        lease = await hold(store, "chat:s:0", session=SessionKey("s", 0, 0, "ada"))
        await store.write(lease, completed(1, "found"), completed(2, "read"))
        await store.write(lease, completed(0, {"finalText": "x", "parts": []}), ended())

    desk.work(turn)
    (forked,) = desk.json("fork", "chat:s:0", "--from-step", "2")
    assert (forked["id"], forked["revision"]) == ("chat:s:0~1", 1)


def test_a_run_without_a_handler_says_who_goes_on(desk: Desk) -> None:
    async def alone(store: RunStore) -> None:
        await store.write(await hold(store, "run", handler=None), completed(0), ended())

    desk.work(alone)
    told = desk.run("fork", "run", "--from-step", "1", "--new-id", "again")
    assert told.code == 0
    assert "run_durable" in told.out


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("run", "--from-step", "9", "--new-id", "x"), 2, "step"),
        (("run", "--from-step", "-1", "--new-id", "x"), 2, "from_step"),
        (("run", "--from-step", "1"), 2, "new_run_id"),
        (("run", "--from-step", "1", "--new-id", "run"), 2, "original"),
        (("run", "--new-id", "x"), 2, "--from-step"),
        (("nobody", "--from-step", "1", "--new-id", "x"), 3, "nobody"),
    ],
)
def test_what_cannot_be_forked_is_refused_by_name(
    desk: Desk, arguments: tuple[str, ...], code: int, word: str
) -> None:
    desk.work(three_steps)
    told = desk.run("fork", *arguments)
    assert (told.code, told.out) == (code, "")
    assert word in told.err
    assert desk.work(ids) == ["run"]
