"""What the tests of turns share: engines on one store, processes that die, producers, readers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, TypeVar

from perdure.core.frames import Frame, cursor_mark, format_cursor, text, upstream_end
from perdure.core.limits import LEASE_MS
from perdure.core.records import RunDetails, RunRecord
from perdure.errors import StoreBusyError
from perdure.store.protocol import RunStore
from perdure.testing.clock import ManualClock
from perdure.testing.crashing import Process, crashing
from perdure.turn.engine import ChatTurnEngine, SubmittedTurn
from perdure.turn.handout import Turn
from perdure.turn.identity import ChatTurnIdentity, run_id_of

T = TypeVar("T")
Event = Mapping[str, Any]
Item = Frame | Mapping[str, Any] | Exception | asyncio.Event | Callable[[], Any]
"""What a script holds: an item to yield, an exception to raise, an event to wait for, a call."""

TURN = ChatTurnIdentity("", "s", "ann", 0)
NEXT = TURN._replace(turn_index=1)
PATIENCE_S = 10.0
COMPLETED = "session.run.completed"
STOPPED = "session.run.stopped"
FAILED = "session.run.failed"
RESTARTED = "session.run.restarted"


class Script:
    """A producer that plays a script for each attempt, the last one again and again.

    `calls` counts the attempts, `turns` holds what each was handed, `closed` how many were closed.
    """

    def __init__(self, *scripts: Sequence[Item]) -> None:
        self.turns: list[Turn] = []
        self.closed = 0
        self._scripts = scripts or ([text("Hello"), text(" there"), upstream_end("stop")],)

    @property
    def calls(self) -> int:
        return len(self.turns)

    async def __call__(self, turn: Turn) -> AsyncIterator[Any]:
        self.turns.append(turn)
        script = self._scripts[min(len(self.turns), len(self._scripts)) - 1]
        try:
            for item in script:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, asyncio.Event):
                    await item.wait()
                elif isinstance(item, Frame | Mapping):
                    yield item
                else:
                    item()
        finally:
            self.closed += 1


def words(*deltas: str) -> list[Frame]:
    """Return the frames of an answer that is whole."""
    return [*(text(delta) for delta in deltas), upstream_end("stop")]


class Traffic(Process):
    """A process that counts its reads, and whose store is busy for some writes."""

    def __init__(self, *, busy: int = 0) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.busy = busy

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        self.reads[getattr(call, "func", call).__name__] += 1
        return await super().read(call)

    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        if self.busy > 0 and name == "write":
            self.busy -= 1
            raise StoreBusyError("the database is locked")
        return await super().write(name, call)


class Worker(NamedTuple):
    """One process: its engine, its handle, and the way to kill it."""

    engine: ChatTurnEngine
    store: RunStore
    kill: Callable[[], Awaitable[None]]


class Stage:
    """One set of data, a clock that stands still, and as many processes on it as a test wants."""

    def __init__(self, open_handle: Callable[[ManualClock], Awaitable[RunStore]]) -> None:
        self.clock = ManualClock()
        self._open_handle = open_handle
        self._stack = AsyncExitStack()
        self._own: RunStore | None = None

    async def store(self) -> RunStore:
        """Return a handle on which no engine works."""
        if self._own is None:
            self._own = await self.open()
        return self._own

    async def open(self) -> RunStore:
        store = await self._open_handle(self.clock)
        self._stack.push_async_callback(store.close)
        return store

    async def engine(
        self,
        produce: Callable[..., Any] | None = None,
        *,
        store: RunStore | None = None,
        **more: Any,
    ) -> ChatTurnEngine:
        """Return an engine on a handle of its own; `recover` is off unless a test asks for it."""
        options = {"recover": False, **more}
        handle = store or await self.open()
        engine = ChatTurnEngine(handle, produce=produce or Script(), **options)
        self._stack.push_async_callback(engine.aclose, drain_ms=0)
        return engine

    async def worker(self, produce: Callable[..., Any] | None = None, **more: Any) -> Worker:
        """Return an engine in a process of its own, which may be killed."""
        process = Process()
        before = asyncio.all_tasks()
        store = crashing(await self.open(), process)
        engine = ChatTurnEngine(store, produce=produce or Script(), **{"recover": False, **more})

        async def kill() -> None:
            process.dead.set()
            tasks = asyncio.all_tasks() - before - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=1)
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.exception()

        return Worker(engine, store, kill)

    def lapse(self) -> None:
        """Move the store's clock past every lease."""
        self.clock.advance(LEASE_MS)

    async def run(self, turn: ChatTurnIdentity = TURN) -> RunRecord:
        store = (await self.store()).for_tenant(turn.tenant_id)
        run = await store.read_run(run_id_of(turn))
        assert run is not None
        return run

    async def details(self, turn: ChatTurnIdentity = TURN) -> RunDetails:
        store = (await self.store()).for_tenant(turn.tenant_id)
        return await store.read_details(run_id_of(turn))

    async def frames(self, turn: ChatTurnIdentity = TURN) -> list[Frame]:
        store = (await self.store()).for_tenant(turn.tenant_id)
        found: list[Frame] = []
        run_id = run_id_of(turn)
        while page := await store.read_frames(run_id, after=found[-1].seq if found else -1):
            found.extend(page)
        return found

    async def answer(self, turn: ChatTurnIdentity = TURN) -> Any:
        """Return the recorded result of step 0."""
        store = (await self.store()).for_tenant(turn.tenant_id)
        steps = await store.read_steps(run_id_of(turn))
        return steps[0].result

    async def __aenter__(self) -> Stage:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


