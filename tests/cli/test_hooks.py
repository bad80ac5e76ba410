"""`perdure hooks`: deliveries that wait or are dead, and how they are made again."""

from __future__ import annotations

import pytest

from perdure.core.limits import DELIVERY_BACKOFF_MAX_MS, DELIVERY_TRIES_MAX
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.samples import HANDLER, delivery, finish
from tests.cli.desk import Desk


@pytest.fixture
def filled(each_desk: Desk) -> Desk:
    """A dead delivery of the run `dead`, and two that wait of `waits`."""
    clock = ManualClock()

    async def fill(store: RunStore) -> None:
        await finish(store, "dead", delivery(0))
        for _ in range(DELIVERY_TRIES_MAX):
            (claimed,) = await store.claim_deliveries([HANDLER], limit=1)
            await store.settle_delivery(claimed, error="no\nroom")
            clock.advance(DELIVERY_BACKOFF_MAX_MS)
        await finish(store.for_tenant("acme"), "waits", delivery(0), delivery(1))

    each_desk.work(fill, clock=clock)
    return each_desk


def places(desk: Desk, *arguments: str) -> list[tuple[str, int, str, int]]:
    return [
        (found["runId"], found["position"], found["state"], found["tries"])
        for found in desk.json("hooks", "ls", *arguments)
    ]


def test_those_that_wait_or_are_dead_are_listed(filled: Desk) -> None:
    assert places(filled) == [
        ("dead", 0, "dead", 20),
        ("@acme/waits", 0, "waiting", 0),
        ("@acme/waits", 1, "waiting", 0),
    ]
    assert places(filled, "--state", "dead") == [("dead", 0, "dead", 20)]
    assert places(filled, "--handler", "other") == []
    assert len(places(filled, "--limit", "2")) == 2
    header, first, *_ = filled.run("hooks", "ls").out.splitlines()
    assert header.split()[:4] == ["RUN", "#", "STATE", "HOOK"]
    assert first.split()[:4] == ["dead", "0", "dead", "persist"]
    assert "no⏎room" in first


def test_a_dead_one_waits_again(filled: Desk) -> None:
    told = filled.run("hooks", "retry", "dead")
    assert (told.code, told.out) == (0, "dead persist is due now\n")
    assert ("dead", 0, "waiting", 0) in places(filled)


def test_one_of_several_is_made_again_by_its_position(filled: Desk) -> None:
    (told,) = filled.json("hooks", "retry", "@acme/waits", "--position", "1")
    assert (told["position"], told["state"]) == (1, "waiting")
    assert len(filled.json("hooks", "retry", "waits", "--tenant", "acme")) == 2


def test_all_dead_ones_are_made_again_at_once(filled: Desk) -> None:
    assert len(filled.json("hooks", "retry", "--dead")) == 1
    assert places(filled, "--state", "dead") == []
    assert filled.run("hooks", "retry", "--dead").out == "no delivery is dead\n"


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ((), 2, "--dead"),
        (("dead", "--dead"), 2, "--dead"),
        (("nobody",), 3, "nobody"),
        (("dead", "--position", "7"), 3, "delivery 7"),
    ],
)
def test_what_cannot_be_made_again_is_refused_by_name(
    filled: Desk, arguments: tuple[str, ...], code: int, word: str
) -> None:
    told = filled.run("hooks", "retry", *arguments)
    assert (told.code, told.out) == (code, "")
    assert word in told.err


def test_without_deliveries_it_says_so(desk: Desk) -> None:
    desk.work(lambda store: store.list_runs())
    assert desk.run("hooks", "ls").out == "no deliveries that wait or are dead\n"
