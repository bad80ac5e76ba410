"""`perdure decide`: what waits for a human, and the first answer that counts."""

from __future__ import annotations

from perdure.agent.tool_approval import REQUEST_MARK, ApprovalRequest, request_to_json
from perdure.core.records import EventRecord, JsonValue
from perdure.store.protocol import RunStore
from perdure.testing.samples import completed, hold
from tests.cli.desk import Desk

FIRST, SECOND = "approval:loop:1.1", "approval:loop:1.2"


KEY = "sk-proj-0123456789abcdefghij"


def asking(desk: Desk, *events: str, **more: JsonValue) -> None:
    """Begin a run that asks a human about so many calls."""

    async def begin(store: RunStore) -> None:
        lease = await hold(store, "run")
        for position, event in enumerate(events):
            asked = ApprovalRequest(
                event, "c1", "refund", {"amount": 7, **more}, "2026-01-31T09:05:07.042Z"
            )
            await store.write(lease, completed(position, {REQUEST_MARK: request_to_json(asked)}))

    desk.work(begin)


def answer_of(desk: Desk, event: str) -> object:
    async def look(store: RunStore) -> EventRecord | None:
        return await store.load_event("run", event)

    found = desk.work(look)
    return None if found is None else found.payload


def test_what_waits_is_listed_and_decided(each_desk: Desk) -> None:
    asking(each_desk, FIRST)
    listed = each_desk.run("decide", "run")
    assert listed.code == 0
    assert FIRST in listed.out
    assert '{"amount":7}' in listed.out
    [found] = each_desk.json("decide", "run")
    assert (found["event"], found["tool"], found["arguments"]) == (FIRST, "refund", {"amount": 7})
    told = each_desk.run("decide", "run", "--deny", "--reason", "too much", "--by", "Ada")
    assert (told.code, told.out) == (0, f"{FIRST} is denied\n")
    denied = {"approved": False, "reason": "too much", "by": "Ada"}
    assert answer_of(each_desk, FIRST) == denied
    assert each_desk.run("decide", "run").out == "nothing waits for a human\n"


def test_the_first_answer_counts(desk: Desk) -> None:
    asking(desk, FIRST)
    assert desk.run("decide", "run", "--approve").code == 0
    late = desk.run("decide", "run", "--deny", "--event", FIRST)
    assert (late.code, late.out) == (1, f'{FIRST} was decided before: {{"approved":true}}\n')


def test_one_of_several_calls_is_named(desk: Desk) -> None:
    asking(desk, FIRST, SECOND)
    told = desk.run("decide", "run", "--approve")
    assert told.code == 2
    assert f"--event ({FIRST}, {SECOND})" in told.err
    assert desk.run("decide", "run", "--approve", "--event", SECOND).code == 0
    assert (answer_of(desk, FIRST), answer_of(desk, SECOND)) == (None, {"approved": True})


def test_what_nobody_asked_is_not_decided(desk: Desk) -> None:
    asking(desk)
    for more in ((), ("--event", "paid")):
        told = desk.run("decide", "run", "--approve", *more)
        assert told.code == 3
    assert answer_of(desk, "paid") is None
    assert desk.run("decide", "nobody").code == 3


def test_no_secret_among_the_arguments_is_printed(desk: Desk) -> None:
    asking(desk, FIRST, note=f"use {KEY}", login={"$secret": "hunter2"})

    async def emit(store: RunStore) -> None:
        await store.emit_event("run", "plain", {"note": f"use {KEY}"})

    desk.work(emit)
    told = [desk.run("decide", "run", *more) for more in ((), ("--json",))]
    told += [desk.run("show", "run", *more) for more in (("--full",), ("--json",))]
    for each in told:
        assert "use [redacted]" in each.out
        assert KEY not in each.out
        assert "hunter2" not in each.out