class Reader:
    """A client: keeps its cursor, forgets what it is told to forget, and checks the order."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.text = ""
        self.kinds: list[str] = []
        self.events: list[Event] = []
        self.seqs: list[int] = []

    @property
    def is_done(self) -> bool:
        return bool(self.kinds) and self.kinds[-1] in {COMPLETED, STOPPED, FAILED}

    def take(self, line: bytes) -> None:
        """Take in one line of the envelope."""
        envelope = json.loads(line)
        if envelope["chunk"] is None:
            return
        self._follow(envelope["chunk"])
        if envelope["id"] is not None:
            self.cursor = envelope["id"]
            seq = int(envelope["id"].split("_")[1])
            assert not self.seqs or seq > self.seqs[-1] or seq == 0, "a frame came twice"
            self.seqs.append(seq)

    def _follow(self, event: Event) -> None:
        kind, data = event["type"], event.get("data") or {}
        self.kinds.append(kind)
        self.events.append(event)
        if kind in ("session.run.started", "session.run.restarted"):
            self.text = ""
        elif kind == "result":
            self.text = data["finalText"]
        elif kind == "message.part.updated" and "delta" in data:
            self.text += data["delta"] if data["part"]["type"] == "text" else ""

    async def read(
        self,
        engine: ChatTurnEngine,
        turn: ChatTurnIdentity = TURN,
        *,
        lines_max: int | None = None,
    ) -> Reader:
        """Read on from the cursor to the end, or for some lines."""
        chunks = engine.read(turn, after=self.cursor, wire="envelope")
        await within(self.follow(chunks, lines_max=lines_max))
        return self

    async def follow(
        self, chunks: AsyncGenerator[bytes, None], *, lines_max: int | None = None
    ) -> Reader:
        count = 0
        try:
            async for chunk in chunks:
                for line in chunk.splitlines():
                    self.take(line)
                    count += 1
                    if count == lines_max:
                        return self
        finally:
            await chunks.aclose()
        return self


async def events_of(submitted: SubmittedTurn, **options: Any) -> list[Any]:
    """Read a turn to its end as bare NDJSON."""
    body = b"".join(await within(collect(submitted.lines(**options))))
    return [json.loads(line) for line in body.splitlines()]


async def collect(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


def kinds_of(events: Iterable[Event]) -> list[str]:
    return [event["type"] for event in events]


async def finish(
    engine: ChatTurnEngine, turn: ChatTurnIdentity = TURN, message: str = "Hi", **options: Any
) -> Reader:
    """Submit a turn and read it to its end."""
    submitted = await within(engine.submit(turn, message, **options))
    return await within(Reader().follow(submitted.lines(wire="envelope")))


async def crashed(stage: Stage, *seen: Item, frames: int | None = None, **options: Any) -> None:
    """Leave a turn behind whose process died after its readers had seen these frames."""
    worker = await stage.worker(Script([*seen, asyncio.Event()]), **options)
    await worker.engine.submit(TURN, "Hi")
    expected = len(seen) if frames is None else frames
    await until(lambda: has_frames(stage, expected))
    await worker.kill()
    stage.lapse()


async def has_frames(stage: Stage, frames: int) -> bool:
    if frames == 0:
        store = await stage.store()
        return bool(await store.read_steps(run_id_of(TURN)))
    return len(await stage.frames()) >= frames


def errors_in(reader: Reader) -> list[str]:
    return [event["data"]["code"] for event in reader.events if event["type"] == "error"]


async def is_in(stage: Stage, state: str, turn: ChatTurnIdentity = TURN) -> bool:
    return (await stage.run(turn)).state == state


def cursor_of(run: RunRecord, seq: int, *, epoch: int = 1) -> str:
    return format_cursor(epoch, seq, cursor_mark(run.run_id))


async def within(awaitable: Awaitable[T], seconds: float = PATIENCE_S) -> T:
    """Return what `awaitable` gives, or fail instead of hanging."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def until(condition: Callable[[], Awaitable[object] | object]) -> None:
    """Return as soon as the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = condition()
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(0.002)
