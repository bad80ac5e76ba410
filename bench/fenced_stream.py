"""The floor of our own promise for a streamed turn, by hand: on SQLite here, see `fenced_postgres`.

Every token is a numbered frame in Perdure's own tables, stored under the lease of the turn's
epoch before its reader gets it. The first one is written at once, the others after 20 ms at the
latest, or once there are 64 of them; one write at a time. The end is one write: the last frames,
the answer as step 0, the state. One reader in the same process gets the lines. There are no
earlier attempts, other readers, cursors, stops, heartbeats, limits, checks of what is said,
hooks, usage or errors.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, NamedTuple, Protocol

from perdure.core.effects import iso_time, system_clock
from perdure.core.limits import FLUSH_FRAMES, LINGER_MS
from perdure.store.sql.sqlite_connection import connect_writer
from perdure.store.sql.sqlite_schema import prepare_schema

# Of every write: the moment is ?1 and the run ?2, under its lease in the first epoch.
_FENCE: Final = (
    "WHERE run_id = ?2 AND epoch = 1 AND token = 'token' AND lease_holder_id = 'host:1:0:1' "
    "AND status = 'running'"
)
_CLAIM: Final = """
INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at,
  lease_holder_id, lease_expires_at, token, epoch, manifest_json)
VALUES (?2, 'hash', 'bench', 'running', ?1, ?1, 'host:1:0:1',
  strftime('%Y-%m-%dT%H:%M:%fZ', ?1, '45 seconds'), 'token', 1, ?3)
ON CONFLICT DO NOTHING"""
_ATTEMPT: Final = """
INSERT INTO perdure_attempts (run_id, epoch, holder, liveness, started_at)
VALUES (?2, 1, 'host:1:0:1', 'lock', ?1)"""
_HOLD: Final = f"UPDATE durable_runs SET updated_at = ?1 {_FENCE}"
_FRAMES: Final = """
INSERT INTO perdure_frames (run_id, first_seq, last_seq, epoch, body, written_at)
SELECT ?2, ?3, ?4, 1, ?5, ?1 WHERE ?3 = coalesce((
  SELECT last_seq + 1 FROM perdure_frames WHERE run_id = ?2 ORDER BY first_seq DESC LIMIT 1), 1)"""
_END: Final = f"""
UPDATE durable_runs SET status = 'completed', updated_at = ?1, strikes = 0, completed_at = ?1,
  lease_holder_id = NULL, lease_expires_at = NULL {_FENCE}"""
_ANSWER: Final = """
INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, attempts,
  result_json, started_at, completed_at, epoch, frames_to)
