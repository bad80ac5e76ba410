"""Many workers on one store, killed and frozen at random: their calls form one history."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import perdure
from tests.crash.conftest import NewUrl
from tests.crash.contending_process import LEASE_MS
from tests.crash.linearizing import Call, is_linearizable
from tests.turn.stage import until

ROOT = Path(__file__).parents[2]
WORKERS = 8
HOURS_MS = 3 * 60 * 60 * 1_000
OFFSETS_MS = (0, LEASE_MS, -LEASE_MS, HOURS_MS, -HOURS_MS)
STORES = ["sqlite", "file", "postgresql", pytest.param("d1", marks=pytest.mark.node)]
CHAOS_MIN = 4
FREEZE_S = LEASE_MS / 1_000 * 1.5
PATIENCE_S = 30.0


class Chaos(NamedTuple):
    """What was done to the workers."""

    kills: int
    freezes: int


class Crowd:
    """Workers on one store, with clocks wrong by `offsets_ms` in turn; whoever dies is replaced."""

    def __init__(self, url: str, folder: Path, seed: int, offsets_ms: Sequence[int]) -> None:
        self._url = url
        self._offsets_ms = cycle(offsets_ms)
        self._folder = folder
        self._dice = random.Random(seed)
        self._workers: list[asyncio.subprocess.Process] = []
        self._started = 0

    async def hire(self) -> None:
        log = self._folder / f"{self._started}.log"
        self._started += 1
        arguments = [self._url, str(log), str(self._dice.randrange(2**32)), str(self._first())]
        arguments.append(str(next(self._offsets_ms)))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.crash.contending_process", *arguments, cwd=ROOT
        )
        self._workers.append(process)

    async def suffer(self, seconds: float) -> Chaos:
        """Kill and freeze workers for a while, and a few times however busy the machine is."""
        kills = freezes = 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or kills + freezes < CHAOS_MIN:
            await asyncio.sleep(self._dice.uniform(0.1, 0.5))
            worker = self._dice.choice(self._workers)
            assert worker.returncode is None, "a worker ended by itself"
            if self._dice.random() < 0.5:
                worker.send_signal(signal.SIGSTOP)
                await asyncio.sleep(FREEZE_S)
                worker.send_signal(signal.SIGCONT)
                freezes += 1
            else:
                await _kill(worker)
                self._workers.remove(worker)
                await self.hire()
                kills += 1
        return Chaos(kills, freezes)

    async def dismiss(self) -> None:
        for worker in self._workers:
            await _kill(worker)

    def _first(self) -> int:
        """Return the number of the first run that a new worker need look at."""
        claimed = [_number(call.run) for call in noted(self._folder) if call.answer is not None]
        return max(0, max(claimed, default=0) - 2)


async def _kill(worker: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        worker.kill()
    await worker.wait()


class Noted(NamedTuple):
    """A call as its worker noted it; `answer` None: it was not answered, or failed by `error`."""

    run: str
    name: str
    arguments: list[Any]
    began: int
    ended: int | None = None
    answer: Any = None
    error: str | None = None


def _number(run: str) -> int:
    return int(run.removeprefix("run-"))


def noted(folder: Path) -> Sequence[Noted]:
    """Return all calls that were noted in the logs of a folder."""
    calls: dict[str, Noted] = {}
    for log in folder.glob("*.log"):
        for line in log.read_text().split("\n")[:-1]:
            facts = json.loads(line)
            moment, call = facts["moment"], facts["call"]
            if "run" in facts:
                calls[call] = Noted(facts["run"], facts["name"], facts["arguments"], moment)
            else:
                calls[call] = calls[call]._replace(
                    ended=moment, answer=facts.get("answer"), error=facts.get("error")
                )
    return list(calls.values())


def histories_of(calls: Sequence[Noted]) -> Mapping[str, list[Call]]:
    """Return the history of each run."""
    histories: dict[str, list[Call]] = defaultdict(list)
    for each in calls:
        call = Call(each.name, tuple(each.arguments), each.began)
        if each.answer is not None and each.ended is not None:
            call = call._replace(ended=each.ended, answer=_frozen(each.name, each.answer))
        histories[each.run].append(call)
    return histories


def _frozen(name: str, answer: Any) -> object:
    """Return an answer out of JSON in the form that the model gives it."""
    if name == "read":
        return _results(answer)
    if name == "claim" and answer[0] == "mine":
        return ("mine", answer[1], _results(answer[2]))
    return tuple(answer) if isinstance(answer, list) else answer


def _results(steps: Sequence[Sequence[Any]]) -> frozenset[tuple[int, str]]:
    return frozenset((position, result) for position, result in steps)


async def last_looks(url: str, runs: Sequence[str]) -> Mapping[str, Call]:
    """Read each run once all is quiet; its frames must be without a gap, and their leases rise."""
    store = await perdure.open_store(url)
    looks: dict[str, Call] = {}
    for run in runs:
        began = time.monotonic_ns()
        steps = await store.read_steps(run)
        results = frozenset((step.step_index, str(step.result)) for step in steps)
        looks[run] = Call("read", (), began, time.monotonic_ns(), results)
        frames = await store.read_frames(run)
        assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
        epochs = [frame.epoch for frame in frames]
        assert epochs == sorted(epochs), "a lost worker wrote behind its heir"
    await store.close()
    return looks


async def contend(
    url: str, folder: Path, *, seconds: float, seed: int, offsets_ms: Sequence[int] = (0,)
) -> Counter[str]:
    """Let a crowd contend; check each history; return how often each thing happened."""
    crowd = Crowd(url, folder, seed, offsets_ms)
    try:
        for _ in range(WORKERS):
            await crowd.hire()
        # On a busy machine it takes eight processes seconds to start.
        await until(lambda: noted(folder))
        chaos = await crowd.suffer(seconds)
    finally:
        await crowd.dismiss()
    calls = noted(folder)
    happened = Counter(f"{each.name} {_outcome(each)}" for each in calls)
    happened.update(kills=chaos.kills, freezes=chaos.freezes, calls=len(calls))
    histories = histories_of(calls)
    looks = await last_looks(url, [run for run in histories if has_begun(histories[run])])
    for run, history in histories.items():
        last = [looks[run]] if run in looks else []
        assert is_linearizable([*history, *last]), f"{run}, seed {seed}: {sorted(history)}"
    happened["runs"] = len(histories)
    happened["longest"] = max(map(len, histories.values()))
    claims = [call.answer for call in calls if call.name == "claim" and call.answer is not None]
    happened["takeovers"] = sum(answer[0] == "mine" and answer[1] > 1 for answer in claims)
    return happened


def has_begun(history: Sequence[Call]) -> bool:
    return any(call.name == "claim" and call.is_answered for call in history)


def _outcome(call: Noted) -> str:
    if call.error is not None:
        return f"failed: {call.error[:60]}"
    if isinstance(call.answer, list) and call.name in ("claim", "emit"):
        return str(call.answer[0])
    return "answered" if call.answer not in ("lost", "unknown", None) else str(call.answer)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scheme", ["sqlite", "postgresql"])
async def test_the_calls_of_workers_that_are_killed_and_frozen_are_one_history(
    tmp_path: Path, new_url: NewUrl, scheme: str
) -> None:
    # The clock of PostgreSQL is its own; elsewhere the one that is ahead would take everything.
    offsets_ms = OFFSETS_MS if scheme == "postgresql" else (0,)
    happened = await contend(
        new_url(scheme),
        tmp_path,
        seconds=5,
        seed=random.randrange(2**32),
        offsets_ms=offsets_ms,
    )
    assert happened["end answered"] >= 3, happened
    assert happened["kills"] + happened["freezes"] >= CHAOS_MIN, happened


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scheme", STORES)
async def test_the_calls_of_many_are_one_history_for_a_minute(
    tmp_path: Path,
    new_url: NewUrl,
    scheme: str,
    seed: int,
    record_property: Any,
) -> None:
    happened = await contend(new_url(scheme), tmp_path, seconds=60, seed=seed)
    record_property("happened", dict(happened))
    assert happened["takeovers"] >= 20, happened
    assert happened["complete lost"] >= 5, happened


@pytest.mark.campaign
@pytest.mark.parametrize("scheme", STORES)
async def test_the_calls_of_many_whose_clocks_differ_are_one_history(
    tmp_path: Path, new_url: NewUrl, scheme: str, record_property: Any
) -> None:
    happened = await contend(new_url(scheme), tmp_path, seconds=60, seed=0, offsets_ms=OFFSETS_MS)
    record_property("happened", dict(happened))
    assert happened["takeovers"] >= 20, happened
    assert happened["end answered"] >= 20, happened
