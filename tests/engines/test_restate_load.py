"""What Restate costs and bears, in figures: two workers, one of them killed under load."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from perdure import DurableContext, open_store, run_durable
from perdure.core.records import AgentTaskSpec, RunManifest
from tests.engines.restate_crew import Workers
from tests.engines.restate_server import running_restate
from tests.node_packages import need_node_packages

pytestmark = [pytest.mark.node, pytest.mark.campaign]

SESSIONS = 40
TURNS = 3
STEPS = 200

Record = Callable[[str, object], None]


@pytest.fixture
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    need_node_packages()
    folder = tmp_path_factory.mktemp("restate")
    with running_restate(folder) as server:
        crew = Workers(server, folder)
        try:
            crew.start(2)
            server.register(crew.uri)
            yield crew
        finally:
            crew.close()


@pytest.mark.parametrize("kills", [0, 1])
async def test_two_workers_answer_many_sessions_and_one_of_them_may_die(
    workers: Workers, record_property: Record, kills: int
) -> None:
    begun = time.monotonic()
    calls = [
        await asyncio.to_thread(
            workers.server.send,
            f"chat/l{session}/ask",
            {"turn_index": turn, "message": "slow steps", "user_id": "u"},
        )
        for turn in range(TURNS)
        for session in range(SESSIONS)
    ]
    if kills:
        await asyncio.to_thread(workers.wait_until_asked, SESSIONS * TURNS)
        busy = Counter(pid for pid, _ in workers.asked()).most_common(1)[0][0]
        workers.kill(busy)
        workers.start(1)
    for call in calls:
        answer = await asyncio.to_thread(workers.server.attach, call, timeout_s=100)
        assert answer.json()["state"] == "completed", answer.text
    took_s = time.monotonic() - begun
    store = await open_store(workers.database)
    texts = set[str]()
    attempts = 0
    for session in range(SESSIONS):
        for run in await store.list_runs(session_id=f"l{session}", with_answer=True):
            texts.add(run.answer["finalText"])
            attempts += run.epoch
    await store.close()
    assert len(texts) == 1, "some answer is not whole"
    asked = Counter(what for _, what in workers.asked())
    figures = {
        "turns": len(calls),
        "seconds": round(took_s, 1),
        "attempts": attempts,
        "model calls": asked["first"] + asked["last"],
        "turns by worker": sorted(Counter(pid for pid, what in workers.asked()).values()),
    }
    record_property("figures", figures)
    assert attempts == len(calls) or kills
    # A call is made again only where its worker died in it.
    assert asked["first"] + asked["last"] <= 2 * len(calls) + (attempts - len(calls))


async def test_a_step_on_restate_costs_so_much_beside_run_durable(
    workers: Workers, record_property: Record, tmp_path: Any
) -> None:
    async def count(ctx: DurableContext) -> None:
        for number in range(STEPS):
            await ctx.step(f"step {number}", lambda: 1)

    store = await open_store(f"sqlite:///{tmp_path / 'own.db'}")
    theirs, ours = list[float](), list[float]()
    for round_number in range(5):
        call = f"count/c{round_number}/run"
        answer = await asyncio.to_thread(workers.server.call, call, {"steps": STEPS})
        theirs.append(answer.json()["ms_per_step"])
        begun = time.perf_counter()
        manifest = RunManifest("p", AgentTaskSpec("t", "count"))
        await run_durable(store, run_id=f"c{round_number}", manifest=manifest, task=count)
        ours.append((time.perf_counter() - begun) * 1_000 / STEPS)
    await store.close()
    figures = {
        "ms per step on Restate": round(statistics.median(theirs), 3),
        "ms per step in run_durable on SQLite": round(statistics.median(ours), 3),
    }
    record_property("figures", figures)
    assert min(theirs) > 0
