"""What nobody has a floor for: one figure each, of turns, readers, memory, and the package."""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import psycopg

from bench import (
    first_frame,
    growth,
    limits,
    postgres_wakeups,
    processes,
    readers,
    restart,
    turn_memory,
    turn_wakeup,
)
from bench.figure import Alone, promise
from bench.sides.asked import tokens
from bench.stage import Model, bench, empty, opened, read
from perdure.store.sql.postgres.address import read_address

ROOT: Final = Path(__file__).parent.parent
FIRST_HERE: Final = "the first frame, same process, above one commit"
FIRST_ELSEWHERE: Final = "the first frame, another process"
NEW_PROCESS: Final = "a new process behind many steps"
AFTER_A_KILL: Final = "kill -9 to the first new frame"
STOP: Final = "a stop"
STOP_ELSEWHERE: Final = "a stop from elsewhere"
STOP_SILENT: Final = "a stop of a silent turn from elsewhere"
WAKEUP: Final = "an event wakes a run"
TURN_WAKEUP: Final = "an event wakes a turn that sleeps"
TURN_WAKEUP_ELSEWHERE: Final = "an event of another process to the frame behind it"
IMPORT: Final = "import perdure"
IMPORT_MEMORY: Final = "memory after import perdure"
LIVE_TURN: Final = "memory of a live turn"


async def first_token(rounds: int) -> list[Alone]:
    """From the submit to the first token at a reader; the model itself takes no time."""
    took: list[float] = []
    async with bench(Model(1)) as stage:
        for _ in range(rounds + 1):
            began = time.perf_counter()
            _, submitted = await stage.submit()
            lines = (line async for line in submitted.lines())
            await _first(lines, b"tok000")
            took.append((time.perf_counter() - began) * 1e3)
            async for _ in lines:
                pass
    value = statistics.median(took[1:])
    how = "submit to reader: two commits, one for the turn and one for the token"
    return [Alone("the first token", value, "ms", how, promise("sqlite"))]


async def _first(lines: AsyncIterator[bytes], part: bytes) -> None:
    async for line in lines:
        if part in line:
            return


async def first_frames(rounds: int) -> list[Alone]:
    """From the moment the model says it to a reader, of this process and of another one."""
    found: list[Alone] = []
    for scheme in ("sqlite", "file", "postgres"):
        same, other = await first_frame.measure(scheme, rounds)
        above = statistics.median(each.token_ms - each.commit_ms for each in same)
        whole, commit = (statistics.median(column) for column in zip(*same, strict=True))
        how = f"said to read {whole:.1f} ms, a commit of the floor beside it {commit:.1f} ms"
        found.append(Alone(f"{FIRST_HERE}, {scheme}", above, "ms", how, promise(scheme)))
        how = f"said to read, by the clock of the machine; the worst {max(other):.0f} ms"
        told = (statistics.median(other), "ms", how, promise(scheme))
        found.append(Alone(f"{FIRST_ELSEWHERE}, {scheme}", *told))
    return found


def new_process(steps: int, rounds: int) -> list[Alone]:
    """How long a process that has just started takes until it can go on with a run."""
    found: list[Alone] = []
    for scheme in restart.SCHEMES:
        with restart.places(scheme, with_locks=True) as new_place:
            whole, opened = processes.resumed(new_place(), rounds, steps)
        how = f"{steps:,} of them, from opening the store; with the start of Python"
        told = f"{how} {statistics.median(whole):.0f} ms"
        value = statistics.median(opened)
        found.append(Alone(f"{NEW_PROCESS}, {scheme}", value, "ms", told, promise(scheme)))
    return found


async def stop(rounds: int) -> list[Alone]:
    """From the moment a stop is asked for until readers see the end, here and from elsewhere.

    A turn that speaks hears of it with its next write, a silent one looks.
    """
    found: list[Alone] = []
    for scheme in ("sqlite", "postgres"):
        for name, model, how in (
            (STOP, Model(3, waits=True), "same process"),
            (STOP_ELSEWHERE, Model(2_000, pause_ms=50), "another handle, 20 tokens a second"),
            (STOP_SILENT, Model(3, waits=True), "another handle, a turn that says nothing"),
        ):
            # A look comes once a second.
            took = await _stopped(scheme, model, min(rounds, 8), is_elsewhere=name is not STOP)
            told = f"asked to the end of its stream, {how}; the worst {max(took):.0f} ms"
            value = statistics.median(took)
            found.append(Alone(f"{name}, {scheme}", value, "ms", told, promise(scheme)))
    return found


