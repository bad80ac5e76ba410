"""Tools whose process dies between effect and record, and approvals that outlive processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from perdure.agent.tool_approval import Approval, answer_approval, pending_approvals
from perdure.agent.tool_loop import ToolLoop
from perdure.agent.tools import Tool, ToolCall
from perdure.durable.context import DurableContext
from perdure.durable.runner import emit_event, run_durable
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.testing.contract import NewLab
from perdure.testing.faults import crash_everywhere
from perdure.turn.identity import run_id_of
from tests.agent.strict_provider import StrictProvider, calls, says
from tests.crash.conftest import NewUrl
from tests.crash.test_kill_runs import PATIENCE_S, ROOT, until
from tests.crash.tool_process import MANIFEST, TURN, UNFINISHED

T = TypeVar("T")

BOTH_PAID = '["paid rent", "paid light", "Both are paid."]'


class Bench:
    """Processes one after the other on one database, and what they leave in the world."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.notes = folder / "notes.txt"
        self.notes.touch()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "tests.crash.tool_process", self.url, str(self.notes)]
        process = subprocess.Popen([*words, *options], cwd=ROOT)
        self._processes.append(process)
        return process

    def run(self, *options: str) -> int:
        """Run a process to its end, and return its exit code."""
        return self.start(*options).wait(PATIENCE_S)

    def killed(self, *options: str) -> None:
        """Run a process that kills itself."""
        assert self.run(*options) == -signal.SIGKILL

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        assert process.poll() is None, "it has ended by itself"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)

    def noted(self, what: str) -> list[str]:
        """Return what was noted of one kind."""
        lines = self.notes.read_text().splitlines()
        return [line.removeprefix(f"{what} ") for line in lines if line.startswith(f"{what} ")]

    def ask(self, question: Callable[[RunStore], Awaitable[T]]) -> T:
        """Return what the store says."""

        async def look() -> T:
            store = await open_store(self.url)
            try:
                return await question(store)
            finally:
                await store.close()

        return asyncio.run(look())

    def state(self, run_id: str = "run") -> str | None:
        async def state_of(store: RunStore) -> str | None:
            run = await store.read_run(run_id)
            return None if run is None else run.state

        return self.ask(state_of)

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait(PATIENCE_S)


@pytest.fixture
def scheme() -> str:
    return "sqlite"


@pytest.fixture
def bench(tmp_path: Path, new_url: NewUrl, scheme: str) -> Iterator[Bench]:
    bench = Bench(tmp_path, new_url(scheme))
    yield bench
    bench.end()


on_both = pytest.mark.parametrize("scheme", ["sqlite", "postgresql"])


# Killed between the effect of a tool and its record.


@pytest.mark.parametrize("effect", ["pure", "idempotent"])
@pytest.mark.parametrize("mode", ["run", "turn"])
def test_a_tool_that_may_repeat_is_called_again_under_its_key(
    bench: Bench, mode: str, effect: str
) -> None:
    bench.killed(mode, "--effect", effect, "--die-at", "1")
    bench.killed(mode, "--effect", effect, "--die-at", "3")
    assert bench.run(mode, "--effect", effect) == 0
    assert Counter(Counter(bench.noted("effect")).values()) == {2: 2}
    assert bench.noted("model") == ["0", "1", "2"]
    end = BOTH_PAID if mode == "run" else "session.run.completed"
    assert bench.noted("end") == [end]


def test_a_tool_that_may_not_repeat_fails_the_run_and_only_a_retry_calls_it(bench: Bench) -> None:
    options = ("run", "--effect", "at_most_once")
    bench.killed(*options, "--die-at", "1")
    assert bench.run(*options) == UNFINISHED
    assert bench.state() == "failed"
    assert len(bench.noted("effect")) == 1
    # Somebody looks, and calls the failed run once more: that is the retry.
    assert bench.run(*options) == 0
    assert Counter(Counter(bench.noted("effect")).values()) == {2: 1, 1: 1}
    assert bench.noted("model") == ["0", "1", "2"]
    assert bench.noted("end") == [BOTH_PAID]


def test_a_tool_that_may_not_repeat_fails_the_turn(bench: Bench) -> None:
    options = ("turn", "--effect", "at_most_once")
    bench.killed(*options, "--die-at", "1")
    assert bench.run(*options) == 0
    assert bench.noted("end") == ["session.run.failed"]
    assert (len(bench.noted("effect")), bench.noted("model")) == (1, ["0"])


