"""`perdure demo`: a worker is killed in the middle of a turn, and the turn goes on."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from perdure.cli.demo_worker import NAME, QUESTION, STEP
from perdure.cli.exits import DONE, NO
from perdure.cli.opening import ran
from perdure.cli.output import emphasised, faint, print_json, struck
from perdure.core.frames import Frame
from perdure.core.records import RunRecord
from perdure.errors import UsageError
from perdure.store.opening import open_store
from perdure.store.protocol import RunStore
from perdure.turn.ending import answer_of
from perdure.turn.identity import ChatTurnIdentity, chat_manifest, run_id_of, session_key
from perdure.turn.reading import Silence, Tail, open_reading

TURN: Final = ChatTurnIdentity("", "demo", "you", 0)
SEEN_BEFORE_KILL: Final = 45
"""So many characters of the model's answer are seen before its worker is killed."""
PATIENCE_S: Final = 60.0
WORDS: Final = {1: "once", 2: "twice"}


def demo(options: argparse.Namespace) -> int:
    """Show it; return the exit code: 1 if it did not go as it should."""
    if os.name != "posix":
        raise UsageError("the demo kills a process as only POSIX systems can")
    return ran(_demo, options)


async def _demo(options: argparse.Namespace) -> int:
    stage = _Stage(as_lines=options.json)
    with tempfile.TemporaryDirectory(prefix="perdure-demo-") as folder:
        url, calls = f"sqlite:{folder}/demo.db", Path(folder) / "calls"
        store = await open_store(url, durability="normal")
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await _play(stage, store, url, calls)
        finally:
            await store.close()


async def _play(stage: _Stage, store: RunStore, url: str, calls: Path) -> int:
    stage.open()
    async with _worker(url, calls) as first:
        stage.say("worker", f"A worker begins: process {first.pid}.", pid=first.pid)
        run = await _ask(store)
        stage.say("asked", f"The turn {run.run_id} is asked: “{QUESTION}”", run=run.run_id)
        await _follow(stage, store, run, until_killed=first)
        await first.wait()
    async with _worker(url, calls) as second:
        stage.say(
            "worker",
            f"Another worker begins: process {second.pid}. It finds the turn by itself.",
            pid=second.pid,
        )
        await _follow(stage, store, run)
    return await _sum_up(stage, store, run, _counted(calls))


def _counted(calls: Path) -> Counter[str]:
    """Return how often each was called, over all workers."""
    return Counter(calls.read_text("utf-8").split())


async def _ask(store: RunStore) -> RunRecord:
    """Queue the turn, as `ChatTurnEngine.submit` does where there is an engine."""
    manifest = chat_manifest(TURN, QUESTION, project_id="demo", domain="chat", model=None)
    return await store.enqueue(run_id_of(TURN), manifest, handler=NAME, session=session_key(TURN))


@asynccontextmanager
async def _worker(url: str, calls: Path) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Run a worker in a process of its own, which ends with this one, if not before."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "perdure.cli.demo_worker",
        url,
        str(calls),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if await process.stdout.readline() != b"ready\n":
            raise UsageError("the worker of the demo could not begin: see above what it says")
        yield process
        process.stdin.close()
        await process.wait()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _follow(
    stage: _Stage,
    store: RunStore,
    run: RunRecord,
    *,
    until_killed: asyncio.subprocess.Process | None = None,
) -> None:
    """Read the turn as any reader does; in the middle of the answer, kill its worker."""
    reading = await open_reading(store, run, after=None, find_ring=_no_ring)
    following = Tail(reading._replace(after=stage.seen_to))
    async with aclosing(following.follow()) as batches:
        async for batch in batches:
            if isinstance(batch, Silence):
                continue
            stage.frames(batch)
            if until_killed is not None and len(stage.answered) >= SEEN_BEFORE_KILL:
                until_killed.send_signal(signal.SIGKILL)
                stage.kill(until_killed.pid)
                return