async def _stopped(scheme: str, model: Model, rounds: int, *, is_elsewhere: bool) -> list[float]:
    took: list[float] = []
    async with empty(scheme) as url, opened(url, model) as here, opened(url, model) as other:
        for _ in range(rounds):
            turn, submitted = await here.submit()
            await _first((line async for line in submitted.lines()), b"tok002")
            # Anybody stops it at any time between two looks.
            await asyncio.sleep(random.uniform(0.05, 0.5))
            began = time.perf_counter()
            await (other if is_elsewhere else here).engine.stop(turn)
            await read(submitted)
            took.append((time.perf_counter() - began) * 1e3)
    return took


async def tokens_per_second(count: int, rounds: int) -> list[Alone]:
    found: dict[str, list[float]] = {"memory": [], "sqlite": [], "file": [], "postgres": []}
    for _ in range(rounds):
        for scheme, rates in found.items():
            async with bench(Model(count), scheme) as stage:
                _, submitted = await stage.submit()
                began = time.perf_counter()
                await read(submitted)
                rates.append(count / (time.perf_counter() - began))
    how = f"one turn of {count:,} without a pause, all journaled, one reader; rounds: {rounds}"
    return [
        Alone(f"tokens a second, {scheme}", statistics.median(rates), "", how, promise(scheme))
        for scheme, rates in found.items()
    ]


async def wakeups(rounds: int) -> list[Alone]:
    """How soon a run that waits hears of an event that another handle emits."""
    found: list[Alone] = []
    for scheme in ("sqlite", "file", "postgres"):
        async with empty(scheme) as url:
            median, worst = await postgres_wakeups.event_alone(url, rounds)
        how = f"emitted on one handle, awaited on another; the worst {worst:.0f} ms"
        found.append(Alone(f"{WAKEUP}, {scheme}", median, "ms", how, promise(scheme)))
    return found


async def turn_wakeups(rounds: int) -> list[Alone]:
    """How soon a turn that sleeps goes on, and how soon its reader sees that."""
    found: list[Alone] = []
    for scheme in ("sqlite", "file", "postgres"):
        here, elsewhere = await turn_wakeup.measure(scheme, rounds)
        bodies, frames = [one.body_ms for one in here], [one.frame_ms for one in elsewhere]
        how = f"sent to the body going on, same process; the worst {max(bodies):.0f} ms"
        told = (statistics.median(bodies), "ms", how, promise(scheme))
        found.append(Alone(f"{TURN_WAKEUP}, {scheme}", *told))
        how = f"sent there to read here, where the turn sleeps; the worst {max(frames):.0f} ms"
        told = (statistics.median(frames), "ms", how, promise(scheme))
        found.append(Alone(f"{TURN_WAKEUP_ELSEWHERE}, {scheme}", *told))
    return found


async def bytes_written(count: int) -> list[Alone]:
    """What goes to the disk for what a reader gets, at the pace of a model."""
    if sys.platform != "linux":
        return []
    found: list[Alone] = []
    for scheme, of in (("sqlite", _to_disk), ("file", _to_disk), ("postgres", _to_log)):
        async with empty(scheme) as url, opened(url, Model(count, pause_ms=5)) as stage:
            before = await asyncio.to_thread(of, url)
            _, submitted = await stage.submit()
            size = await read(submitted)
            ratio = (await asyncio.to_thread(of, url) - before) / size
        where = "the server's write-ahead log" if scheme == "postgres" else "in the system's pages"
        how = f"{count} tokens at 5 ms, {where}"
        name = f"bytes written for a byte streamed, {scheme}"
        found.append(Alone(name, ratio, "×", how, promise(scheme)))
    return found


def _to_disk(_url: str) -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def _to_log(url: str) -> int:
    asked = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
    with psycopg.connect(read_address(url).conninfo) as connection:
        row = connection.execute(asked).fetchone()
    assert row is not None
    return int(row[0])