@pytest.mark.parametrize("mode", ["run", "turn"])
def test_a_tool_that_may_not_repeat_may_tell_the_model_instead(bench: Bench, mode: str) -> None:
    options = (mode, "--effect", "at_most_once", "--on-unfinished", "tell")
    bench.killed(*options, "--die-at", "1")
    assert bench.run(*options) == 0
    assert Counter(Counter(bench.noted("effect")).values()) == {1: 2}
    assert bench.noted("model") == ["0", "1", "2"]
    [end] = bench.noted("end")
    if mode == "turn":
        assert end == "session.run.completed"
    else:
        told = json.loads(end)
        assert json.loads(told[0])["error"]["code"] == "interrupted"
        assert told[1:] == ["paid light", "Both are paid."]


# A human decides, and three processes die meanwhile.


@on_both
def test_approvals_outlive_three_processes_and_cost_one_model_call_for_each_decision(
    bench: Bench,
) -> None:
    options = ("run", "--approve")

    def approve(number: int) -> None:
        async def answer(store: RunStore) -> None:
            [request] = await pending_approvals(store, "run")
            assert request.event == f"approval:loop:{number}.1"
            await answer_approval(store, "run", request, Approval(True, by="Ada"))

        bench.ask(answer)

    first = bench.start(*options)
    until(lambda: bench.state() == "waiting")
    bench.kill(first)
    approve(1)
    bench.killed(*options, "--die-at", "1")
    third = bench.start(*options)
    until(lambda: bench.noted("model") == ["0", "1"] and bench.state() == "waiting")
    bench.kill(third)
    approve(2)
    assert bench.run(*options) == 0
    assert bench.noted("model") == ["0", "1", "2"]
    assert Counter(Counter(bench.noted("effect")).values()) == {2: 1, 1: 1}
    assert bench.noted("end") == [BOTH_PAID]


@on_both
def test_a_turn_that_waits_for_a_human_outlives_any_number_of_processes(bench: Bench) -> None:
    options, turn = ("turn", "--approve"), run_id_of(TURN)

    async def asked(store: RunStore) -> list[Any]:
        return list(await pending_approvals(store, turn))

    async def approve(store: RunStore) -> None:
        [request] = await asked(store)
        await answer_approval(store, turn, request, Approval(True))

    for models, deaths in ((["0"], 4), (["0", "1"], 1)):
        for _ in range(deaths):
            process = bench.start(*options)
            until(lambda: len(bench.ask(asked)) == 1 and bench.state(turn) == "waiting")
            bench.kill(process)
        assert bench.noted("model") == models
        bench.ask(approve)
    assert bench.run(*options) == 0
    assert bench.noted("model") == ["0", "1", "2"]
    assert bench.noted("end") == ["session.run.completed"]


@on_both
def test_a_streamed_task_in_a_turn_outlives_three_processes_and_pays_each_decision_once(
    bench: Bench,
) -> None:
    turn = run_id_of(TURN)

    def is_asking(rung: int) -> bool:
        async def key(store: RunStore) -> str | None:
            run = await store.read_run(turn)
            return None if run is None or run.state != "waiting" else run.wake_key

        return bench.ask(key) == f"approval:{rung}"

    def approve(rung: int) -> None:
        bench.ask(lambda store: emit_event(store, turn, f"approval:{rung}", "yes"))

    first = bench.start("stream")
    until(lambda: is_asking(0))
    bench.kill(first)
    approve(0)
    bench.killed("stream", "--die-at", "1")
    third = bench.start("stream")
    until(lambda: is_asking(1))
    bench.kill(third)
    approve(1)
    assert bench.run("stream") == 0
    assert bench.noted("model") == ["0", "1"]
    assert Counter(Counter(bench.noted("effect")).values()) == {2: 1, 1: 1}
    assert bench.noted("end") == ["session.run.completed"]


