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
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from perdure.core.pricing import NANOS
from perdure.core.records import UsageRecord
from perdure.observe.ledger import usage_summary
from perdure.observe.prices import ModelPrice, PriceList
from perdure.store.ledger import GROUPINGS, Tallies, UsageSum
from perdure.store.protocol import RunStore

MODEL: Final = "gpt-4o"
PRICES: Final = PriceList(
    {MODEL: ModelPrice(input=10, cached=1, output=40, reasoning=20)}, version="of the tests"
)
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
    tokens_cached: int = 0
    tokens_reasoning: int = 0

    @property
    def run_id(self) -> str:
        return self.asker.split()[0]

    @property
    def tokens(self) -> tuple[int, int, int, int]:
        return self.tokens_in, self.tokens_out, self.tokens_cached, self.tokens_reasoning

    @property
    def price(self) -> int:
        """What it costs by PRICES, in billionths of a dollar."""
        new, said = self.tokens_in - self.tokens_cached, self.tokens_out - self.tokens_reasoning
        per_token = (new * 10, self.tokens_cached, said * 40, self.tokens_reasoning * 20)
        return sum(per_token) * NANOS // 1_000_000


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
        line.tokens_cached = self._chance.randint(0, line.tokens_in)
        async with self._billed:
            self.bill.append(line)
            self._billed.notify_all()
        if trouble == "silent":
            line.tokens_out = line.tokens_reasoning = len(words)
            raise ConnectionError
        # Some providers count as they go, which is not the bill of an answer that breaks off.
        is_counting = self._chance.random() < 0.5
        writer.write(_head(line.request_id))
        for number, word in enumerate(words):
            await asyncio.sleep(WORD_S * self._chance.random())
            if trouble == "broken off" and number == len(words) // 2:
                raise ConnectionError
            line.tokens_out += 1
            line.tokens_reasoning += self._chance.randint(0, 1)
            said: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": word}}]}
            writer.write(_chunk(said | ({"usage": _usage(line)} if is_counting else {})))
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


def _usage(line: Billed) -> Mapping[str, Any]:
    return {
        "prompt_tokens": line.tokens_in,
        "prompt_tokens_details": {"cached_tokens": line.tokens_cached},
        "completion_tokens": line.tokens_out,
        "completion_tokens_details": {"reasoning_tokens": line.tokens_reasoning},
    }


class Agreement(NamedTuple):
    """What a bill and a ledger came to.

    `answered` lines are equal, `lost` ones are unknown; of those that are `cut` it is known what
    went in, and that it is not known what came out.
    """

    answered: int
    lost: int
    tokens_answered: int
    tokens_lost: int
    unknown: int
    cut: int
    lines: Sequence[Billed]
    """What was billed and settled, as far as the ledger knows it."""

    def __str__(self) -> str:
        return str(self._replace(lines=())._asdict())


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
    cut: list[Billed] = []
    for line in bill:
        row = settled.pop(line.request_id, None)
        if row is None:
            lost.append(line)
            continue
        if row.tokens_out is None:
            line = replace(line, tokens_out=0, tokens_reasoning=0)
            row = row._replace(tokens_out=0, tokens_reasoning=row.tokens_reasoning or 0)
            cut.append(line)
        else:
            answered.append(line)
        counted = row.tokens_in, row.tokens_out, row.tokens_cached, row.tokens_reasoning
        assert counted == line.tokens, (line, row)
    assert not settled, "the ledger has what nobody billed"
    silent = await _answers(store) - Counter(line.asker for line in answered)
    # A turn may be finished from its log, by who cannot settle the call of the attempt before.
    missing = [asker for asker in silent if not asker.startswith("chat:")]
    assert not missing, f"recorded, and unknown all the same: {missing}"
    absent = Counter(line.asker for line in lost) - unknown
    assert not absent, f"billed, and absent from the ledger: {absent}"
    return Agreement(
        answered=len(answered),
        lost=len(lost),
        tokens_answered=sum(line.tokens_in + line.tokens_out for line in answered),
        tokens_lost=sum(line.tokens_in + line.tokens_out for line in lost),
        unknown=unknown.total(),
        cut=len(cut),
        lines=[*answered, *cut],
    )


async def check_sums(store: RunStore, agreement: Agreement) -> None:
    """Compare every way to add up the ledger with the bill of what was answered."""
    lines = agreement.lines
    billed = tuple(sum(each) for each in zip(*(line.tokens for line in lines), strict=True))
    price = sum(line.price for line in lines if line.tokens_out)
    unsure = agreement.unknown + agreement.cut
    for grouping in GROUPINGS:
        found = await usage_summary(store, by=grouping, prices=PRICES)
        assert found.priced == agreement.answered
        for total in (found.total, _added(found.sums)):
            assert _counted(total) == billed, grouping
            assert total.cost_nanos == {"USD": price}, grouping
            assert (total.settled, total.unknown) == (len(lines), agreement.unknown)
            assert (total.running, total.unpriced, total.uncounted) == (0, unsure, unsure)
    by_run = {each.key: each for each in (await usage_summary(store, by="run")).sums}
    for run_id in {line.run_id for line in lines}:
        of_run = [line.tokens for line in lines if line.run_id == run_id]
        assert _counted(by_run[run_id]) == tuple(map(sum, zip(*of_run, strict=True)))


def _counted(total: UsageSum) -> tuple[int, ...]:
    counts = total.tokens_in, total.tokens_out, total.tokens_cached, total.tokens_reasoning
    return tuple(count or 0 for count in counts)


def _added(sums: Sequence[UsageSum]) -> UsageSum:
    tallies = Tallies(None)
    tallies.merge(each._replace(key=None, tenant=None) for each in sums)
    [total] = tallies.sums()
    return total


async def _answers(store: RunStore) -> Counter[str]:
    """Return who has an answer on record: the steps that asked, and the turns."""
    answers: Counter[str] = Counter()
    for run in await store.list_runs(limit=10_000):
        steps = await store.read_steps(run.run_id)
        answers.update(f"{run.run_id} {s.step_index}" for s in steps if s.status == "completed")
    return answers


async def _rows(store: RunStore) -> list[tuple[str, UsageRecord]]:
    """Return the run and the record of every call of the store."""
    rows: list[tuple[str, UsageRecord]] = []
    for run in await store.list_runs(limit=10_000):
        details = await store.read_details(run.run_id)
        rows += ((run.run_id, usage) for usage in details.usage)
    return rows