async def at_once(turns: int, seconds: float) -> list[Alone]:
    """Live turns at 20 tokens a second each, as a share of one core, beside the bare generators."""
    count = round(20 * seconds)

    async def raw() -> None:
        async for _ in tokens(count, 50):
            pass

    async def share(work: Callable[[], Awaitable[Any]]) -> float:
        cpu, wall = time.process_time(), time.perf_counter()
        await work()
        return (time.process_time() - cpu) / (time.perf_counter() - wall) * 100

    bare = await share(lambda: asyncio.gather(*(raw() for _ in range(turns))))
    async with bench(Model(count, pause_ms=50)) as stage:

        async def live() -> None:
            submitted = [await stage.submit() for _ in range(turns)]
            await asyncio.gather(*(read(each) for _, each in submitted))

        ours = await share(live)
    how = f"20 tokens a second each, one reader each, SQLite; the bare generators {bare:.0f} %"
    return [Alone(f"{turns} live turns", ours, "% of a core", how, promise("sqlite"))]


def memory(turns: int) -> list[Alone]:
    found: list[Alone] = []
    for reads in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:{Path(folder) / 'bench.db'}"
            size = asyncio.run(turn_memory.measure(url, turns, 200, reads=reads))
        name = LIVE_TURN + (" with a reader" if reads else "")
        how = "200 tokens said, then silent"
        found.append(Alone(name, size, "KiB", how, promise("sqlite")))
    return found


def after_a_kill(rounds: int) -> list[Alone]:
    found: list[Alone] = []
    for scheme in restart.SCHEMES:
        with restart.places(scheme, with_locks=True) as new_place:
            waited = [restart.measure(new_place()).since_kill_ms for _ in range(rounds)]
        how = "a served chat, restart of Python included, default lease"
        told = (statistics.median(waited), "ms", how, promise(scheme))
        found.append(Alone(f"{AFTER_A_KILL}, {scheme}", *told))
    return found


def imports(rounds: int) -> list[Alone]:
    """What `import perdure` adds to the start of Python, names and all that they load."""

    def took(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return (time.perf_counter() - began) * 1e3

    everything = "import perdure; [getattr(perdure, name) for name in perdure.__all__]"
    pairs = [(took("pass"), took("import perdure"), took(everything)) for _ in range(rounds)]
    bare, all_names = (statistics.median(pair[at] - pair[0] for pair in pairs) for at in (1, 2))
    return [
        Alone(IMPORT, bare, "ms", "above a bare start of Python"),
        Alone("import of every public name", all_names, "ms", "the same, all names touched"),
        Alone(IMPORT_MEMORY, processes.resident("import perdure"), "MB", "resident, 10^6 bytes"),
    ]


def wheel() -> list[Alone]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder]
        subprocess.run([*command, str(ROOT)], check=True)
        (built,) = Path(folder).glob("*.whl")
        return [Alone("the wheel", built.stat().st_size / 1024, "KiB", "no dependency")]


def parts(*, quick: bool) -> dict[str, Callable[[], list[Alone]]]:
    """Return what makes the figures, by a name for a few that belong together."""
    few = 2 if quick else 20
    return {
        "first-token": lambda: asyncio.run(first_token(few)),
        "first-frame": lambda: asyncio.run(first_frames(few)),
        "stop": lambda: asyncio.run(stop(1 if quick else 20)),
        "kill": lambda: after_a_kill(1 if quick else 10),
        "new-process": lambda: new_process(*((20, 1) if quick else (1_000, 10))),
        "tokens": lambda: asyncio.run(tokens_per_second(*((200, 1) if quick else (10_000, 5)))),
        "wakeups": lambda: asyncio.run(wakeups(few)),
        "turn-wakeups": lambda: asyncio.run(turn_wakeups(few)),
        "bytes": lambda: asyncio.run(bytes_written(50 if quick else 1_000)),
        "memory": lambda: memory(10 if quick else 200),
        "readers": lambda: asyncio.run(
            readers.measure(*((20, 20, 1) if quick else (1_000, 150, 3)))
        ),
        "at-once": lambda: asyncio.run(at_once(*((10, 1) if quick else (200, 10)))),
        "old-runs": lambda: asyncio.run(growth.of_runs(64 if quick else 1_000_000)),
        "long-run": lambda: asyncio.run(growth.of_steps(*((300, 1) if quick else (10_000, 10)))),
        "long-turn": lambda: asyncio.run(growth.of_frames(*((3_000, 1) if quick else (50_000, 5)))),
        "limits": lambda: limits.measure(*((20, 1) if quick else (500, 5))),
        "import": lambda: imports(few),
        **({} if quick else {"wheel": wheel}),
    }
