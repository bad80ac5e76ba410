"""The ring: bounded in memory, and readers within it are woken."""

from __future__ import annotations

import asyncio

from perdure.core.frames import Frame
from perdure.durable.ring import Listener, Ring
from tests.durable.handles import within


def numbered(*seqs: int) -> list[Frame]:
    return [Frame(seq, 1, "text", {"part": "p", "delta": str(seq)}) for seq in seqs]


async def test_a_ring_is_bounded_in_memory_and_keeps_the_newest() -> None:
    ring = Ring(1)
    ring.publish(numbered(*range(1, 1_001)), [1] * 1_000)
    await asyncio.sleep(0)
    assert not ring.reaches(0)
    kept = ring.since(900)
    assert [frame.seq for frame in kept] == list(range(901 + 100 - len(kept), 1_001))
    assert 10 <= len(kept) <= 100
    ring.publish(numbered(1_001), [300_000])
    await asyncio.sleep(0)
    assert [frame.seq for frame in ring.since(0)] == [1_001]


async def test_a_reader_within_the_ring_gets_what_is_behind_its_cursor() -> None:
    ring = Ring(5)
    assert not ring.reaches(3)
    assert ring.reaches(4)
    ring.publish(numbered(5, 6, 7), [1, 1, 1])
    assert [frame.seq for frame in ring.since(4)] == [5, 6, 7]
    assert [frame.seq for frame in ring.since(6)] == [7]
    assert not ring.since(7)
    assert ring.last_seq == 7


async def test_a_reader_that_waits_gets_a_batch_that_is_larger_than_the_ring() -> None:
    ring = Ring(1)

    async def read() -> list[Frame]:
        assert await Listener().wait(ring, 60_000)
        return ring.since(0) if ring.reaches(0) else []

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    ring.publish(numbered(*range(1, 1_001)), [1] * 1_000)
    assert len(await within(reading)) == 1_000
    assert not ring.reaches(0)


async def test_readers_of_a_ring_are_woken_by_news_and_by_its_end() -> None:
    ring = Ring(1)
    readers = [asyncio.ensure_future(Listener().wait(ring, 60_000)) for _ in range(3)]
    await asyncio.sleep(0)
    ring.publish(numbered(1), [1])
    assert await within(asyncio.gather(*readers)) == [True] * 3
    late = asyncio.ensure_future(Listener().wait(ring, 60_000))
    await asyncio.sleep(0)
    ring.close()
    assert await within(late)
    assert not await Listener().wait(ring, 1)
