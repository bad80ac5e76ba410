"""The conversation a turn belongs to: what its model is given of the turns before it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.core.frames import text
from perdure.core.records import AgentTaskSpec, RunManifest, RunRecord
from perdure.errors import UsageError
from perdure.testing.crashing import crashing
from perdure.turn import history as history_module
from perdure.turn.history import lineage, messages_of, newest_answered, read_session
from tests.turn.stage import TURN, Script, Stage, Traffic, finish, until, within, words


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def run_of(
    index: int,
    *,
    revision: int = 0,
    state: Any = "completed",
    ended: int = 0,
    parent: str | None = None,
    answer: Any = None,
) -> RunRecord:
    manifest = RunManifest("p", AgentTaskSpec("t", "i"), {"userMessage": f"m{index}"})
    return RunRecord(
        run_id=f"chat:s:{index}" + (f"~{revision}" if revision else ""),
        manifest_hash="",
        project_id="p",
        status="completed",
        state=state,
        created_at="",
        updated_at="",
        completed_at=f"2026-01-31T09:05:07.{ended:03d}Z",
        manifest=manifest,
        turn_index=index,
        revision=revision,
        parent_run_id=parent,
        answer=answer,
    )


def test_lineage_follows_the_parents() -> None:
    runs = [
        run_of(0),
        run_of(0, revision=1),
        run_of(1, parent="chat:s:0~1"),
        run_of(2, parent="chat:s:1"),
    ]
    found = lineage(runs, "chat:s:2")
    assert [run.run_id for run in found] == ["chat:s:0~1", "chat:s:1", "chat:s:2"]
    assert lineage(runs, None) == []
    assert lineage(runs, "chat:other:0") == []


def test_the_answer_that_a_failed_revision_was_to_replace_keeps_its_place() -> None:
    runs = [
        run_of(0),
        run_of(1, parent="chat:s:0"),
        run_of(1, revision=1, parent="chat:s:0", state="failed"),
        run_of(1, revision=2, parent="chat:s:0", state="failed"),
        run_of(1, revision=3, parent="chat:s:0"),
        run_of(2, parent="chat:s:1~2", state="stopped"),
    ]
    found = [run.run_id for run in lineage(runs, "chat:s:2")]
    assert found == ["chat:s:0", "chat:s:1", "chat:s:2"]
    # A turn that failed without an earlier answer has nobody to stand in for it.
    runs[1] = run_of(1, parent="chat:s:0", state="failed")
    found = [run.run_id for run in lineage(runs, "chat:s:2")]
    assert found == ["chat:s:0", "chat:s:1~2", "chat:s:2"]


def test_a_lineage_that_bites_its_tail_ends() -> None:
    runs = [run_of(0, parent="chat:s:1"), run_of(1, parent="chat:s:0")]
    assert len(lineage(runs, "chat:s:1")) == 2


def test_a_conversation_stands_at_the_answer_that_was_given_last() -> None:
    runs = [
        run_of(0, ended=1),
        run_of(1, ended=2, parent="chat:s:0"),
        run_of(2, ended=3, parent="chat:s:1"),
        run_of(1, revision=1, ended=4, parent="chat:s:0"),
        run_of(1, revision=2, ended=5, parent="chat:s:0", state="failed"),
        run_of(3, state="running", parent="chat:s:2"),
    ]
    assert newest_answered(runs[:3]) == "chat:s:2"
    assert newest_answered(runs) == "chat:s:1~1"
    runs.append(run_of(3, revision=1, ended=6, parent="chat:s:2", state="stopped"))
    assert newest_answered(runs) == "chat:s:3~1"
    assert newest_answered(runs[4:6]) is None
    assert newest_answered([]) is None


def test_an_answer_that_was_gone_on_from_is_not_the_newest_whenever_it_ended() -> None:
    # A TypeScript worker that replays a turn ends it once more.
    runs = [run_of(0, ended=9), run_of(1, ended=2, parent="chat:s:0")]
    assert newest_answered(runs) == "chat:s:1"


def test_of_answers_of_one_millisecond_that_of_the_newer_revision_is_newer() -> None:
    runs = [run_of(0), run_of(1, parent="chat:s:0"), run_of(0, revision=1)]
    assert newest_answered(runs) == "chat:s:0~1"


@pytest.mark.parametrize("answer", [None, {"finalText": ""}, {}, "odd"])
def test_an_answer_without_text_is_no_message(answer: Any) -> None:
    assert messages_of([run_of(0, answer=answer)]) == [said("user", "m0")]


def test_a_turn_that_failed_before_one_that_was_stopped_in_line_is_no_message() -> None:
    line = [run_of(0, state="failed"), run_of(1, state="stopped", parent="chat:s:0")]
    assert messages_of(line) == [said("user", "m1")]


def test_a_turn_without_a_manifest_has_only_its_answer() -> None:
    run = run_of(0, answer={"finalText": "yes"})._replace(manifest=None)
    assert messages_of([run]) == [said("assistant", "yes")]


async def test_a_session_is_read_page_by_page(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "_PAGE", 2)
    engine = await stage.engine()
    for index in range(5):
        await finish(engine, TURN._replace(turn_index=index), f"m{index}")
    runs = await read_session(await stage.store(), "s")
    assert [run.turn_index for run in runs] == list(range(5))
    assert len(messages_of(runs)) == 10
    assert await read_session(await stage.store(), "t") == []


async def test_a_failed_turn_is_not_part_of_the_conversation(stage: Stage) -> None:
    script = Script(words("one"), [RuntimeError("no")], words("three"))
    engine = await stage.engine(script)
    for index in range(3):
        await finish(engine, TURN._replace(turn_index=index), f"m{index}")
    assert list(script.turns[2].history) == [said("user", "m0"), said("assistant", "one")]


async def test_a_stopped_turn_is_part_of_it_as_far_as_it_came(stage: Stage) -> None:
    script = Script([text("Hel"), asyncio.Event()], words("next"))
    engine = await stage.engine(script)
    await engine.submit(TURN, "m0")
    await until(stage.frames)
    await within(engine.stop(TURN))
    await finish(engine, TURN._replace(turn_index=1), "m1")
    assert list(script.turns[1].history) == [said("user", "m0"), said("assistant", "Hel")]


async def test_the_history_of_a_turn_is_fixed_when_it_is_submitted(stage: Stage) -> None:
    script = Script(words("one"), [text("a"), RuntimeError("no")], words("other"), words("two"))
    engine = await stage.engine(script)
    await finish(engine, TURN, "m0")
    turn = TURN._replace(turn_index=1)
    await finish(engine, turn, "m1")
    await finish(engine, TURN._replace(revision=1), "m0")
    await finish(engine, turn, "m1", retry=True)
    first, again = script.turns[1], script.turns[3]
    assert (
        list(first.history) == list(again.history) == [said("user", "m0"), said("assistant", "one")]
    )


async def test_sessions_and_tenants_do_not_mix(stage: Stage) -> None:
    script = Script(words("one"), words("two"), words("three"))
    engine = await stage.engine(script)
    await finish(engine)
    await finish(engine, TURN._replace(session_id="t", turn_index=1))
    await finish(engine, TURN._replace(tenant_id="acme", turn_index=1))
    assert [len(turn.history) for turn in script.turns] == [0, 0, 0]


@pytest.mark.parametrize(("turns_max", "first"), [(0, None), (1, "m4"), (3, "m2"), (9, "m0")])
async def test_a_producer_is_given_the_nearest_turns(
    stage: Stage, turns_max: int, first: str | None
) -> None:
    script = Script()
    engine = await stage.engine(script, history_turns_max=turns_max)
    for index in range(6):
        await finish(engine, TURN._replace(turn_index=index), f"m{index}")
    asked = [message["content"] for message in script.turns[-1].history][::2]
    assert asked == ([] if first is None else [f"m{n}" for n in range(int(first[1:]), 5)])


async def test_a_history_without_a_bound_is_read_page_by_page(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "_PAGE", 2)
    script = Script()
    engine = await stage.engine(script, history_turns_max=None)
    for index in range(6):
        await finish(engine, TURN._replace(turn_index=index), f"m{index}")
    for turn in script.turns:
        asked = [message["content"] for message in turn.history][::2]
        assert asked == [f"m{n}" for n in range(turn.identity.turn_index)]


async def test_what_a_history_costs_does_not_depend_on_the_session(stage: Stage) -> None:
    process = Traffic()
    engine = await stage.engine(store=crashing(await stage.open(), process), history_turns_max=3)
    reads: list[int] = []
    for index in range(12):
        await finish(engine, TURN._replace(turn_index=index), f"m{index}")
        reads.append(process.reads["list_runs"])
    assert reads == list(range(12))


async def test_a_history_bound_below_nothing_is_refused(stage: Stage) -> None:
    with pytest.raises(UsageError, match="history_turns_max"):
        await stage.engine(history_turns_max=-1)
