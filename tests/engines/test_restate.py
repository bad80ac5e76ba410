"""Tasks and turns on a real Restate server, with workers that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import ChatTurnEngine, open_store
from perdure.errors import RunNotFoundError
from perdure.testing.hosts import HOST_CASES, HostCase
from perdure.turn.identity import ChatTurnIdentity
from tests.engines.restate_crew import RestateLab, Workers
from tests.engines.restate_server import free_ports, running_restate
from tests.engines.restate_worker import PIECES
from tests.node_packages import need_node_packages

pytestmark = [pytest.mark.node, pytest.mark.xdist_group("restate")]

LAST = "".join(f"last{number} " for number in range(PIECES))
FIRST = "".join(f"first{number} " for number in range(PIECES))
WHOLE = f"{FIRST}found {len(FIRST)} {LAST}"


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    need_node_packages()
    folder = tmp_path_factory.mktemp("restate")
    with running_restate(folder) as server:
        crew = Workers(server, folder)
        try:
            crew.start(2)
            server.register(crew.uri)
            yield crew
        finally:
            crew.close()


@pytest.fixture
async def engine(workers: Workers) -> AsyncIterator[ChatTurnEngine]:
    """An engine that only reads and stops: no worker of ours goes on with hosted turns."""
    store = await open_store(workers.database)
    yield ChatTurnEngine(store, produce=lambda _: None)
    await store.close()


def question(message: str, turn_index: int = 0) -> dict[str, Any]:
    return {"turn_index": turn_index, "message": message, "user_id": "u"}


async def lines_of(engine: ChatTurnEngine, session: str) -> AsyncIterator[dict[str, Any]]:
    """Yield a turn's stream from its begin, once a worker has begun it."""
    turn = ChatTurnIdentity("", session, "u", 0)
    while True:
        try:
            async for lines in engine.read(turn):
                for line in lines.splitlines():
                    yield json.loads(line)
            return
        except RunNotFoundError:
            await asyncio.sleep(0.01)


def seen_text(events: list[dict[str, Any]]) -> str:
    """Return the text that a reader has who forgets everything at a restart."""
    text = ""
    for event in events:
        if event["type"] == "session.run.restarted":
            text = ""
        elif event["type"] == "message.part.updated":
            text += event["data"]["delta"]
    return text


@pytest.mark.parametrize("case", HOST_CASES, ids=lambda case: case.__name__)
async def test_restate_keeps_the_contract_of_hosts(
    case: HostCase, workers: Workers, tmp_path: Path
) -> None:
    await case(RestateLab(workers, tmp_path))


# Tasks.


async def test_a_task_does_everything_by_restates_own_primitives(workers: Workers) -> None:
    since = len(workers.asked())
    answer = await asyncio.to_thread(workers.server.call, "task/t1/run", {"wait": False})
    told = answer.json()
    assert told["run"] == "t1"
    assert told["flaky"] == "third time"
    assert told["both"] == ["done", "done", "await_event_timeout"]
    assert told["emitted"] == [True, False, 1]
    asked = [what for _, what in workers.asked(since=since)]
    assert asked[:4] + asked[6:] == ["first", "flaky", "flaky", "flaky", "same"]
    assert set(asked[4:6]) == {"left", "right"}


async def test_an_event_may_come_before_the_task_waits_and_the_first_of_a_key_counts(
    workers: Workers,
) -> None:
    emit = "task/t2/emit"
    first = await asyncio.to_thread(workers.server.call, emit, {"key": "go", "payload": 1})
    second = await asyncio.to_thread(workers.server.call, emit, {"key": "go", "payload": 2})
    assert (first.json(), second.json()) == (True, False)
    answer = await asyncio.to_thread(workers.server.call, "task/t2/run", {"wait": True})
    assert answer.json()["both"] == ["done", "done", 1, "await_event_timeout"]
    wrong = await asyncio.to_thread(workers.server.call, emit, {"key": ""})
    assert wrong.status_code == 400


async def test_a_task_that_raises_has_failed_for_good_with_what_it_raised(
    workers: Workers,
) -> None:
    answer = await asyncio.to_thread(workers.server.call, "task/t3/run", {"fail": True})
    assert answer.status_code == 500
    assert "the step 'broken' failed: no such table" in answer.text


