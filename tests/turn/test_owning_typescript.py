"""Turns of TypeScript workers: read, continued and answered after, on one database with ours."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import LeaseHeldError, RunInputMismatchError, RunNotFoundError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.turn import reading as reading_module
from perdure.turn.identity import ChatTurnIdentity, chat_manifest, run_id_of, session_key
from tests.turn.stage import (
    COMPLETED,
    FAILED,
    NEXT,
    TURN,
    Reader,
    Script,
    Stage,
    collect,
    events_of,
    finish,
    kinds_of,
    until,
    within,
    words,
)
from tests.turn.typescript import LEASE_MS, TypeScriptWorker

THIRD = TURN._replace(turn_index=2)
STRANGER = TURN._replace(user_id="eve")
RESULT = [
    {"type": "session.run.started", "data": {"sessionId": "s", "tenantId": "", "turnIndex": 0}},
    {"type": "result", "data": {"finalText": "from afar"}},
    {"type": COMPLETED, "data": {"sessionId": "s", "replayed": True}},
]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async def open_handle(clock: ManualClock) -> RunStore:
        return await open_store(
            f"sqlite:{tmp_path / 'shared.db'}", durability="normal", clock=clock
        )

    async with Stage(open_handle) as opened:
        await (await opened.store()).list_runs()
        yield opened


@pytest.fixture
def typescript(stage: Stage, tmp_path: Path) -> TypeScriptWorker:
    return TypeScriptWorker(tmp_path / "shared.db", stage.clock)


async def lines_of(engine_lines: AsyncIterator[bytes]) -> list[object]:
    body = b"".join(await within(collect(engine_lines)))
    return [json.loads(line) for line in body.splitlines()]


async def test_a_finished_turn_is_replayed_to_readers_and_to_the_same_submit(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    typescript.answer(TURN, "from afar")
    before, script = typescript.rows(), Script()
    engine = await stage.engine(script)
    assert await lines_of(engine.read(TURN)) == RESULT
    submitted = await engine.submit(TURN, "Hi")
    assert not submitted.created
    assert submitted.run.manifest is None
    assert await events_of(submitted) == RESULT
    assert (script.calls, typescript.rows()) == (0, before)


async def test_a_turn_with_another_message_is_a_conflict(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    typescript.answer(TURN, "from afar")
    engine = await stage.engine()
    with pytest.raises(RunInputMismatchError, match="turn 0 of session 's'"):
        await engine.submit(TURN, "Hello")


async def test_a_live_turn_is_refused_to_a_submit_that_could_not_stream_it(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    typescript.begin(TURN)
    before, engine = typescript.rows(), await stage.engine()
    with pytest.raises(LeaseHeldError, match="worker of another runtime") as refused:
        await engine.submit(TURN, "Hi")
    assert "web-7f9c" not in str(refused.value)
    assert typescript.rows() == before
    typescript.complete(TURN, "from afar")
    assert await events_of(await engine.submit(TURN, "Hi")) == RESULT


async def test_a_reader_of_a_live_turn_waits_for_its_end(
    stage: Stage, typescript: TypeScriptWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "POLL_MS", 5)
    monkeypatch.setattr(reading_module, "ADRIFT_MS", 10)
    typescript.begin(TURN)
    engine = await stage.engine()
    reader = Reader()
    following = asyncio.ensure_future(reader.follow(engine.read(TURN, wire="envelope")))
    await until(lambda: reader.kinds)
    asked: list[int] = []
    store = await stage.store()
    while len(asked) < 20:
        await store.wait_for_change(None, timeout_ms=5)
        asked.append(len(reader.kinds))
    typescript.complete(TURN, "from afar")
    await within(following)
    # Nobody is said to have left a turn whose lease is one that nobody renews.
    assert reader.kinds == ["session.run.started", "result", COMPLETED]
    assert reader.text == "from afar"


async def test_a_stop_is_marked_and_left_to_the_holder(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    typescript.begin(TURN)
    engine = await stage.engine()
    run = await within(engine.stop(TURN))
    assert (run.state, run.stop_requested_at is not None) == ("running", True)
    assert (await stage.run()).lease_holder_id is not None


async def test_a_turn_whose_lease_has_lapsed_goes_on_with_its_own_submit(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    typescript.begin(TURN, "m0")
    stage.clock.advance(LEASE_MS)
    script = Script(words("here"), words("next"))
    engine = await stage.engine(script)
    reader = await finish(engine, TURN, "m0")
    assert (reader.text, reader.is_done) == ("here", True)
    await finish(engine, NEXT, "m1")
    assert list(script.turns[1].history) == [said("user", "m0"), said("assistant", "here")]


async def test_a_failed_turn_is_told_and_runs_again_with_retry(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    typescript.begin(TURN)
    typescript.fail(TURN)
    engine = await stage.engine(Script(words("mended")))
    reader = await Reader().read(engine)
    assert reader.kinds == ["session.run.started", "error", FAILED]
    assert kinds_of(await events_of(await engine.submit(TURN, "Hi")))[-1] == FAILED
    assert (await finish(engine, TURN, "Hi", retry=True)).text == "mended"


async def test_finished_turns_are_the_parents_of_the_next_one(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    typescript.answer(TURN, "one", "m0")
    typescript.answer(NEXT, "two", "m1")
    typescript.answer(TURN._replace(session_id="s:2"), "of another session")
    script = Script(words("three"))
    await finish(await stage.engine(script), THIRD, "m2")
    # Nobody knows what the user had said.
    assert list(script.turns[0].history) == [said("assistant", "one"), said("assistant", "two")]
    assert (await stage.run(THIRD)).parent_run_id == "chat:s:1"
    assert (await stage.run(NEXT)).parent_run_id == "chat:s:0"
    assert (await stage.run(TURN)).parent_run_id is None


async def test_turns_of_both_kinds_make_one_line(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    script = Script(words("one"), words("three"), words("three again"))
    engine = await stage.engine(script)
    await finish(engine, TURN, "m0")
    typescript.answer(NEXT, "two", "m1")
    line = [said("user", "m0"), said("assistant", "one"), said("assistant", "two")]
    await finish(engine, THIRD, "m2")
    assert list(script.turns[1].history) == line
    typescript.answer(TURN._replace(turn_index=3), "four")
    await finish(engine, TURN._replace(turn_index=4), "m4")
    texts = [message["content"] for message in script.turns[2].history]
    assert texts == ["m0", "one", "two", "m2", "three", "four"]


async def test_a_turn_that_failed_or_is_unfinished_is_nobodys_parent(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    typescript.answer(TURN, "one")
    typescript.begin(NEXT)
    typescript.fail(NEXT)
    typescript.begin(THIRD)
    script = Script()
    await finish(await stage.engine(script), TURN._replace(turn_index=3))
    assert list(script.turns[0].history) == [said("assistant", "one")]


async def test_a_queued_turn_stands_behind_what_a_typescript_worker_has_answered_meanwhile(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    store = await stage.store()
    manifest = chat_manifest(NEXT, "m1", project_id="perdure", domain="chat", model=None)
    await store.enqueue(run_id_of(NEXT), manifest, handler="chat", session=session_key(NEXT))
    typescript.answer(TURN, "one")
    (claim,) = await store.claim_due(["chat"], worker_id="w", lease_ms=1_000, limit=9)
    assert (claim.run.turn_index, claim.run.parent_run_id) == (1, "chat:s:0")


async def test_a_session_lists_turns_of_both_kinds_in_order(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    store = await stage.store()
    for index in (10, 0, 2):
        typescript.answer(TURN._replace(turn_index=index), f"answer {index}")
    typescript.begin(TURN._replace(turn_index=11))
    typescript.answer(TURN._replace(session_id="s:1"), "of another session")

    async def listed(**narrowed: Any) -> list[tuple[object, ...]]:
        runs = await store.list_runs(session_id="s", with_answer=True, **narrowed)
        return [(run.turn_index, run.state, (run.answer or {}).get("finalText")) for run in runs]

    whole = [(n, "completed", f"answer {n}") for n in (0, 2, 10)] + [(11, "running", None)]
    assert await listed() == whole
    assert await listed(limit=2) == whole[:2]
    assert await listed(after="chat:s:2") == whole[2:]
    assert await listed(state="running") == whole[3:]
    assert await listed(turn_index=2) == whole[1:2]
    await finish(await stage.engine(Script(words("ours"))), NEXT)
    whole.insert(1, (1, "completed", "ours"))
    assert await listed() == whole
    assert await listed(after="chat:s:1", limit=1) == whole[2:3]
    typescript.answer(TURN._replace(turn_index=12), "answer 12")
    assert (await listed(after="chat:s:11"))[0][0] == 12


async def test_a_session_without_an_owner_is_open_to_its_tenant(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    typescript.answer(TURN, "from afar")
    engine = await stage.engine()
    assert (await Reader().read(engine, STRANGER)).text == "from afar"
    with pytest.raises(RunNotFoundError):
        await Reader().read(engine, TURN._replace(tenant_id="acme"))


async def test_the_first_turn_of_ours_makes_the_session_its_users(
    stage: Stage, typescript: TypeScriptWorker
) -> None:
    typescript.answer(TURN, "from afar")
    engine = await stage.engine()
    await finish(engine, NEXT)
    typescript.answer(THIRD, "from farther")
    for turn in (TURN, THIRD):
        assert (await Reader().read(engine, turn)).is_done
        hidden: ChatTurnIdentity = turn._replace(user_id="eve")
        with pytest.raises(RunNotFoundError):
            await Reader().read(engine, hidden)
        with pytest.raises(RunNotFoundError):
            await engine.stop(hidden)
        with pytest.raises(RunNotFoundError):
            await engine.submit(hidden, "Hi")
    (listed,) = await (await stage.store()).list_runs(session_id="s", turn_index=2)
    assert listed.owner_id == "ann"


@pytest.mark.parametrize("run_id", ["chat:s", "chat:s:x", "chat:s:01", "chat:s:0~1", "chat::0"])
async def test_what_is_no_turn_by_its_id_has_no_place(
    stage: Stage, typescript: TypeScriptWorker, tmp_path: Path, run_id: str
) -> None:
    typescript.answer(TURN, "one")
    with closing(sqlite3.connect(tmp_path / "shared.db", isolation_level=None)) as connection:
        connection.execute("UPDATE durable_runs SET run_id = ?", (run_id,))
    store = await stage.store()
    run = await store.read_run(run_id)
    assert run is not None
    assert (run.session_id, run.turn_index, run.owner_id) == (None, None, None)
    assert await store.list_runs(session_id="s") == []
