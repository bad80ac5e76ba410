"""The reference's two calls, made again after each crash, come to the end of an undisturbed one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from perdure.store.protocol import RunStore
from perdure.testing.contract import NewLab
from perdure.testing.faults import crash_everywhere
from perdure.testing.samples import manifest
from perdure.turn.durable import run_durable_turn
from perdure.turn.hooks import ChatTurnHooks, FinishedTurn
from perdure.turn.reference import ReferenceChatTurnEngine
from tests.turn.stage import TURN, until

ANSWER = "Hello you"


def delta_of(event: Any, text: str) -> str:
    return f"{text}{event['data']['delta']}"


class World:
    """What outlives a process: the provider's bill, and what hooks were told under which key."""

    def __init__(self) -> None:
        self.calls = 0
        self.told: Counter[tuple[str, str, str]] = Counter()

    async def answer(self) -> AsyncIterator[Any]:
        self.calls += 1
        for delta in ("Hello", " you"):
            yield {"type": "message.part.updated", "data": {"delta": delta}}

    def hooks(self) -> ChatTurnHooks:
        def persist(turn: FinishedTurn) -> None:
            self.told["persist", turn.idempotency_key, turn.final_text] += 1

        def complete(turn: FinishedTurn) -> None:
            self.told["complete", turn.idempotency_key, turn.final_text] += 1

        return ChatTurnHooks(
            produce=self.answer, persist_assistant_message=persist, on_turn_complete=complete
        )


async def end_of(store: RunStore, run_id: str) -> tuple[str, Any]:
    run = await store.read_run(run_id)
    assert run is not None
    [step] = await store.read_steps(run_id)
    return run.state, step.result["finalText"]


async def test_run_turn_ends_the_same_wherever_its_process_dies(new_lab: NewLab) -> None:
    worlds: list[World] = []

    async def scenario(store: RunStore) -> tuple[str, Any, list[str]]:
        run = await store.read_run("chat:s:0")
        if run is None:
            worlds.append(World())
        world, frames = worlds[-1], await store.read_frames("chat:s:0")
        is_whole = any(frame.kind in ("upstream_end", "completed") for frame in frames)
        before = world.calls
        engine = ReferenceChatTurnEngine()
        body = engine.run_turn(
            store=store,
            identity=TURN,
            user_message="Hi",
            project_id="p",
            hooks=world.hooks(),
        )
        lines = b"".join([chunk async for chunk in body.body]).splitlines()
        kinds = [json.loads(line)["type"] for line in lines]
        assert kinds[-1] == "session.run.completed"
        assert world.calls - before == (0 if is_whole else 1)

        async def delivered() -> bool:
            deliveries = (await store.read_details("chat:s:0")).deliveries
            return [one.state for one in deliveries] == ["delivered"] * 2

        await until(delivered)
        await engine.aclose()
        return *await end_of(store, "chat:s:0"), sorted(topic for topic, _, _ in world.told)

    report = await crash_everywhere(scenario, new_lab)
    assert report.outcome == ("completed", ANSWER, ["complete", "persist"])
    assert {"start_or_resume", "write", "claim_deliveries", "settle_delivery"} == set(report.calls)
    assert all(text == ANSWER for world in worlds for _, _, text in world.told)
    assert max(world.calls for world in worlds) == 2, "an interrupted one is produced again"


async def test_run_durable_turn_ends_the_same_wherever_its_process_dies(new_lab: NewLab) -> None:
    worlds: list[World] = []

    async def scenario(store: RunStore) -> tuple[str, Any, str]:
        run = await store.read_run("turn")
        if run is None:
            worlds.append(World())
        world, was_over = worlds[-1], run is not None and run.state == "completed"
        before = world.calls
        turn = run_durable_turn(
            store,
            run_id="turn",
            manifest=manifest(),
            produce=world.answer,
            accumulate=delta_of,
        )
        events = [event async for event in turn.stream]
        assert turn.replayed() == was_over
        assert len(events) == (1 if was_over else 2)
        assert world.calls - before == (0 if was_over else 1)
        return *await end_of(store, "turn"), turn.final_text()

    report = await crash_everywhere(scenario, new_lab)
    assert report.outcome == ("completed", ANSWER, ANSWER)
    assert report.calls == ("start_or_resume", "write", "write")
    assert max(world.calls for world in worlds) == 2, "an interrupted one is produced again"