async def hung(workers: Workers, since: int) -> int:
    """Return the process that hangs in a step, once it does."""
    while True:
        found = [pid for pid, what in workers.asked(since=since) if what == "hang"]
        if found:
            return found[-1]
        await asyncio.sleep(0.01)


async def test_a_task_whose_worker_is_killed_goes_on_in_another_one_from_the_step_it_was_in(
    workers: Workers, tmp_path: Path
) -> None:
    since, gate = len(workers.asked()), tmp_path / "gate"
    invocation = workers.server.send("task/t4/run", {"hang": str(gate)})
    victim = await hung(workers, since)
    workers.kill(victim)
    gate.touch()
    workers.start(1)
    answer = await asyncio.to_thread(workers.server.attach, invocation)
    told = answer.json()
    assert told["both"][-1] == "went on"
    # What was drawn before the crash is drawn again by nobody.
    assert told["same"]
    assert told["emitted"] == [True, False, 1]
    asked = workers.asked(since=since)
    assert [what for _, what in asked].count("first") == 1
    assert [what for _, what in asked].count("hang") == 2
    assert asked[-1][0] != victim


async def test_a_step_that_may_run_once_is_not_executed_again_behind_a_crash(
    workers: Workers, tmp_path: Path
) -> None:
    since, gate = len(workers.asked()), tmp_path / "gate"
    wanted = {"hang": str(gate), "effect": "at_most_once"}
    invocation = workers.server.send("task/t5/run", wanted)
    victim = await hung(workers, since)
    workers.kill(victim)
    workers.start(1)
    answer = await asyncio.to_thread(workers.server.attach, invocation)
    assert answer.status_code == 500
    assert "whether it took effect is unknown" in answer.text
    assert [what for _, what in workers.asked(since=since)].count("hang") == 1


async def test_cancelling_the_invocation_ends_a_task(workers: Workers, tmp_path: Path) -> None:
    since = len(workers.asked())
    invocation = workers.server.send("task/t6/run", {"hang": str(tmp_path / "gate")})
    await hung(workers, since)
    workers.server.cancel(invocation)
    answer = await asyncio.to_thread(workers.server.attach, invocation, timeout_s=20)
    assert answer.status_code == 409


async def test_a_task_that_waits_is_suspended_and_holds_no_worker(workers: Workers) -> None:
    since = len(workers.asked())
    invocation = workers.server.send("task/t7/run", {"wait": True})
    await asyncio.to_thread(workers.server.wait_until, invocation, "suspended")
    event = {"key": "go", "payload": 1}
    await asyncio.to_thread(workers.server.call, "task/t7/emit", event)
    answer = await asyncio.to_thread(workers.server.attach, invocation)
    assert answer.json()["both"] == ["done", "done", 1, "await_event_timeout"]
    assert len(workers.asked(since=since)) == 7


# Turns.


async def test_a_turn_streams_through_the_journal_and_is_answered_once(
    workers: Workers, engine: ChatTurnEngine
) -> None:
    since = len(workers.asked())
    asking = asyncio.to_thread(workers.server.call, "chat/s1/ask", question("steps"))
    answer, events = await asyncio.gather(asking, _all(lines_of(engine, "s1")))
    assert answer.json() == {"run_id": "chat:s1:0", "state": "completed", "reason": None}
    assert seen_text(events) == WHOLE
    again = await asyncio.to_thread(workers.server.call, "chat/s1/ask", question("steps"))
    assert again.json() == answer.json()
    other = await asyncio.to_thread(workers.server.call, "chat/s1/ask", question("plain"))
    assert other.status_code == 400
    assert [what for _, what in workers.asked(since=since)] == ["first", "look", "last"]


async def test_turns_of_one_session_are_answered_one_after_the_other(
    workers: Workers, engine: ChatTurnEngine
) -> None:
    calls = [
        workers.server.send("chat/s2/ask", question("slow plain" if index == 0 else "plain", index))
        for index in range(3)
    ]
    for invocation in calls:
        assert (await asyncio.to_thread(workers.server.attach, invocation)).is_success
    runs = await engine.store.list_runs(session_id="s2")
    assert [run.state for run in runs] == ["completed"] * 3
    assert [run.epoch for run in runs] == [1, 1, 1]
    assert runs[0].completed_at is not None
    assert runs[0].completed_at <= runs[1].created_at


