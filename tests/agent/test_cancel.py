"""A signal fires once, and takes the signals below it along."""

from __future__ import annotations

import asyncio

import pytest

from perdure.agent.cancel import CancelSignal
from perdure.errors import AgentRuntimeError


async def test_1_2_r2_who_waits_is_woken_and_the_first_reason_stays() -> None:
    signal = CancelSignal()
    waiting = asyncio.ensure_future(signal.wait())
    signal.cancel("bored")
    signal.cancel("again")
    await waiting
    assert (signal.cancelled, signal.reason) == (True, "bored")
    with pytest.raises(AgentRuntimeError, match="bored"):
        signal.raise_if_cancelled()


def test_1_2_r2_a_child_fires_with_its_parent_and_not_the_other_way_round() -> None:
    parent = CancelSignal()
    first, second = CancelSignal(parent), CancelSignal(parent)
    first.cancel("alone")
    assert not parent.cancelled
    parent.cancel("all")
    assert (first.reason, second.reason) == ("alone", "all")
    assert CancelSignal(parent).cancelled


def test_a_released_child_fires_no_more() -> None:
    parent = CancelSignal()
    child = CancelSignal(parent)
    child.release()
    parent.cancel()
    assert not child.cancelled
    child.raise_if_cancelled()