def _no_ring() -> None:
    """The turn lives in another process."""


async def _sum_up(stage: _Stage, store: RunStore, run: RunRecord, calls: Counter[str]) -> int:
    ended = await store.read_run(run.run_id)
    details = await store.read_details(run.run_id)
    steps = await store.read_steps(run.run_id)
    answer = str(answer_of(steps).get("finalText", ""))
    attempts = [f"{attempt.epoch} {attempt.ended}" for attempt in details.attempts]
    usage = Counter(row.state for row in details.usage)
    facts = {
        "state": None if ended is None else ended.state,
        "attempts": len(attempts),
        "modelCalls": calls["model"],
        "stepExecutions": calls["tide"],
        "usage": dict(usage),
        "lostCharacters": len(stage.lost),
        "answerIsWhole": answer == stage.text,
    }
    stage.close(facts, attempts, calls)
    expected = {"state": "completed", "attempts": 2, "modelCalls": 2, "stepExecutions": 1}
    return DONE if facts["answerIsWhole"] and expected.items() <= facts.items() else NO


class _Stage:
    """What the audience sees, and what a reader of the turn knows."""

    def __init__(self, *, as_lines: bool) -> None:
        self.seen_to: int | None = None
        self.text = ""
        self.answered = ""
        """What was seen of the model's answer in this attempt."""
        self.lost = ""
        self._as_lines = as_lines
        self._number = 0
        self._column = 0

    def open(self) -> None:
        if not self._as_lines:
            print(emphasised("A turn survives the death of its worker"))

    def say(self, moment: str, text: str, **facts: Any) -> None:
        if self._as_lines:
            print_json({"moment": moment, **facts})
            return
        self._end_line()
        self._number += 1
        print(f"\n{self._number}. {text}", flush=True)

    def frames(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self.seen_to = frame.seq
            if frame.kind == "restarted":
                self._restart(frame)
            elif frame.kind == "text":
                self._speak(frame.data["delta"], is_answer=frame.data["part"] == "p2")
        sys.stdout.flush()

    def _speak(self, text: str, *, is_answer: bool) -> None:
        self.text += text
        self.answered += text if is_answer else ""
        if self._as_lines:
            return
        if not self._column or self._column + len(text) > 72:
            print(("\n" if self._column else "") + "   │ ", end="")
            self._column, text = 1, text.lstrip() or text
        print(text, end="")
        self._column += len(text)

    def kill(self, pid: int) -> None:
        if not self._as_lines:
            print(faint(" ✂"), end="")
        self.say("killed", f"kill -9 {pid}, in the middle of its answer.", pid=pid)

    def _restart(self, frame: Frame) -> None:
        self.lost, self.answered, self.text = self.answered, "", ""
        if self._as_lines:
            facts = {"attempt": frame.data["attempt"], "reason": frame.data["reason"]}
            print_json({"moment": "restarted", **facts, "lostText": self.lost})
            return
        self._end_line()
        print(f"   Lost, since no step had recorded it: “{struck(self.lost)}”")
        print("   Every reader is told to begin anew, and gets what is recorded:")

    def close(self, facts: dict[str, Any], attempts: Sequence[str], calls: Counter[str]) -> None:
        if self._as_lines:
            print_json({"moment": "ended", **facts})
            return
        self._end_line()
        self._number += 1
        print(f"\n{self._number}. The turn is {facts['state']}.\n")
        usage = ", ".join(f"{count} {state}" for state, count in facts["usage"].items())
        print(f"   attempts       {', '.join(attempts)}")
        print(f"   step           “{STEP}” was executed {WORDS.get(calls['tide'], '?')}: recorded")
        print(f"   model calls    {calls['model']}, each on record before it was made ({usage})")
        print(f"   lost           {facts['lostCharacters']} characters of an answer, begun again")

    def _end_line(self) -> None:
        if self._column:
            print(flush=True)
            self._column = 0
