"""SIGKILL in the middle of an answer that is joined again, or gone on with: no reader notices."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import perdure
from perdure.turn.recovery import saved_handle
from tests.crash.provider_process import COUNTED, FINAL, TOKEN_S, WORDS
from tests.crash.test_kill_turns import (
    PATIENCE_S,
    ROOT,
    RUN_ID,
    Place,
    end,
    place_in,
    read_to_the_end,
)
from tests.turn.stage import RESTARTED, Reader, until, within

KILLS = 6
WORK_S = TOKEN_S * len(WORDS) + 0.1

Moment = Callable[[perdure.RunStore], Awaitable[None]]


async def started(*arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start a process of this folder; return it with the first line that it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = await within(process.stdout.readline(), PATIENCE_S)
    assert line, "the process did not begin"
    return process, line.decode().strip()


@asynccontextmanager
async def provider_in(folder: Path) -> AsyncIterator[str]:
    """Run a provider; yield its port."""
    process, port = await started("tests.crash.provider_process", str(folder / "asked"))
    try:
        yield port
    finally:
        await end(process)


async def kill_once(place: Place, port: str, moment: Moment) -> tuple[Reader, str]:
    """Kill a worker at that moment; return the reader, and the text at the kill."""

    async def worker() -> asyncio.subprocess.Process:
        notes = str(place.folder / "notes")
        process, _ = await started("tests.crash.upstream_process", place.url, notes, port)
        return process

    reader = Reader()
    reading = asyncio.ensure_future(read_to_the_end(place.store, reader))
    first = await worker()
    try:
        await moment(place.store)
    finally:
        await end(first)
    shown = await text_of(place.store)
    heir = await worker()
    try:
        await within(reading, PATIENCE_S)
        await within(heir.wait(), PATIENCE_S)
    finally:
        await end(heir)
    return reader, shown


async def text_of(store: perdure.RunStore) -> str:
    frames = await store.read_frames(RUN_ID, after=0)
    return "".join(frame.data["delta"] for frame in frames if frame.kind == "text")


def noted(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


async def in_the_middle(store: perdure.RunStore) -> None:
    async def is_shown() -> bool:
        return WORDS[4] in await text_of(store)

    await until(is_shown)


def some_time(store: perdure.RunStore) -> Awaitable[None]:
    return asyncio.sleep(random.uniform(0, WORK_S))


@pytest.mark.timeout(240)
async def test_an_answer_upstream_is_joined_after_a_kill(tmp_path: Path) -> None:
    async def one(number: int, moment: Moment) -> None:
        async with place_in(tmp_path / str(number)) as place, provider_in(place.folder) as port:
            reader, shown = await kill_once(place, port, moment)
            where = f"killed behind {shown!r}"
            assert reader.text == FINAL, where
            assert RESTARTED not in reader.kinds, where
            asked = noted(place.folder / "asked")
            begun = [line for line in asked if line.startswith("begun")]
            if moment is in_the_middle:
                assert (shown != FINAL, len(begun)) == (True, 1), where
                assert "joined resp_1" in asked, where
            # Only a call whose handle was not kept yet is made again, and nobody has seen of it.
            assert len(begun) == 1 or (len(begun) == 2 and not shown), where
            run = await place.store.read_run(RUN_ID)
            assert run is not None
            saved = saved_handle(run.upstream)
            assert saved is not None
            assert begun[-1] == f"begun {saved.handle['response']}", where
            used = (await place.store.read_details(RUN_ID)).usage
            assert used[-1].tokens_out == COUNTED["output_tokens"], where
            assert all(row.state in ("settled", "unknown") for row in used), where

    await in_turns(one)


@pytest.mark.timeout(240)
async def test_the_answer_in_a_step_of_a_loop_is_joined_after_a_kill(tmp_path: Path) -> None:
    async def one(number: int, moment: Moment) -> None:
        async with place_in(tmp_path / str(number)) as place, provider_in(place.folder) as port:
            reader, shown = await kill_once(place, f"loop:{port}", moment)
            where = f"killed behind {shown!r}"
            assert reader.text == FINAL, where
            asked = noted(place.folder / "asked")
            begun = [line for line in asked if line.startswith("begun")]
            if moment is in_the_middle:
                assert (shown != FINAL, len(begun)) == (True, 1), where
                assert "joined resp_1" in asked, where
            # Only a call whose handle was not kept yet is made again, and nobody has seen of it.
            assert len(begun) == 1 or (len(begun) == 2 and not shown), where
            used = (await place.store.read_details(RUN_ID)).usage
            told = [row.tokens_out for row in used if row.state == "settled" and row.step_index]
            assert told == [COUNTED["output_tokens"]], where

    await in_turns(one)


@pytest.mark.timeout(240)
async def test_an_answer_goes_on_behind_what_was_shown_after_a_kill(tmp_path: Path) -> None:
    async def one(number: int, moment: Moment) -> None:
        async with place_in(tmp_path / str(number)) as place:
            reader, shown = await kill_once(place, "-", moment)
            where = f"killed behind {shown!r}"
            assert reader.text == FINAL, where
            assert RESTARTED not in reader.kinds, where
            asked = noted(place.folder / "notes")
            behind = [int(line.split()[-1]) for line in asked]
            if moment is in_the_middle:
                assert (behind[0], behind[-1] >= len(shown) > 0) == (0, True), where
            used = (await place.store.read_details(RUN_ID)).usage
            # Each call has a row of its own, and one that was intended may not have been made.
            assert len(asked) <= len(used), where
            assert used[-1].tokens_in == COUNTED["input_tokens"], where

    await in_turns(one)


async def in_turns(one: Callable[[int, Moment], Awaitable[None]]) -> None:
    """Do it for some moments, two at a time."""
    places = asyncio.Semaphore(2)

    async def guarded(number: int, moment: Moment) -> None:
        async with places:
            await one(number, moment)

    moments: list[Moment] = [in_the_middle, *(some_time for _ in range(KILLS))]
    await asyncio.gather(*(guarded(*each) for each in enumerate(moments)))
