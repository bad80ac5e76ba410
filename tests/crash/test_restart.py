"""After a SIGKILL and a restart a turn goes on at once, not when its lease lapses."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core.effects import monotonic_ms
from perdure.core.limits import LEASE_MS, STRIKES_MAX_TURN
from tests.crash.conftest import NewUrl
from tests.crash.service import ANSWER, Provider, Reader, service_on, turn_of

SOON_MS = LEASE_MS / 2
"""The machine of the tests may be busy; but nobody has waited for a lease by then."""


@pytest.mark.parametrize("scheme", ["sqlite", "file", "postgresql"])
async def test_the_first_new_frame_comes_soon_after_a_kill_and_a_restart(
    new_url: NewUrl, scheme: str
) -> None:
    url, reader = new_url(scheme), Reader()
    async with Provider(token_ms=30) as provider:
        async with service_on(url, provider, lease_ms=LEASE_MS) as service:
            await reader.submit(service.origin, leave_behind=10)
            await service.kill()
        last = reader.seqs[-1]
        async with service_on(url, provider, lease_ms=LEASE_MS) as service:
            restarted_ms = monotonic_ms()
            while reader.seqs[-1] == last:
                await reader.follow(service.origin, leave_behind=1)
            waited_ms = monotonic_ms() - restarted_ms
            assert reader.end is None, "it was read from the new attempt while it wrote"
            while reader.end is None:
                await reader.follow(service.origin)
            turn = await turn_of(service.origin)
    assert waited_ms < SOON_MS
    assert reader.text == turn["text"] == ANSWER
    assert (turn["attempt"], provider.calls, reader.restarts) == (2, 2, 1)
    assert reader.seqs == sorted(set(reader.seqs))


@pytest.mark.parametrize("scheme", ["sqlite", "file", "postgresql"])
async def test_a_paused_service_keeps_its_turn_for_as_long_as_its_lease(
    new_url: NewUrl, scheme: str
) -> None:
    url = new_url(scheme)
    async with (
        Provider(token_ms=15) as provider,
        service_on(url, provider, lease_ms=LEASE_MS) as paused,
    ):
        await Reader().submit(paused.origin, leave_behind=5)
        paused.pause()
        async with service_on(url, provider, lease_ms=LEASE_MS) as second:
            # Whoever asks for the turn asks for its lease too.
            reader = Reader()
            await reader.submit(second.origin, leave_behind=2)
            assert (await turn_of(second.origin))["attempt"] == 1
        paused.go_on()
        while reader.end is None:
            await reader.follow(paused.origin)
        turn = await turn_of(paused.origin)
    assert reader.text == turn["text"] == ANSWER
    assert (turn["attempt"], provider.calls) == (1, 1)


@pytest.mark.parametrize("scheme", ["sqlite", "file", "postgresql"])
async def test_a_turn_that_kills_its_process_again_and_again_is_parked_all_the_same(
    new_url: NewUrl, scheme: str
) -> None:
    url = new_url(scheme)
    async with Provider(token_ms=30) as provider:
        for attempt in range(1, STRIKES_MAX_TURN + 1):
            async with service_on(url, provider, lease_ms=LEASE_MS) as service:
                await Reader().submit(service.origin, leave_behind=4)
                async with asyncio.timeout(SOON_MS / 1_000):
                    await provider.called(attempt)
                await service.kill()
        async with service_on(url, provider, lease_ms=LEASE_MS) as service:
            await Reader().submit(service.origin)
            turn = await turn_of(service.origin)
    assert (turn["state"], provider.calls) == ("parked", STRIKES_MAX_TURN)
