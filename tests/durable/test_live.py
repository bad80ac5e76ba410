"""The registry of live runs: who comes second finds who came first."""

from __future__ import annotations

import asyncio

import pytest

from perdure.durable.live import LiveRuns
from tests.durable.handles import within


async def test_a_run_is_found_by_handle_and_id() -> None:
    runs: LiveRuns[str] = LiveRuns()
    live = runs.enter("handle", "run", "hash")
    assert runs.find("handle", "run") is live
    assert runs.find("other handle", "run") is None
    assert runs.find("handle", "other run") is None


async def test_leaving_wakes_whoever_waits() -> None:
    runs: LiveRuns[str] = LiveRuns()
    live = runs.enter("handle", "run", "hash")
    waiting = asyncio.gather(live.opened.wait(), live.gone.wait())
    runs.leave("handle", "run")
    await within(waiting)
    assert runs.find("handle", "run") is None


async def test_work_that_is_there_opens_the_run() -> None:
    runs: LiveRuns[str] = LiveRuns()
    live = runs.enter("handle", "run", "hash")
    assert (live.work, live.opened.is_set()) == (None, False)
    live.work = "work"
    assert (live.work, live.opened.is_set(), live.gone.is_set()) == ("work", True, False)


async def test_a_shared_run_stays_until_its_last_owner_leaves() -> None:
    runs: LiveRuns[str] = LiveRuns()
    live = runs.enter("handle", "run", "hash")
    assert runs.share("handle", "run", "hash") is live
    runs.leave("handle", "run")
    assert runs.find("handle", "run") is live
    assert not live.gone.is_set()
    runs.leave("handle", "run")
    assert live.gone.is_set()
    assert runs.share("handle", "run", "hash") is not live


async def test_entering_twice_is_a_mistake_and_leaving_twice_is_none() -> None:
    runs: LiveRuns[str] = LiveRuns()
    runs.enter("handle", "run", "hash")
    with pytest.raises(AssertionError):
        runs.enter("handle", "run", "hash")
    runs.leave("handle", "run")
    runs.leave("handle", "run")


async def test_a_sweep_is_waited_for_and_only_on_its_handle() -> None:
    runs: LiveRuns[str] = LiveRuns()
    await within(runs.swept("handle"))
    with runs.sweeping("handle"):
        waiting = asyncio.ensure_future(runs.swept("handle"))
        await within(runs.swept("other handle"))
        await asyncio.sleep(0)
        assert not waiting.done()
        with runs.sweeping("handle"):
            pass
        await asyncio.sleep(0)
        assert not waiting.done(), "the first sweep is still under way"
    await within(waiting)
