"""SIGKILL and SIGSTOP for a real service in the middle of a turn, with a reader who comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial

import pytest

import perdure
from perdure.core.limits import LEASE_MS
from tests.crash.conftest import NewUrl
from tests.crash.service import ANSWER, TOKENS, Provider, Reader, service_on, turn_of

LINES = len(TOKENS) + 2
AT_ONCE = 4


async def was_answered(url: str) -> bool:
    """Return whether the store has the whole answer, so that no rung may ask the model again."""
    store = await perdure.open_store(url)
    try:
        run = await store.read_run("chat:s:0")
        frames = await store.read_frames("chat:s:0", limit=10_000)
        return (run is not None and run.state == "completed") or any(
            frame.kind == "upstream_end" for frame in frames
        )
    finally:
        await store.close()


async def kill_and_come_back(url: str, *, lines: int, pause_ms: float) -> None:
    """Kill the service some lines into a turn, start it again, and read the rest.

    The lease is so long that a busy machine takes it from nobody, but from the dead at once.
    """
    reader = Reader()
    async with Provider(token_ms=4) as provider:
        async with service_on(url, provider, lease_ms=LEASE_MS) as service:
            await reader.submit(service.origin, leave_behind=lines)
            await asyncio.sleep(pause_ms / 1_000)
            await service.kill()
        seen = reader.text
        answered = await was_answered(url)
        async with service_on(url, provider, lease_ms=LEASE_MS) as service:
            while reader.end is None:
                await reader.follow(service.origin)
            turn = await turn_of(service.origin)
        assert reader.end == "session.run.completed"
        assert reader.text == turn["text"] == ANSWER
        assert reader.seqs == sorted(set(reader.seqs)), "a frame came twice, or out of order"
        # Whoever was killed before he said a word may not have asked the model yet.
        least, most = (1, 1) if answered else (2 if seen else 1, 2)
        # On a machine that is busy enough an heir may lose its lease too: one more attempt.
        most += 0 if answered else max(0, turn["attempt"] - 2)
        assert least <= provider.calls <= most, f"killed behind {lines} lines"


async def kill_at(new_url: Callable[[], str], kills: int, seed: int) -> None:
    chance = random.Random(seed)
    places = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        lines, pause_ms = chance.randint(1, LINES), chance.uniform(0, 30)
        async with places:
            await kill_and_come_back(new_url(), lines=lines, pause_ms=pause_ms)

    await asyncio.gather(*(one() for _ in range(kills)))


@pytest.mark.parametrize(("scheme", "kills"), [("sqlite", 20), ("file", 8), ("postgresql", 4)])
async def test_a_reader_misses_nothing_when_the_service_is_killed_at_a_random_moment(
    new_url: NewUrl, scheme: str, kills: int
) -> None:
    await kill_at(partial(new_url, scheme), kills, seed=1)


@pytest.mark.campaign
@pytest.mark.parametrize("scheme", ["sqlite", "file", "postgresql"])
@pytest.mark.parametrize("seed", range(2, 17))
async def test_a_reader_misses_nothing_however_often_the_service_is_killed(
    new_url: NewUrl, seed: int, scheme: str
) -> None:
    await kill_at(partial(new_url, scheme), 20, seed=seed)


@pytest.mark.parametrize("scheme", ["sqlite", "postgresql"])
async def test_a_reader_on_a_second_service_sees_the_first_one_die(
    new_url: NewUrl, scheme: str
) -> None:
    url, reader = new_url(scheme), Reader()
    async with (
        Provider(token_ms=15) as provider,
        service_on(url, provider, lease_ms=LEASE_MS) as first,
        service_on(url, provider, lease_ms=LEASE_MS) as second,
    ):
        await Reader().submit(first.origin, leave_behind=2)
        following = asyncio.create_task(reader.follow(second.origin))
        await Reader().follow(first.origin, leave_behind=10)
        await first.kill()
        await following
        while reader.end is None:
            await reader.follow(second.origin)
        turn = await turn_of(second.origin)
    assert reader.text == turn["text"] == ANSWER
    assert reader.seqs == sorted(set(reader.seqs))
    assert reader.broke_off == 0, "the reader's own service lived on"
    assert (turn["attempt"], provider.calls, reader.restarts) == (2, 2, 1)


@pytest.mark.parametrize("scheme", ["sqlite", "postgresql"])
async def test_a_paused_service_that_wakes_up_writes_nothing(new_url: NewUrl, scheme: str) -> None:
    url, reader = new_url(scheme), Reader()
    async with (
        Provider(token_ms=15) as provider,
        service_on(url, provider) as zombie,
        service_on(url, provider) as second,
    ):
        await Reader().submit(zombie.origin, leave_behind=5)
        zombie.pause()
        while reader.end is None:
            await reader.follow(second.origin)
        before = await turn_of(second.origin)
        zombie.go_on()
        # The zombie answers again: it has had its turn at writing, and was refused.
        late = Reader()
        while late.end is None:
            await late.follow(zombie.origin)
        after = await turn_of(second.origin)
    assert reader.text == late.text == ANSWER
    assert before == after
    assert before["attempt"] == 2
    assert reader.seqs == sorted(set(reader.seqs))
    store = await perdure.open_store(url)
    frames = await store.read_frames("chat:s:0", limit=10_000)
    attempts = (await store.read_details("chat:s:0")).attempts
    await store.close()
    assert [attempt.ended for attempt in attempts] == ["lost", "completed"]
    epochs = [frame.epoch for frame in frames]
    assert epochs == sorted(epochs), "a lost attempt wrote behind the one that took over"
