"""`perdure show`: everything of a run is there, and nothing in it steers the terminal."""

from __future__ import annotations

import pytest

from perdure.core.changes import IntendUsage, SettleUsage
from perdure.core.records import SessionKey
from perdure.store.protocol import RunStore
from perdure.testing.samples import (
    HANDLER,
    begun,
    completed,
    delivery,
    ended,
    failed,
    hold,
    manifest,
)
from tests.cli.desk import Desk


async def fill(store: RunStore) -> None:
    """Make a run with something of everything."""
    lease = await hold(store, "run", session=SessionKey("s", 3, 1, "ada"))
    await store.emit_event("run", "paid", {"by": "card"})
    await store.write(lease, completed(0, {"answer": "x" * 100}), failed(1, "It\x1b[31m broke\n!"))
    await store.write(lease, IntendUsage(0, model="m-1"), SettleUsage(0, tokens_in=7, tokens_out=9))
    await store.write(lease, begun(2), delivery(0), ended())


def sections(text: str) -> dict[str, str]:
    head, *rest = text.split("\n\n")
    return {"": head, **{section.split("\n", 1)[0]: section for section in rest}}


def test_it_shows_every_part_of_a_run(each_desk: Desk) -> None:
    each_desk.work(fill)
    ended = each_desk.run("show", "run")
    assert ended.code == 0, ended
    page = sections(ended.out)
    assert list(page) == ["", "Attempts", "Steps", "Events", "Model calls", "Deliveries"]
    assert "s, turn 3, revision 1" in page[""]
    assert f"handler  {HANDLER}" in page[""].replace("      ", "  ")
    assert "ada" in page[""]
    assert page["Attempts"].count("ann") == 1
    assert "completed" in page["Attempts"]
    assert "step-0" in page["Steps"]
    assert "It� [31m" not in page["Steps"]
    assert "It�[31m broke⏎!" in page["Steps"]
    assert "\x1b" not in ended.out
    assert "paid" in page["Events"]
    assert page["Model calls"].split()[-9:-5] == ["1", "settled", "m-1", "7"]
    assert "persist" in page["Deliveries"]


def test_long_values_are_cut_unless_all_is_asked_for(desk: Desk) -> None:
    desk.work(fill)
    assert "x" * 100 not in desk.run("show", "run").out
    assert "x" * 100 in desk.run("show", "run", "--full").out


def test_programs_get_one_object(each_desk: Desk) -> None:
    each_desk.work(fill)
    (run,) = each_desk.json("show", "run")
    assert (run["id"], run["state"], run["turnIndex"], run["ownerId"]) == (
        "run",
        "completed",
        3,
        "ada",
    )
    assert [step["status"] for step in run["steps"]] == ["completed", "failed", "running"]
    assert run["steps"][1]["error"]["message"] == "It\x1b[31m broke\n!"
    assert run["events"][0]["payload"] == {"by": "card"}
    assert run["usage"][0]["tokensIn"] == 7
    assert run["deliveries"][0]["state"] == "waiting"
    assert "token" not in run["deliveries"][0]


@pytest.mark.parametrize(
    "arguments", [("@acme/run",), ("run", "--tenant", "acme"), ("@acme/run", "--tenant", "acme")]
)
def test_a_run_of_a_tenant_is_named_in_either_way(desk: Desk, arguments: tuple[str, ...]) -> None:
    async def fill_acme(store: RunStore) -> None:
        await store.for_tenant("acme").enqueue("run", manifest(), handler=HANDLER)

    desk.work(fill_acme)
    (run,) = desk.json("show", *arguments)
    assert (run["id"], run["tenant"], run["runId"]) == ("@acme/run", "acme", "run")


def test_an_unknown_run_is_told_apart_by_the_exit_code(desk: Desk) -> None:
    desk.work(fill)
    ended = desk.run("show", "nobody")
    assert (ended.code, ended.out) == (3, "")
    assert "'nobody' of the default tenant" in ended.err
    ended = desk.run("show", "run", "--tenant", "acme")
    assert (ended.code, "tenant 'acme'" in ended.err) == (3, True)
    ended = desk.run("show", "@acme/run", "--tenant", "other")
    assert (ended.code, "'other'" in ended.err) == (2, True)
