"""Hooks: how they are given, called, and followed without holding up a stream."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from perdure.errors import UsageError
from perdure.turn import hooks as hooks_module
from perdure.turn.hooks import (
    EVENTS_WAITING_MAX,
    ChatTurnHooks,
    EventFollower,
    call_hook,
    flush_trace,
    has_hook,
)
from tests.turn.stage import within


def test_hooks_are_given_by_name_or_by_a_subclass() -> None:
    class Product(ChatTurnHooks):
        def on_turn_complete(self, turn: Any) -> None:
            """Bill it."""

    by_name = ChatTurnHooks(trace_flush=lambda: None)
    assert has_hook(Product(), "on_turn_complete")
    assert not has_hook(Product(), "trace_flush")
    assert has_hook(by_name, "trace_flush")
    assert not has_hook(by_name, "on_event")


@pytest.mark.parametrize("given", [{"on_complete": print}, {"on_event": "print"}])
def test_a_hook_that_would_never_be_called_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(given))):
        ChatTurnHooks(**given)


async def test_a_hook_may_be_plain_or_async() -> None:
    async def later(value: int) -> int:
        return value + 1

    assert await call_hook(lambda value: value + 1, 1) == 2
    assert await call_hook(later, 1) == 2


async def test_a_failing_trace_flush_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("no exporter")

    await flush_trace(ChatTurnHooks(trace_flush=fail))
    assert "no exporter" in caplog.text


async def test_a_trace_flush_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_module, "TRACE_FLUSH_MS", 10)
    await within(flush_trace(ChatTurnHooks(trace_flush=asyncio.Event().wait)))


async def test_a_plain_follower_is_told_at_once_and_in_order() -> None:
    told: list[Any] = []
    follower = EventFollower(ChatTurnHooks(on_event=told.append))
    assert follower.is_wanted
    follower.tell([{"type": "a"}, {"type": "b"}])
    assert [event["type"] for event in told] == ["a", "b"]
    await follower.finish()


async def test_nobody_is_told_where_there_is_no_hook() -> None:
    follower = EventFollower(ChatTurnHooks())
    assert not follower.is_wanted
    follower.tell([{"type": "a"}])
    await follower.finish()


async def test_an_async_follower_is_told_in_order_and_holds_nobody_up() -> None:
    told: list[str] = []
    gate = asyncio.Event()

    async def follow(event: Any) -> None:
        await gate.wait()
        told.append(event["type"])

    follower = EventFollower(ChatTurnHooks(on_event=follow))
    for kind in "abc":
        follower.tell([{"type": kind}])
    assert told == []
    gate.set()
    await within(follower.finish())
    assert told == ["a", "b", "c"]
    follower.tell([{"type": "d"}])
    await within(follower.finish())
    assert told[-1] == "d"


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_a_follower_raises_is_logged_and_the_next_event_comes(
    caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    told: list[str] = []

    def follow(event: Any) -> None:
        told.append(event["type"])
        raise RuntimeError(f"not {event['type']}")

    async def follow_later(event: Any) -> None:
        follow(event)

    follower = EventFollower(ChatTurnHooks(on_event=follow_later if is_async else follow))
    with caplog.at_level(logging.ERROR):
        follower.tell([{"type": "a"}, {"type": "b"}])
        await within(follower.finish())
    assert told == ["a", "b"]
    assert "not a" in caplog.text
    assert "not b" in caplog.text


async def test_a_follower_that_hangs_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks_module, "TRACE_FLUSH_MS", 10)

    async def hang(_event: Any) -> None:
        await asyncio.Event().wait()

    follower = EventFollower(ChatTurnHooks(on_event=hang))
    follower.tell([{"type": "a"}, {"type": "b"}])
    await within(follower.finish())
    assert "missed 1 events" in caplog.text


async def test_a_follower_that_is_too_slow_misses_the_oldest_events_and_hears_of_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[int] = []
    gate = asyncio.Event()

    async def follow(event: Any) -> None:
        await gate.wait()
        told.append(event["data"])

    follower = EventFollower(ChatTurnHooks(on_event=follow))
    last = EVENTS_WAITING_MAX + 10
    for number in range(last + 1):
        follower.tell([{"type": "a", "data": number}])
    assert follower.dropped == 10
    gate.set()
    await within(follower.finish())
    assert told == [0, *range(11, last + 1)]
    assert caplog.text.count("the oldest events are dropped") == 1
    assert "missed 10 events" in caplog.text
