"""`perdure ls`: filters, pages, and what it says of each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.core.records import SessionKey
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.samples import HANDLER, completed, finish, hold, manifest
from tests.cli.commands import perdure
from tests.cli.desk import Desk


async def fill(store: RunStore) -> None:
    """Make runs of two tenants, in several states."""
    await finish(store, "chat:s:0", completed(0), session=SessionKey("s", 0))
    await finish(store, "broken", state="failed")
    await store.enqueue("later", manifest(), handler="other")
    await hold(store.for_tenant("acme"), "chat:s:0", session=SessionKey("s", 0))


def ids(desk: Desk, *arguments: str) -> list[str]:
    return [run["id"] for run in desk.json("ls", *arguments)]


def test_it_lists_the_runs_of_all_tenants_in_columns(each_desk: Desk) -> None:
    each_desk.work(fill)
    ended = each_desk.run("ls")
    assert ended.code == 0
    header, *lines = ended.out.splitlines()
    assert header.split()[:3] == ["RUN", "STATE", "CREATED"]
    assert {line.split()[0] for line in lines} == {
        "@acme/chat:s:0",
        "later",
        "broken",
        "chat:s:0",
    }
    column = header.index("STATE")
    assert {line[column:].split()[0] for line in lines} == {
        "running",
        "queued",
        "failed",
        "completed",
    }
    assert "\x1b" not in ended.out


def test_it_chooses_by_what_is_asked_for(each_desk: Desk) -> None:
    each_desk.work(fill)
    assert ids(each_desk, "--state", "failed") == ["broken"]
    assert ids(each_desk, "--handler", "other") == ["later"]
    assert ids(each_desk, "--tenant", "acme") == ["@acme/chat:s:0"]
    assert sorted(ids(each_desk, "--session", "s")) == ["@acme/chat:s:0", "chat:s:0"]
    assert ids(each_desk, "--session", "s", "--tenant", "") == ["chat:s:0"]
    assert len(ids(each_desk, "--since", "1h")) == 4
    assert ids(each_desk, "--since", "2999-01-01") == []


def test_pages_go_on_behind_the_last_run(each_desk: Desk) -> None:
    clock = ManualClock()

    async def many(store: RunStore) -> None:
        for number in range(5):
            await store.enqueue(f"run-{number}", manifest(), handler=HANDLER)
            clock.advance(1)

    each_desk.work(many, clock=clock)
    first = each_desk.run("ls", "--limit", "2")
    assert [line.split()[0] for line in first.out.splitlines()[1:3]] == ["run-4", "run-3"]
    assert first.out.splitlines()[3] == "… and more: perdure ls --after run-3"
    assert ids(each_desk, "--limit", "2", "--after", "run-3") == ["run-2", "run-1"]
    assert ids(each_desk, "--limit", "2", "--after", "run-1") == ["run-0"]
    assert ids(each_desk, "--all") == [f"run-{number}" for number in (4, 3, 2, 1, 0)]


def test_an_empty_store_is_said_to_be_so(desk: Desk) -> None:
    desk.work(lambda store: store.list_runs())
    assert desk.run("ls").out == "no runs\n"
    assert desk.json("ls") == []


def test_a_page_behind_an_unknown_run_is_refused(desk: Desk) -> None:
    desk.work(fill)
    ended = desk.run("ls", "--after", "nobody")
    assert (ended.code, ended.out) == (3, "")
    assert "'nobody'" in ended.err


def test_to_look_at_a_store_never_makes_one(tmp_path: Path, desk: Desk) -> None:
    ended = desk.run("ls")
    assert (ended.code, ended.out) == (2, "")
    assert desk.url in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_store_in_memory_is_refused_by_name(desk: Desk) -> None:
    ended = desk.run("ls", "--store", "memory:", store=False)
    assert ended.code == 2
    assert "memory" in ended.err


def test_the_environment_names_the_store(desk: Desk) -> None:
    desk.work(fill)
    ended = perdure("ls", "--state", "failed", env={"PERDURE_STORE": desk.url})
    assert ended.code == 0
    assert ended.out.splitlines()[1].startswith("broken")


@pytest.mark.parametrize("text", ["", "yesterday", "5", "-5m", "2026-02-30", "2026-13-01", "5 m"])
def test_what_is_no_moment_is_refused_by_name(text: str, desk: Desk) -> None:
    desk.work(fill)
    ended = desk.run("ls", f"--since={text}")
    assert ended.code == 2
    assert "--since" in ended.err
