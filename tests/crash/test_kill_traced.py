"""After SIGKILL the trace goes on: the lost attempt is linked, and no call is counted twice."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.durable.watched import TRACE_KEY
from tests.crash.traced_process import LEASE_MS, MANIFEST, TURN, producer, research
from tests.observe.spanning import attributes, context, watching
from tests.turn.stage import events_of, until

ROOT = Path(__file__).parents[2]
TOKENS_IN = "gen_ai.client.inference.usage.input_tokens"


async def nothing() -> None:
    """Do not hang."""


async def go_on_with_run(store: perdure.RunStore) -> None:
    async def taken_over() -> bool:
        try:
            await perdure.run_durable(
                store, run_id="r", manifest=MANIFEST, task=research(nothing), lease_ms=LEASE_MS
            )
        except perdure.LeaseHeldError:
            return False
        return True

    await until(taken_over)


async def go_on_with_turn(store: perdure.RunStore) -> None:
    engine = perdure.ChatTurnEngine(store, produce=producer(nothing), name="helper")
    worker = perdure.Worker(store, engines=[engine])
    async with asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        await events_of(await engine.submit(TURN, "Hello"))
        await worker.drain()
    await engine.aclose()


def kill_where_it_hangs(kind: str, url: str, lines: Path) -> list[dict[str, Any]]:
    """Return the spans that the killed process had ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.traced_process", kind, url, str(lines)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == b"hangs\n"
        process.kill()
        process.wait()
    return [json.loads(line) for line in lines.read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "run_id", "root", "asked_again", "go_on"),
    [
        ("run", "r", "invoke_workflow research", [], go_on_with_run),
        ("turn", "chat:s:0", "invoke_agent helper", ["chat second"], go_on_with_turn),
    ],
)
async def test_a_takeover_continues_the_stored_trace_and_links_the_lost_attempt(
    kind: str,
    run_id: str,
    root: str,
    asked_again: list[str],
    go_on: Callable[[perdure.RunStore], Awaitable[None]],
    tmp_path: Path,
) -> None:
    url = f"sqlite:{tmp_path / 'traced.db'}"
    [asked] = kill_where_it_hangs(kind, url, tmp_path / "spans")
    assert asked["name"] == "chat first"
    with watching() as watched:
        store = await perdure.open_store(url)
        await go_on(store)
        details = await store.read_details(run_id)
        await store.close()
    stored = {event.key: event.payload for event in details.events}
    lost_trace_id, lost_span_id = stored[f"{TRACE_KEY}1"].split("-")[1:3]
    assert asked["context"]["trace_id"] == f"0x{lost_trace_id}"
    assert asked["parent_id"] == f"0x{lost_span_id}"

    taken_over = watched.span(root)
    assert f"{context(taken_over).trace_id:032x}" == lost_trace_id
    [link] = taken_over.links
    assert f"{link.context.span_id:016x}" == lost_span_id
    assert dict(link.attributes or {}) == {"perdure.run.attempt": 1, "perdure.attempt.lost": True}
    assert attributes(taken_over)["perdure.run.attempt"] == 2
    assert [name for name in watched.names if name.startswith("chat")] == asked_again
    assert watched.total(TOKENS_IN) == 7 * len(asked_again)
