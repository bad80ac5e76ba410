"""What nobody has a floor for: one figure each, of turns, readers, memory, and the package."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import perdure
from bench import postgres_wakeups, restart, turn_memory
from bench.sides.asked import tokens
from bench.sides.perdure_side import run, task_of
from perdure.core.frames import text, upstream_end
from tests.store.postgres_server import running_server

ROOT: Final = Path(__file__).parent.parent
CHUNK: Final = 100
"""Runs of the growth test that are looked at together."""


class Alone(NamedTuple):
    """One figure. `budget` says what the design allows, where it does."""

    name: str
    value: float
    unit: str
    how: str
    budget: str = ""


class Model:
    """A model that says so many tokens, and may wait at their end until it is let go."""

    def __init__(self, count: int, *, pause_ms: float = 0, waits: bool = False) -> None:
        self.count = count
        self.pause_ms = pause_ms
        self.may_end = asyncio.Event()
        if not waits:
            self.may_end.set()

    async def __call__(self, _turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        async for token in tokens(self.count, self.pause_ms):
            yield text(token)
        await self.may_end.wait()
        yield upstream_end("stop")


class Bench:
    """An engine on a store of its own."""

    def __init__(self, store: perdure.RunStore, model: Model) -> None:
        self.store = store
        self.model = model
        self.engine = perdure.ChatTurnEngine(store, produce=model, recover=False)
        self._turns = 0

    async def submit(self) -> tuple[perdure.ChatTurnIdentity, perdure.SubmittedTurn]:
        self._turns += 1
        turn = perdure.ChatTurnIdentity("", f"s{self._turns}", "ann", 0)
        return turn, await self.engine.submit(turn, "Hi")


@asynccontextmanager
async def empty(scheme: str) -> AsyncIterator[str]:
    """Yield the address of an empty store; PostgreSQL is a server of our own, which flushes."""
    with ExitStack() as stack:
        if scheme == "postgres":
            server = await asyncio.to_thread(stack.enter_context, running_server(flushes=True))
            yield server.new_store()
        elif scheme == "memory":
            yield "memory:"
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-"))
            yield f"{scheme}:{Path(folder) / 'perdure'}"


@asynccontextmanager
async def bench(model: Model, scheme: str = "sqlite") -> AsyncIterator[Bench]:
    async with empty(scheme) as url:
        store = await perdure.open_store(url)
        bench = Bench(store, model)
        yield bench
        await bench.engine.aclose()
        await store.close()


async def read(submitted: perdure.SubmittedTurn) -> int:
    """Read a turn to its end; return how many bytes it was."""
    size = 0
    async for line in submitted.lines():
        size += len(line)
    return size


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
    return [Alone("the first token", value, "ms", "submit to reader", "one commit + 2 ms")]


async def _first(lines: AsyncIterator[bytes], part: bytes) -> None:
    async for line in lines:
        if part in line:
            return


async def stop(rounds: int) -> list[Alone]:
    took: list[float] = []
    async with bench(Model(3, waits=True)) as stage:
        for _ in range(rounds):
            turn, _ = await stage.submit()
            began = time.perf_counter()
            await stage.engine.stop(turn)
            took.append((time.perf_counter() - began) * 1e3)
    return [Alone("a stop", statistics.median(took), "ms", "asked to ended, same process")]


async def tokens_per_second(count: int) -> list[Alone]:
    found: list[Alone] = []
    for scheme in ("memory", "sqlite", "file", "postgres"):
        async with bench(Model(count), scheme) as stage:
            _, submitted = await stage.submit()
            began = time.perf_counter()
            await read(submitted)
            rate = count / (time.perf_counter() - began)
        how = "one turn without a pause, all journaled, one reader"
        found.append(Alone(f"tokens a second, {scheme}", rate, "", how))
    return found


async def wakeups(rounds: int) -> list[Alone]:
    """How soon a run that waits hears of an event that another handle emits."""
    found: list[Alone] = []
    for scheme in ("sqlite", "file", "postgres"):
        async with empty(scheme) as url:
            median, worst = await postgres_wakeups.event_alone(url, rounds)
        how = f"emitted on one handle, awaited on another; the worst {worst:.0f} ms"
        found.append(Alone(f"an event wakes a run, {scheme}", median, "ms", how, "≤ 50 ms"))
    return found


def _written() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        name, value = line.split(": ")
        if name == "write_bytes":
            return int(value)
    raise RuntimeError("no write_bytes in /proc/self/io")


async def bytes_written(count: int) -> list[Alone]:
    """What goes to the disk for what a reader gets, at the pace of a model."""
    if sys.platform != "linux":
        return []
    async with bench(Model(count, pause_ms=5)) as stage:
        before = _written()
        _, submitted = await stage.submit()
        size = await read(submitted)
        ratio = (_written() - before) / size
    how = f"SQLite, {count} tokens at 5 ms, write-ahead log included"
    return [Alone("bytes written for a byte streamed", ratio, "×", how)]


async def many_readers(readers: int, count: int) -> list[Alone]:
    """A thousand readers of one turn; one of them never reads on."""

    async def took(number: int) -> float:
        model = Model(count, pause_ms=1)
        async with bench(model) as stage:
            turn, submitted = await stage.submit()
            stalled = (line async for line in submitted.lines())
            await anext(stalled)
            others = [stage.engine.read(turn) for _ in range(number - 1)]
            began = time.process_time()
            await asyncio.gather(read(submitted), *(_lines(other) for other in others))
            spent = time.process_time() - began
            await stalled.aclose()
        return spent * 1e6 / count / number

    alone, together = await took(1), await took(readers)
    name = f"a token at each of {readers:,} readers"
    how = f"processor time, one reader stalled; {alone:.0f} µs for a single one"
    return [Alone(name, together, "µs", how)]


async def _lines(lines: AsyncIterator[Any]) -> None:
    async for _ in lines:
        pass


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
    return [Alone(f"{turns} live turns", ours, "% of a core", how)]


async def growth(old: int) -> list[Alone]:
    """Short runs on an empty database and behind many finished ones, in turn."""
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
        stores = [
            await perdure.open_store(f"sqlite:{Path(folder) / name}") for name in ("new", "old")
        ]
        places = asyncio.Semaphore(64)
        await run(stores[1], "old", task_of(1))
        await asyncio.to_thread(multiply, Path(folder) / "old", "old", old)

        async def short(store: perdure.RunStore, run_id: str) -> None:
            async with places:
                await run(store, run_id, task_of(3))

        took: dict[int, list[float]] = {0: [], 1: []}
        for part in range(8):
            for at, store in enumerate(stores):
                began = time.perf_counter()
                names = (f"run-{part}-{index}" for index in range(CHUNK))
                await asyncio.gather(*(short(store, name) for name in names))
                took[at].append(time.perf_counter() - began)
        pages: list[float] = []
        for _ in range(20):
            began = time.perf_counter()
            await stores[1].list_runs()
            pages.append((time.perf_counter() - began) * 1e3)
        for store in stores:
            await store.close()
    ratio = statistics.median(b / a for a, b in zip(took[0], took[1], strict=True))
    how = "short runs, beside an empty database"
    page = "the newest runs, asked of the store; over HTTP: python -m bench.dashboard"
    return [
        Alone(f"behind {old:,} finished runs", ratio, "×", how, "≤ 1.25×, goal 1.1×"),
        Alone(f"a page of {old:,} runs", statistics.median(pages), "ms", page, "≤ 100 ms"),
    ]


def multiply(path: Path, run_id: str, count: int) -> None:
    """Add so many runs like the one that has ended, by SQL: nobody waits for a million of them."""
    numbers = (
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
    )
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for table in ("durable_runs", "durable_steps", "perdure_attempts"):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            others = ", ".join(column for column in columns if column != "run_id")
            with connection:
                connection.execute(
                    f"{numbers} INSERT INTO {table} (run_id, {others}) "
                    f"SELECT printf('%s-%07d', run_id, n), {others} FROM numbers, {table} "
                    "WHERE run_id = ?",
                    (count, run_id),
                )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def frames(count: int) -> list[Alone]:
    """The last thousand tokens of a long turn beside the first thousand."""
    marks: list[float] = []

    async def produce(_turn: perdure.Turn) -> AsyncIterator[perdure.Frame]:
        index = 0
        async for token in tokens(count, 0):
            if index in (0, 1_000, count - 1_000):
                marks.append(time.perf_counter())
            index += 1
            yield text(token)
        marks.append(time.perf_counter())
        yield upstream_end("stop")

    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
        store = await perdure.open_store(f"sqlite:{Path(folder) / 'perdure'}")
        engine = perdure.ChatTurnEngine(store, produce=produce, recover=False)
        turn = perdure.ChatTurnIdentity("", "s", "ann", 0)
        await read(await engine.submit(turn, "Hi"))
        await engine.aclose()
        await store.close()
    ratio = (marks[3] - marks[2]) / (marks[1] - marks[0])
    how = f"the last 1,000 tokens of {count:,} beside the first"
    return [Alone("a long turn", ratio, "×", how, "≤ 1.25×, goal 1.1×")]


def memory(turns: int) -> list[Alone]:
    found: list[Alone] = []
    for reads in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:{Path(folder) / 'bench.db'}"
            size = asyncio.run(turn_memory.measure(url, turns, 200, reads=reads))
        name = "memory of a live turn" + (" with a reader" if reads else "")
        found.append(Alone(name, size, "KiB", "200 tokens said, then silent", "≤ 64 KiB"))
    return found


def after_a_kill(rounds: int) -> list[Alone]:
    found: list[Alone] = []
    for scheme in restart.SCHEMES:
        with restart.places(scheme, with_locks=True) as new_place:
            waited = [restart.measure(new_place()).since_kill_ms for _ in range(rounds)]
        name = f"kill -9 to the first new frame, {scheme}"
        how = "a served chat, restart of Python included, default lease"
        found.append(Alone(name, statistics.median(waited), "ms", how, "≤ 1 s"))
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
        Alone("import perdure", bare, "ms", "above a bare start of Python", "≤ 100 ms, goal 70"),
        Alone("import of every public name", all_names, "ms", "the same, all names touched"),
    ]


def wheel() -> list[Alone]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder]
        subprocess.run([*command, str(ROOT)], check=True)
        (built,) = Path(folder).glob("*.whl")
        return [Alone("the wheel", built.stat().st_size / 1024, "KiB", "no dependency")]


def measure(*, quick: bool) -> list[Alone]:
    """Return all figures, in the order of the page."""
    few = 2 if quick else 20
    works: Sequence[Callable[[], list[Alone]]] = (
        lambda: asyncio.run(first_token(few)),
        lambda: asyncio.run(stop(few)),
        lambda: after_a_kill(1 if quick else 10),
        lambda: asyncio.run(tokens_per_second(200 if quick else 10_000)),
        lambda: asyncio.run(wakeups(few)),
        lambda: asyncio.run(bytes_written(50 if quick else 1_000)),
        lambda: memory(10 if quick else 200),
        lambda: asyncio.run(many_readers(20 if quick else 1_000, 20 if quick else 300)),
        lambda: asyncio.run(at_once(10 if quick else 200, 1 if quick else 10)),
        lambda: asyncio.run(growth(64 if quick else 1_000_000)),
        lambda: asyncio.run(frames(3_000 if quick else 50_000)),
        lambda: imports(few),
        *(() if quick else (wheel,)),
    )
    found: list[Alone] = []
    for work in works:
        found += work()
        print(*(f"{one.name}: {one.value:,.1f} {one.unit}" for one in found[-1:]), file=sys.stderr)
    return found
