"""A provider that keeps its own bill, and a look at whether a store's ledger agrees with it.

It speaks chat completions over HTTP. Every answer that it begins is billed, whoever hears of it:
the words of the prompt, and those of the answer that it has made by then.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from perdure.core.records import UsageRecord
from perdure.store.protocol import RunStore

MODEL: Final = "gpt-4o"
WORD_S: Final = 0.004
TROUBLES: Final = ("refused", "busy", "silent", "broken off")
"""What goes wrong: two statuses that cost nothing, and two ways to lose a connection that do."""


@dataclass
class Billed:
    """One line of the bill. `asker` is the run and the step that asked, as they have said."""

    request_id: str
    asker: str
    tokens_in: int
    tokens_out: int = 0


class Provider:
    """Answers, makes one of `troubles` in a part `trouble` of all requests, and bills."""

    def __init__(
        self, chance: random.Random, *, trouble: float, troubles: Sequence[str] = TROUBLES
    ) -> None:
        self.bill: list[Billed] = []
        self._chance = chance
        self._trouble = trouble
        self._troubles = troubles
        self._billed = asyncio.Condition()
        self._served: set[asyncio.StreamWriter] = set()

    async def has_billed(self, lines: int) -> None:
        """Return once the bill has so many lines."""
        async with self._billed:
            await self._billed.wait_for(lambda: len(self.bill) >= lines)

    async def is_idle(self) -> None:
        """Return once nobody is served any more."""
        async with self._billed:
            await self._billed.wait_for(lambda: not self._served)

    def hang_up(self) -> None:
        """Leave whoever is served."""
        for writer in self._served:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._served.add(writer)
        try:
            while True:
                await self._answer(await _asked(reader), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # Whoever asked is dead, and pays all the same.
        finally:
            writer.close()
            self._served.discard(writer)
            async with self._billed:
                self._billed.notify_all()

    async def _answer(self, asked: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        is_troubled = self._chance.random() < self._trouble
        trouble = self._chance.choice(self._troubles) if is_troubled else "none"
        if trouble in ("refused", "busy"):
            status = "429 Too Many Requests" if trouble == "refused" else "503 Service Unavailable"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        words = [f"word{number} " for number in range(self._chance.randint(2, 12))]
        line = Billed(f"req-{len(self.bill)}", asked["user"], _tokens_in(asked["messages"]))
        async with self._billed:
            self.bill.append(line)
            self._billed.notify_all()
        if trouble == "silent":
            line.tokens_out = len(words)
            raise ConnectionError
        writer.write(_head(line.request_id))
        for number, word in enumerate(words):
            await asyncio.sleep(WORD_S * self._chance.random())
            if trouble == "broken off" and number == len(words) // 2:
                raise ConnectionError
            line.tokens_out += 1
            writer.write(_chunk({"choices": [{"index": 0, "delta": {"content": word}}]}))
            await writer.drain()
        writer.write(_chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        writer.write(_chunk({"choices": [], "usage": _usage(line)}))
        writer.write(_piece(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()


@asynccontextmanager
async def providing(
    chance: random.Random, *, trouble: float, troubles: Sequence[str] = TROUBLES
) -> AsyncIterator[tuple[Provider, str]]:
    """Serve on a free port; yield the provider and its address."""
    provider = Provider(chance, trouble=trouble, troubles=troubles)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield provider, f"http://127.0.0.1:{port}/v1"
    finally:
        server.close()
        provider.hang_up()
        await provider.is_idle()


async def _asked(reader: asyncio.StreamReader) -> Mapping[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    [length] = [line for line in head.split("\r\n") if line.startswith("content-length:")]
    asked: Mapping[str, Any] = json.loads(await reader.readexactly(int(length.split(":")[1])))
    return asked


def _head(request_id: str) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        f"x-request-id: {request_id}\r\ntransfer-encoding: chunked\r\n\r\n"
    ).encode()


def _chunk(data: Mapping[str, Any]) -> bytes:
    return _piece(f"data: {json.dumps({'model': MODEL, **data})}\n\n".encode())


def _piece(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _tokens_in(messages: list[Mapping[str, Any]]) -> int:
    return sum(len(str(message["content"]).split()) for message in messages)


def _usage(line: Billed) -> Mapping[str, int]:
    return {"prompt_tokens": line.tokens_in, "completion_tokens": line.tokens_out}


class Agreement(NamedTuple):
    """What a bill and a ledger came to: `answered` lines are equal, `lost` ones are unknown."""

    answered: int
    lost: int
    tokens_answered: int
    tokens_lost: int
    unknown: int


async def agreed(store: RunStore, bill: list[Billed]) -> Agreement:
    """Compare line by line; AssertionError if something that was billed is absent or differs."""
    rows = await _rows(store)
    settled = {row.request_id: row for _, row in rows if row.state == "settled"}
    unknown = Counter(
        f"{run_id} {row.step_index}" for run_id, row in rows if row.state == "unknown"
    )
    assert len(settled) + unknown.total() == len(rows), "a request counts twice, or not at all"
    answered: list[Billed] = []
    lost: list[Billed] = []
    for line in bill:
        row = settled.pop(line.request_id, None)
        if row is None:
            lost.append(line)
            continue
        answered.append(line)
        assert (row.tokens_in, row.tokens_out) == (line.tokens_in, line.tokens_out), (line, row)
    assert not settled, "the ledger has what nobody billed"
    absent = Counter(line.asker for line in lost) - unknown
    assert not absent, f"billed, and absent from the ledger: {absent}"
    return Agreement(
        answered=len(answered),
        lost=len(lost),
        tokens_answered=sum(line.tokens_in + line.tokens_out for line in answered),
        tokens_lost=sum(line.tokens_in + line.tokens_out for line in lost),
        unknown=unknown.total(),
    )


async def _rows(store: RunStore) -> list[tuple[str, UsageRecord]]:
    """Return the run and the record of every call of the store."""
    rows: list[tuple[str, UsageRecord]] = []
    for run in await store.list_runs(limit=10_000):
        details = await store.read_details(run.run_id)
        rows += ((run.run_id, usage) for usage in details.usage)
    return rows