async def test_a_turn_waits_for_an_event_of_restate(
    workers: Workers, engine: ChatTurnEngine
) -> None:
    invocation = workers.server.send("chat/s3/ask", question("approve"))
    event = {"key": "approval", "payload": {"by": "Ada"}}
    emitted = await asyncio.to_thread(workers.server.call, "chat-turns/chat:s3:0/emit", event)
    assert emitted.json() is True
    assert (await asyncio.to_thread(workers.server.attach, invocation)).is_success
    assert "approved by Ada" in seen_text(await _all(lines_of(engine, "s3")))


async def test_a_turn_that_loses_its_worker_goes_on_at_once_and_readers_see_one_whole_answer(
    workers: Workers, engine: ChatTurnEngine
) -> None:
    since, session = len(workers.asked()), "s4"
    invocation = workers.server.send(f"chat/{session}/ask", question("slow steps"))
    events: list[dict[str, Any]] = []
    victim = 0
    lost_at = gone_on_at = 0.0
    async for event in lines_of(engine, session):
        events.append(event)
        if not victim and "last3 " in str(event):
            victim = workers.asked(since=since)[-1][0]
            workers.kill(victim)
            lost_at = time.monotonic()
            workers.start(1)
        if event["type"] == "session.run.restarted":
            gone_on_at = time.monotonic()
    answer = await asyncio.to_thread(workers.server.attach, invocation)
    assert answer.json()["state"] == "completed"
    assert [event["type"] for event in events].count("session.run.restarted") == 1
    assert seen_text(events) == WHOLE
    asked = workers.asked(since=since)
    assert [what for _, what in asked] == ["first", "look", "last", "last"]
    assert asked[-1][0] != victim
    # Far less than the lease of 15 s.
    assert gone_on_at - lost_at < 10


async def test_a_turn_that_is_stopped_keeps_what_it_said(
    workers: Workers, engine: ChatTurnEngine
) -> None:
    invocation = workers.server.send("chat/s5/ask", question("slow plain"))
    events: list[dict[str, Any]] = []
    async for event in lines_of(engine, "s5"):
        if not events and "plain3 " in str(event):
            events.append(event)
            await engine.stop(ChatTurnIdentity("", "s5", "u", 0))
    answer = await asyncio.to_thread(workers.server.attach, invocation)
    assert answer.json()["state"] == "stopped"


async def test_cancelling_the_invocation_stops_the_turn(
    workers: Workers, engine: ChatTurnEngine
) -> None:
    invocation = workers.server.send("chat/s6/ask", question("slow plain"))
    cancelled = False
    events: list[dict[str, Any]] = []
    async for event in lines_of(engine, "s6"):
        events.append(event)
        if not cancelled and "plain3 " in str(event):
            cancelled = True
            workers.server.cancel(invocation)
    answer = await asyncio.to_thread(workers.server.attach, invocation)
    assert answer.json()["state"] == "stopped"
    assert events[-1]["type"] == "session.run.stopped"
    assert seen_text(events).startswith("plain0 plain1 plain2 plain3 ")


# The example of the guide.

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "restate"


def test_the_guide_shows_the_worker_of_the_example_as_it_is() -> None:
    guide = ROOT / "docs" / "guides" / "engine-restate.md"
    assert (EXAMPLE / "worker.py").read_text("utf-8") in guide.read_text("utf-8")


def test_the_example_answers_behind_an_approval_and_runs_its_task(
    workers: Workers, tmp_path: Path
) -> None:
    server = workers.server
    [port] = free_ports(1)
    environment = {
        **os.environ,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'example.db'}",
        "RESTATE_INGRESS": server.ingress,
    }
    command = [sys.executable, str(EXAMPLE / "worker.py"), f"127.0.0.1:{port}"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as worker:
        try:
            server.register(f"http://127.0.0.1:{port}")
            told = subprocess.run(
                [sys.executable, "-W", "error", str(EXAMPLE / "ask.py")],
                env=environment,
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
            assert "Ben agrees" in told.stdout
            assert "session.run.completed" in told.stdout
            event = {"key": "confirmed", "payload": True}
            server.call("onboard/ann/emit", event).raise_for_status()
            task = server.call("onboard/ann/run", {"name": "Ann"})
            assert task.json() == {"account": "account of Ann", "confirmed": True}
        finally:
            worker.kill()
            # Both serve a chat, and the newest address counts.
            server.register(workers.uri)


async def _all(events: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event async for event in events]