@pytest.mark.parametrize("scheme", ["sqlite", "file", "postgresql"])
def test_a_streamed_task_that_asks_outlives_its_processes_and_asks_once(bench: Bench) -> None:
    turn = run_id_of(TURN)

    async def stands(store: RunStore) -> tuple[int, str | None, list[str]]:
        run = await store.read_run(turn)
        assert run is not None
        frames = await store.read_frames(turn, after=-1)
        shown = [frame.data["name"] for frame in frames if frame.kind == "data"]
        return run.strikes, run.lease_holder_id, shown

    for _ in range(3):
        process = bench.start("ask")
        until(lambda: bench.state(turn) == "waiting")
        bench.kill(process)
        assert bench.ask(stands) == (0, None, ["agent.questions_start"])
    bench.ask(lambda store: emit_event(store, turn, "answers", {"question_permission": "yes"}))
    bench.killed("ask", "--die-at", "1")
    assert bench.run("ask") == 0
    # The backend's answer is no step: who is killed in the middle of it has it said again.
    assert bench.noted("model") == ["yes", "yes"]
    assert bench.noted("found") == ["a map"]
    assert bench.noted("end") == ["session.run.completed"]


@pytest.mark.parametrize("scheme", ["postgresql"])
def test_a_task_that_waits_for_a_human_is_held_by_none_of_the_processes_that_die(
    bench: Bench,
) -> None:
    async def holder(store: RunStore) -> tuple[int, str | None]:
        run = await store.read_run("run")
        assert run is not None
        return run.strikes, run.lease_holder_id

    for _ in range(3):
        process = bench.start("task")
        until(lambda: bench.state() == "waiting")
        bench.kill(process)
        assert bench.ask(holder) == (0, None)
    assert bench.noted("model") == []
    bench.ask(lambda store: emit_event(store, "run", "answers", {"question_permission": "yes"}))
    assert bench.run("task") == 0
    assert bench.noted("model") == ["0", "1"]
    assert Counter(Counter(bench.noted("effect")).values()) == {1: 2}


def test_a_task_with_human_approval_outlives_three_processes_and_pays_each_decision_once(
    bench: Bench,
) -> None:
    first = bench.start("task")
    until(lambda: bench.state() == "waiting")
    assert bench.noted("model") == []
    bench.kill(first)
    bench.ask(lambda store: emit_event(store, "run", "answers", {"question_permission": "yes"}))
    bench.killed("task", "--die-at", "1")
    bench.killed("task", "--die-at", "3")
    assert bench.run("task") == 0
    assert bench.noted("model") == ["0", "1"]
    assert Counter(Counter(bench.noted("effect")).values()) == {2: 2}
    assert bench.noted("end")[0].startswith("completed")


# Wherever the process dies, on every store.


class World:
    """Two accounts outside; how often each was charged, and under which keys."""

    def __init__(self) -> None:
        self.charged: Counter[str] = Counter()

    async def note(self, text: str, call: ToolCall) -> str:
        return f"noted {text}"

    async def charge(self, call: ToolCall) -> str:
        self.charged[f"charge {call.idempotency_key}"] += 1
        return "charged"

    async def send(self, call: ToolCall) -> str:
        self.charged[f"send {call.idempotency_key}"] += 1
        return "sent"


async def test_a_loop_comes_to_its_end_wherever_its_process_dies(new_lab: NewLab) -> None:
    worlds: list[World] = []
    paid_again: list[int] = []

    async def scenario(store: RunStore) -> tuple[str, int, bool]:
        if await store.read_run("run") is None:
            worlds.append(World())
        world = worlds[-1]
        recorded = {step.intent for step in await store.read_steps("run") if step.result}

        def asked(number: int) -> None:
            if f"loop: model {number + 1}" in recorded:
                paid_again.append(number)

        provider = StrictProvider(
            calls(("a", "note", {"text": "x"}), ("b", "charge", {}), ("c", "send", {})),
            calls(("a", "charge", {})),
            says("Done."),
            on_call=asked,
        )
        tools = [
            Tool(world.note, effect="pure"),
            Tool(world.charge, effect="idempotent"),
            Tool(world.send, effect="at_most_once", on_unfinished="tell"),
        ]

        async def task(context: DurableContext) -> tuple[str, int]:
            result = await ToolLoop(provider.backend(), tools).run(context, "Go!")
            return result.text, result.tool_calls

        done = await run_durable(store, run_id="run", manifest=MANIFEST, task=task)
        text, count = done.result
        return text, count, not provider.refused

    report = await crash_everywhere(scenario, new_lab)
    assert report.outcome == ("Done.", 4, True)
    assert len(report.points) >= 14
    assert paid_again == []
    sent = [n for world in worlds for key, n in world.charged.items() if key.startswith("send")]
    assert set(sent) == {1}, "what happens at most once happened twice"
    # Two charges, each under one key however often it was made.
    lived = [world for world in worlds if world.charged]
    assert {len([k for k in w.charged if k.startswith("charge")]) for w in lived} == {2}
