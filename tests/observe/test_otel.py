"""Spans and metrics of real runs and turns, read from the SDK's exporters in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from perdure.backends.protocol import Prompt
from perdure.backends.scripted import ScriptedBackend
from perdure.core import observing
from perdure.core.frames import Frame, text, upstream_end, usage
from perdure.core.records import Retry
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.durable.steps import report_usage
from perdure.durable.watched import TRACE_KEY
from perdure.durable.worker import Worker
from perdure.errors import RunStoppedError, UsageError
from perdure.observe.otel import instrument_opentelemetry
from perdure.store.memory import MemoryStore
from perdure.turn.answering import answer_with
from perdure.turn.durable import run_durable_turn
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.identity import ChatTurnIdentity
from tests.observe.spanning import MANIFEST, Watched, attributes, context, watching
from tests.turn.stage import events_of

PROMPT = Prompt([{"role": "user", "content": "Hello"}])
TURN = ChatTurnIdentity("", "s", "ann", 0)
TOKENS_IN = "gen_ai.client.inference.usage.input_tokens"
TOKENS_OUT = "gen_ai.client.inference.usage.output_tokens"


async def ask() -> str:
    report_usage(
        provider="openai",
        model="gpt-x",
        tokens_in=7,
        tokens_out=3,
        tokens_cached=2,
        tokens_cache_written=1,
        tokens_reasoning=1,
    )
    return "yes"


async def research(ctx: DurableContext) -> str:
    await ctx.step("ask", ask, kind="llm")
    await ctx.step("search", lambda: "found", kind="tool")
    return await ctx.step("join", lambda: "done")


async def run(store: MemoryStore, task: Any = research) -> Any:
    return await run_durable(store, run_id="r", manifest=MANIFEST, task=task)


async def test_a_run_is_a_span_above_its_steps(watched: Watched) -> None:
    await run(MemoryStore())
    assert watched.names == [
        "chat gpt-x",
        "execute_tool search",
        "step join",
        "invoke_workflow research",
    ]
    root = watched.span("invoke_workflow research")
    assert root.parent is None
    assert {span.parent.span_id for span in watched.spans if span.parent} == {context(root).span_id}
    assert attributes(root) == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "research",
        "perdure.run.id": "r",
        "perdure.run.attempt": 1,
        "perdure.outcome": "completed",
    }


async def test_a_model_call_has_the_current_names(watched: Watched) -> None:
    await run(MemoryStore())
    span = watched.span("chat gpt-x")
    assert span.kind is SpanKind.CLIENT
    assert attributes(span) == {
        "perdure.step.position": 0,
        "perdure.step.intent": "ask",
        "perdure.step.kind": "llm",
        "perdure.step.try": 1,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.response.model": "gpt-x",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.cache_write.input_tokens": 1,
        "gen_ai.usage.reasoning.output_tokens": 1,
    }
    assert (watched.total(TOKENS_IN), watched.total(TOKENS_OUT)) == (7, 3)
    parts = ("cache_read.input", "cache_write.input", "reasoning.output")
    counted = [watched.total(f"gen_ai.client.inference.usage.{part}_tokens") for part in parts]
    assert counted == [2, 1, 1]
    [point] = watched.points(TOKENS_IN)
    assert point.attributes["gen_ai.token.modality"] == "unknown"
    assert len(watched.points("gen_ai.client.inference.duration")) == 1
    assert len(watched.points("gen_ai.execute_tool.duration")) == 1
    assert len(watched.points("gen_ai.invoke_workflow.duration")) == 1
    assert watched.points("gen_ai.client.token.usage") == []


async def test_the_old_names_are_there_for_who_asks_for_them() -> None:
    with watching("1.36") as watched:
        await run(MemoryStore())
        known = attributes(watched.span("chat gpt-x"))
        assert known["gen_ai.system"] == "openai"
        assert "gen_ai.provider.name" not in known
        assert "gen_ai.operation.name" not in attributes(watched.spans[-1])
        assert watched.total("gen_ai.client.token.usage") == 10
        assert watched.points(TOKENS_IN) == []
    with watching("both") as watched:
        await run(MemoryStore())
        known = attributes(watched.span("chat gpt-x"))
        assert known["gen_ai.system"] == known["gen_ai.provider.name"] == "openai"
        assert watched.total("gen_ai.client.token.usage") == 10
        assert watched.total(TOKENS_IN) == 7


async def test_what_replays_emits_no_span_and_no_tokens(watched: Watched) -> None:
    store = MemoryStore()
    await run(store)
    watched.exporter.clear()
    await run(store)
    assert watched.names == []
    assert watched.total(TOKENS_IN) == 7


async def test_a_retried_run_goes_on_in_its_trace_and_asks_no_model_twice(watched: Watched) -> None:
    store = MemoryStore()

    async def fails(ctx: DurableContext) -> str:
        await ctx.step("ask", ask, kind="llm")
        raise ValueError("a word that nobody should read")

    with pytest.raises(ValueError, match="nobody should read"):
        await run(store, fails)
    first = watched.span("invoke_workflow research")
    assert first.status.status_code is StatusCode.ERROR
    assert first.status.description is None
    assert attributes(first)["error.type"] == "ValueError"
    assert attributes(first)["perdure.outcome"] == "failed"
    watched.exporter.clear()
    await run(store)
    second = watched.span("invoke_workflow research")
    assert context(second).trace_id == context(first).trace_id
    assert second.parent is not None
    assert second.parent.span_id == context(first).span_id
    [link] = second.links
    assert link.context.span_id == context(first).span_id
    assert dict(link.attributes or {}) == {"perdure.run.attempt": 1, "perdure.attempt.lost": False}
    assert "chat gpt-x" not in watched.names
    assert watched.total(TOKENS_IN) == 7
    assert "nobody should read" not in "".join(span.to_json() for span in watched.spans)


async def test_each_try_of_a_step_is_a_call_of_its_own(watched: Watched) -> None:
    tries = 0

    async def flaky() -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionError("reset")
        return await ask()

    async def task(ctx: DurableContext) -> str:
        return await ctx.step("ask", flaky, kind="llm", retry=Retry(backoff_ms=1))

    await run(MemoryStore(), task)
    assert watched.names == ["chat", "chat gpt-x", "invoke_workflow research"]
    assert attributes(watched.span("chat"))["error.type"] == "ConnectionError"
    assert [point.value for point in watched.points(TOKENS_IN)] == [0, 7]


async def test_steps_at_once_are_all_children_of_their_run(watched: Watched) -> None:
    async def task(ctx: DurableContext) -> list[str]:
        return await asyncio.gather(*(ctx.step(f"s{n}", lambda: "x") for n in range(3)))

    await run(MemoryStore(), task)
    root = watched.spans[-1]
    parents = {span.parent.span_id for span in watched.spans[:-1] if span.parent}
    assert parents == {context(root).span_id}


async def test_a_span_of_the_user_is_inside_its_step_and_above_the_run(watched: Watched) -> None:
    tracer = watched.tracers.get_tracer("app")

    async def search() -> str:
        with tracer.start_as_current_span("http"):
            return "x"

    async def task(ctx: DurableContext) -> str:
        return await ctx.step("search", search, kind="tool")

    with tracer.start_as_current_span("request") as request:
        await run(MemoryStore(), task)
    assert watched.span("http").parent == context(watched.span("execute_tool search"))
    assert watched.span("invoke_workflow research").parent == request.get_span_context()


async def test_a_run_that_is_stopped_has_not_failed(watched: Watched) -> None:
    store = MemoryStore()

    async def task(ctx: DurableContext) -> None:
        await ctx.step("one", lambda: 1)
        await store.request_stop("r")
        await ctx.step("two", lambda: 2)
        await asyncio.Event().wait()

    with pytest.raises(RunStoppedError):
        await run(store, task)
    root = watched.span("invoke_workflow research")
    assert attributes(root)["perdure.outcome"] == "stopped"
    assert root.status.status_code is StatusCode.UNSET


async def is_completed(store: MemoryStore) -> bool:
    run = await store.read_run("r")
    return run is not None and run.state == "completed"


async def test_a_run_of_a_worker_that_sleeps_goes_on_in_the_same_trace(watched: Watched) -> None:
    store = MemoryStore()

    async def nap(ctx: DurableContext) -> str:
        await ctx.step("ask", ask, kind="llm")
        await ctx.sleep(60)
        return await ctx.step("join", lambda: "done")

    worker = Worker(store, tasks={"nap": nap})
    await worker.submit("nap", run_id="r", manifest=MANIFEST)
    working = asyncio.ensure_future(worker.run())
    async with asyncio.timeout(10):
        while not await is_completed(store):
            await store.wait_for_change("r", timeout_ms=100)
    await worker.drain()
    await working
    before, after = [span for span in watched.spans if span.name == "invoke_workflow nap"]
    assert attributes(before)["perdure.outcome"] == "given_back"
    assert attributes(after)["perdure.outcome"] == "completed"
    assert context(before).trace_id == context(after).trace_id
    assert watched.names.count("chat gpt-x") == 1
    [link] = after.links
    assert dict(link.attributes or {})["perdure.attempt.lost"] is False


# Turns.


async def answer(store: MemoryStore, produce: Any, message: str = "Hello") -> list[Any]:
    engine = ChatTurnEngine(store, produce=produce, name="helper")
    turn = await engine.submit(TURN, message)
    events = await events_of(turn)
    await engine.aclose()
    return events


async def test_a_turn_that_asks_a_backend_is_an_agent_above_one_call(watched: Watched) -> None:
    await answer(MemoryStore(), answer_with(ScriptedBackend()))
    assert watched.names == ["chat scripted-1", "invoke_agent helper"]
    call, agent = watched.spans
    assert call.parent == context(agent)
    known = attributes(agent)
    assert known["gen_ai.operation.name"] == "invoke_agent"
    assert known["gen_ai.agent.name"] == "helper"
    assert known["gen_ai.conversation.id"] == "s"
    assert known["perdure.turn.index"] == 0
    assert known["perdure.outcome"] == "completed"
    assert attributes(call)["gen_ai.provider.name"] == "scripted"
    assert attributes(call)["gen_ai.response.finish_reasons"] == ("stop",)
    assert len(watched.points("gen_ai.client.inference.time_to_first_chunk")) == 1
    assert watched.total(TOKENS_OUT) == attributes(call)["gen_ai.usage.output_tokens"] > 0
    assert watched.total("gen_ai.invoke_agent.inference_calls") == 1
    assert watched.total("gen_ai.invoke_agent.tool_calls") == 0


async def test_a_turn_with_streams_and_tools_has_a_span_for_each(watched: Watched) -> None:
    async def model() -> AsyncIterator[Frame]:
        yield text("Hi")
        assert trace.get_current_span().get_span_context().is_valid
        yield usage(provider="p", model="m", tokens_in=4, tokens_out=1)
        yield upstream_end("stop")

    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        first = turn.stream("ask", model, result=len)
        async for frame in first:
            yield frame
        await turn.step("look", lambda: "x", kind="tool")
        async for frame in turn.stream("answer", model, result=len):
            yield frame

    await answer(MemoryStore(), produce)
    assert watched.names == ["chat m", "execute_tool look", "chat m", "invoke_agent helper"]
    assert all(span.parent == context(watched.spans[-1]) for span in watched.spans[:-1])
    assert watched.total(TOKENS_IN) == 8
    assert watched.total("gen_ai.invoke_agent.inference_calls") == 2
    assert watched.total("gen_ai.invoke_agent.tool_calls") == 1


async def test_a_producer_that_reports_usage_itself_has_made_a_call(watched: Watched) -> None:
    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        yield text("Hi")
        await asyncio.sleep(0.02)
        yield usage(provider="p", model="m", tokens_in=4, tokens_out=1)
        yield upstream_end("stop")

    await answer(MemoryStore(), produce)
    call = watched.span("chat m")
    assert call.start_time is not None
    assert call.end_time is not None
    assert call.end_time - call.start_time >= 15_000_000
    assert watched.total(TOKENS_IN) == 4


async def test_a_producer_that_fails_is_an_error_without_its_words(watched: Watched) -> None:
    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        yield text("Hi")
        raise ValueError("a word that nobody should read")

    await answer(MemoryStore(), produce)
    agent = watched.span("invoke_agent helper")
    assert attributes(agent)["error.type"] == "failed"
    assert "nobody should read" not in agent.to_json()


async def test_a_finished_turn_that_is_read_again_emits_nothing(watched: Watched) -> None:
    store = MemoryStore()
    backend = ScriptedBackend()
    await answer(store, answer_with(backend))
    watched.exporter.clear()
    await answer(store, answer_with(backend))
    assert watched.names == []
    assert backend.calls == 1


async def test_a_turn_by_the_call_of_the_reference_is_an_agent(watched: Watched) -> None:
    async def produce() -> AsyncIterator[Any]:
        yield {"type": "text", "text": "Hi"}

    store = MemoryStore()
    turn = run_durable_turn(store, run_id="r", manifest=MANIFEST, intent="answer", produce=produce)
    [_ async for _ in turn.stream]
    assert watched.names == ["invoke_agent demo"]


# Switching on and off.


async def test_nothing_is_kept_and_nobody_is_told_without_it() -> None:
    store = MemoryStore()
    await run(store)
    assert observing.observer is None
    assert list((await store.read_details("r")).events) == []


async def test_each_attempt_keeps_where_it_stands(watched: Watched) -> None:
    store = MemoryStore()
    await run(store)
    [event] = (await store.read_details("r")).events
    at = context(watched.span("invoke_workflow research"))
    assert event.key == f"{TRACE_KEY}1"
    assert event.payload == f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}"


def test_other_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"1\.36"):
        instrument_opentelemetry(semconv=cast("Any", "1.37"))


async def test_an_observer_that_fails_does_not_disturb_a_run() -> None:
    class Broken:
        def attempt(self, seen: object) -> Any:
            raise RuntimeError("broken")

        def step(self, seen: object) -> Any:
            raise RuntimeError("broken")

        def told(self, told: object) -> Any:
            raise RuntimeError("broken")

    observing.watch_with(cast("observing.Observer", Broken()))
    try:
        assert (await run(MemoryStore())).result == "done"
        told = [frame async for frame in ScriptedBackend([text("Hi")]).stream(PROMPT)]
        assert told == [text("Hi")]
    finally:
        observing.watch_with(None)
