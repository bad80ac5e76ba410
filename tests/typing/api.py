"""The public API as its users write it, for the type checkers to read; nothing here is executed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, assert_type

from perdure import (
    AgentTaskSpec,
    ChatTurnEngine,
    ChatTurnHooks,
    ChatTurnIdentity,
    DurableContext,
    EventRecord,
    FinishedTurn,
    Frame,
    Retry,
    RunManifest,
    RunOutcome,
    RunRecord,
    RunStore,
    SessionKey,
    StepRecord,
    Turn,
    Worker,
    canonical_hash,
    canonical_json,
    current_step,
    derive_worker_id,
    emit_event,
    manifest_hash,
    open_store,
    run_durable,
    step_id,
)

MANIFEST = RunManifest(
    "project", AgentTaskSpec("task", "Count words", domain="text"), input={"text": "a b"}
)


async def stores_are_opened_by_url() -> None:
    store = await open_store("sqlite:runs.db", durability="normal", code_version="7")
    assert_type(store, RunStore)
    assert_type(store.for_tenant("acme"), RunStore)
    assert_type(await store.read_run("run"), RunRecord | None)
    assert_type(await store.read_steps("run"), Sequence[StepRecord])
    assert_type(await store.load_event("run", "key"), EventRecord | None)
    await store.close()


async def steps_keep_the_type_of_their_result(context: DurableContext) -> str:
    async def fetch() -> list[str]:
        assert_type(current_step().idempotency_key, str)
        return ["a", "b"]

    words = await context.step("fetch", fetch, kind="tool", retry=Retry(tries_max=5))
    assert_type(words, list[str])
    count = await context.step("count", lambda: len(words), fingerprint=words, timeout_ms=1_000)
    assert_type(count, int)
    both = await context.parallel(("left", fetch), ("right", fetch), concurrency_max=1)
    assert_type(both, list[Any])
    assert_type(context.input, Mapping[str, Any])
    assert_type(await context.now(), str)
    assert_type(await context.uuid(), str)
    assert_type(await context.random(), float)
    await context.sleep(1_000)
    await context.await_event("approved", timeout_ms=None)
    assert_type(await context.emit_event("counted", {"words": count}), bool)
    return " ".join(words)


async def a_run_keeps_the_type_of_its_task(store: RunStore) -> None:
    done = await run_durable(
        store,
        run_id="run",
        manifest=MANIFEST,
        task=steps_keep_the_type_of_their_result,
        worker_id=derive_worker_id(),
        lease_ms=15_000,
        default_outcome=RunOutcome(passed=True),
    )
    assert_type(done.result, str)
    assert_type(done.record, RunRecord)
    assert_type(done.steps, Sequence[StepRecord])
    assert_type(await emit_event(store, "run", "approved", True), bool)


async def a_worker_runs_tasks_and_engines(store: RunStore, engine: ChatTurnEngine) -> None:
    worker = Worker(store, tasks={"count": steps_keep_the_type_of_their_result}, engines=[engine])
    assert_type(await worker.submit("count", run_id="run", manifest=MANIFEST), RunRecord)
    await worker.run()
    await worker.drain(timeout_ms=1_000)


class Hooks(ChatTurnHooks):
    """A product's hooks; each may be plain or async."""

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        assert_type(turn.final_text, str)
        assert_type(turn.idempotency_key, str)


async def produce(turn: Turn) -> AsyncIterator[Any]:
    assert_type(turn.identity, ChatTurnIdentity)
    assert_type(turn.user_message, str)
    assert_type(turn.attempt, int)
    assert_type(turn.partial.text, str)
    price = await turn.step("price", lambda: 12.5, kind="tool")
    assert_type(price, float)

    async def model() -> AsyncIterator[Frame]:
        yield Frame(0, 0, "text", {"part": None, "delta": f"It costs {price}"})

    async for frame in turn.stream("model", model, result=len):
        assert_type(frame, Frame)
        yield frame


async def turns_are_submitted_read_and_stopped(store: RunStore) -> None:
    engine = ChatTurnEngine(store, produce=produce, hooks=Hooks(), on_interrupted="fail")
    identity = ChatTurnIdentity("tenant", "session", "user", 0)
    turn = await engine.submit(identity, "What does it cost?", model="small")
    assert_type(turn.created, bool)
    assert_type(turn.run, RunRecord)
    async for line in turn.lines(after=None, wire="ndjson"):
        assert_type(line, bytes)
    async for line in engine.read(identity, after="0001_0000000001_abcdef"):
        assert_type(line, bytes)
    assert_type(await engine.stop(identity), RunRecord)
    await engine.aclose(drain_ms=1_000)


def identities_are_texts(value: Mapping[str, Any]) -> None:
    assert_type(canonical_json(value), str)
    assert_type(canonical_hash(value), str)
    assert_type(manifest_hash(MANIFEST), str)
    assert_type(step_id("run", 0, "fetch"), str)
    assert_type(SessionKey("session", 0).revision, int)