VALUES (?2, 0, 'chat.turn.0', 'llm', '', 'completed', 1, ?3, ?1, ?1, 1, ?4)"""
_ENDED: Final = """
UPDATE perdure_attempts SET ended_at = ?1, ended = 'completed' WHERE run_id = ?2 AND epoch = 1"""
_MANIFEST: Final = (
    '{"projectId":"bench","task":{"id":"bench","intent":"Measure","requiredKnowledge":[]},'
    '"input":{}}'
)
_PART: Final = ',"part":{"id":"p1","type":"text"}}}\n'

_dumps: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Rows(NamedTuple):
    """Frames as one row: the seqs of the first and of the last of them, and their text."""

    first_seq: int
    last_seq: int
    body: str


class Journal(Protocol):
    """Keeps turns under their leases; a write raises RuntimeError where the lease is lost."""

    async def claim(self, run_id: str, manifest: str) -> None: ...
    async def append(self, run_id: str, frames: Rows) -> None: ...
    async def finish(self, run_id: str, frames: Rows, answer: str, frames_to: int) -> None:
        """Write the last frames, the answer, whose frames end at `frames_to`, and the end."""
        ...

    async def close(self) -> None: ...


class Change(NamedTuple):
    """A statement that has to change a row, and its values behind the moment and the run."""

    sql: str
    values: tuple[object, ...] = ()


class FencedStreams:
    """Turns in SQLite under leases, written by one thread."""

    def __init__(self, path: str, *, synchronous: Literal["full", "normal"]) -> None:
        self._connection = connect_writer(path, synchronous)
        prepare_schema(self._connection, migrate=True, clock=system_clock)
        self._thread = ThreadPoolExecutor(1)

    async def claim(self, run_id: str, manifest: str) -> None:
        await self._write(run_id, Change(_CLAIM, (manifest,)), Change(_ATTEMPT))

    async def append(self, run_id: str, frames: Rows) -> None:
        await self._write(run_id, Change(_HOLD), Change(_FRAMES, frames))

    async def finish(self, run_id: str, frames: Rows, answer: str, frames_to: int) -> None:
        step = Change(_ANSWER, (answer, frames_to))
        await self._write(run_id, Change(_END), Change(_FRAMES, frames), step, Change(_ENDED))

    async def close(self) -> None:
        self._thread.shutdown()
        self._connection.close()

    async def _write(self, run_id: str, *changes: Change) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._commit, run_id, changes)

    def _commit(self, run_id: str, changes: tuple[Change, ...]) -> None:
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        now = iso_time(system_clock())
        for sql, values in changes:
            if cursor.execute(sql, (now, run_id, *values)).rowcount != 1:
                cursor.execute("ROLLBACK")
                raise RuntimeError(f"the lease of {run_id!r} is lost")
        cursor.execute("COMMIT")


async def stream(journal: Journal, run_id: str, said: AsyncIterator[Any]) -> int:
    """Stream one turn to one reader; return how many bytes it got."""
    await journal.claim(run_id, _MANIFEST)
    turn = _Turn(journal, run_id)
    read = asyncio.create_task(turn.read())
    number = 0
    async for item in said:
        turn.take(item)
        number += 1
        if number % FLUSH_FRAMES == 0:
            await asyncio.sleep(0)
    await turn.end()
    return await read


class _Turn:
    """What is said and not written yet, and what is written and not read yet."""

    def __init__(self, journal: Journal, run_id: str) -> None:
        self._journal = journal
        self._run_id = run_id
        self._pending: list[str] = []
        self._events: list[str] = []
        self._deltas: list[str] = []
        self._spoken: list[str] = []
        self._written = 0
        self._is_over = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._shown: list[str] = []
        self._news: asyncio.Future[None] = self._loop.create_future()

    def take(self, item: Any) -> None:
        if isinstance(item, str):
            self._spoken.append(item)
            self._deltas.append(text := _dumps(item))
        else:
            self._spoken.append(item["data"]["delta"])
            self._events.append(text := _dumps(item))
        self._pending.append(text)
        if self._flushing is None:
            if not self._written or len(self._pending) >= FLUSH_FRAMES:
                self._flush()
            elif self._timer is None:
                self._timer = self._loop.call_later(LINGER_MS / 1e3, self._flush)

    async def end(self) -> None:
        """Write what is left with the answer and the end."""
        if self._timer is not None:
            self._timer.cancel()
        if self._flushing is not None:
            await self._flushing
        texts, frames = self._frames(last='{"k":"completed"}')
        text = _dumps("".join(self._spoken))
        parts = f'{{"k":"text","part":"p1","d":{text}}}' if self._deltas else _events(self._events)
        answer = f'{{"finalText":{text},"parts":[{parts}]}}'
        await self._journal.finish(self._run_id, frames, answer, self._written)
        self._is_over = True
        self._show(texts)

    async def read(self) -> int:
        """Take the lines of everything that is written, until the end."""
        size = 0
        while not self._is_over:
            await self._news
            self._news = self._loop.create_future()
            texts, self._shown = self._shown, []
            size += len("".join(map(self._line, texts)).encode())
        return size

    def _flush(self) -> None:
        self._timer = None
        if self._flushing is None and self._pending:
            self._flushing = self._loop.create_task(self._write())

    async def _write(self) -> None:
        texts, frames = self._frames()
        await self._journal.append(self._run_id, frames)
        self._show(texts)
        self._flushing = None
        if len(self._pending) >= FLUSH_FRAMES:
            self._flush()
        elif self._pending and self._timer is None:
            self._timer = self._loop.call_later(LINGER_MS / 1e3, self._flush)

    def _frames(self, last: str | None = None) -> tuple[list[str], Rows]:
        texts, self._pending = self._pending, []
        elements = [last] if last else []
        first, self._written = self._written + 1, self._written + len(texts) + len(elements)
        if texts and self._deltas:
            elements.insert(0, f'{{"k":"text","part":"p1","d":[{",".join(texts)}]}}')
        elif texts:
            elements.insert(0, _events(texts))
        return texts, Rows(first, self._written, f"[{','.join(elements)}]")

    def _line(self, text: str) -> str:
        if self._deltas:
            return f'{{"type":"message.part.updated","data":{{"delta":{text}{_PART}'
        return f"{text}\n"

    def _show(self, texts: list[str]) -> None:
        self._shown += texts
        if not self._news.done():
            self._news.set_result(None)


def _events(texts: list[str]) -> str:
    return '{"k":"event","event":' + '},{"k":"event","event":'.join(texts) + "}"
