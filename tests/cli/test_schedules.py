"""`perdure schedules`: what is due when, paused, resumed and forgotten."""

from __future__ import annotations

import pytest

from perdure.durable.schedules import TaskSchedules
from perdure.store.protocol import RunStore
from tests.cli.desk import Desk


@pytest.fixture
def filled(each_desk: Desk) -> Desk:
    async def fill(store: RunStore) -> None:
        await TaskSchedules(store).add("report", task="write", every_ms=3_600_000)
        await TaskSchedules(store.for_tenant("acme")).add("other", task="write", every_ms=60_000)

    each_desk.work(fill)
    return each_desk


def test_they_are_listed_by_tenant(filled: Desk) -> None:
    header, line = filled.run("schedules", "ls").out.splitlines()
    assert header.split()[:4] == ["NAME", "STATE", "TASK", "WHEN"]
    assert line.split()[:5] == ["report", "on", "write", "every", "1h"]
    (told,) = filled.json("schedules", "ls", "--tenant", "acme")
    assert (told["name"], told["everyMs"], told["pausedAt"]) == ("other", 60_000, None)
    assert filled.run("schedules", "ls", "--tenant", "nobody").out == "no schedules\n"


def test_one_is_paused_and_resumed(filled: Desk) -> None:
    assert filled.run("schedules", "pause", "report").out == "report is paused\n"
    assert filled.run("schedules", "ls").out.splitlines()[1].split()[1] == "paused"
    (told,) = filled.json("schedules", "resume", "report")
    assert told["pausedAt"] is None
    assert told["nextDueAt"] > told["createdAt"]


def test_one_is_forgotten(filled: Desk) -> None:
    told = filled.run("schedules", "rm", "report")
    assert (told.code, told.out) == (0, "report is removed; its runs stay\n")
    assert filled.json("schedules", "ls") == []


@pytest.mark.parametrize("verb", ["pause", "resume", "rm"])
def test_one_that_is_not_there_is_named(filled: Desk, verb: str) -> None:
    told = filled.run("schedules", verb, "other")
    assert (told.code, told.out) == (3, "")
    assert "'other'" in told.err
