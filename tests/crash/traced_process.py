"""A process that works on a run or a turn under OpenTelemetry, and hangs where it is killed.

Each span is a line of JSON in a file as soon as it has ended, so that it survives the process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

import perdure
from perdure.core.frames import Frame, text, upstream_end, usage
from perdure.observe.otel import instrument_opentelemetry
from tests.turn.stage import until

TURN = perdure.ChatTurnIdentity("", "s", "ann", 0)
MANIFEST = perdure.RunManifest("demo", perdure.AgentTaskSpec("t", "Answer"), scenario_id="research")
LEASE_MS = 2_000
Hang = Callable[[], Any]


async def ask() -> str:
    perdure.report_usage(provider="p", model="first", tokens_in=7, tokens_out=3)
    return "yes"


def research(hang: Hang) -> Callable[[perdure.DurableContext], Any]:
    """Ask a model, then be killed in a tool, as far as `hang` hangs."""

    async def task(ctx: perdure.DurableContext) -> str:
        await ctx.step("ask", ask, kind="llm")
        await ctx.step("search", hang, kind="tool")
        return await ctx.step("join", lambda: "done")

    return task


def producer(hang: Hang) -> Callable[[perdure.Turn], AsyncIterator[Frame]]:
    """Ask a model, then be killed in the second answer, as far as `hang` hangs."""

    async def model(name: str) -> AsyncIterator[Frame]:
        yield text(name)
        if name == "second":
            await hang()
        yield usage(provider="p", model=name, tokens_in=7, tokens_out=3)
        yield upstream_end("stop")

    async def produce(turn: perdure.Turn) -> AsyncIterator[Frame]:
        for name in ("first", "second"):
            async for frame in turn.stream(name, partial(model, name), result=len):
                yield frame

    return produce


class LineFile(SpanProcessor):
    """Writes each span to a file when it has ended."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def on_end(self, span: ReadableSpan) -> None:
        os.write(self._file, f"{span.to_json(indent=None)}\n".encode())


async def hang() -> None:
    sys.stdout.write("hangs\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


async def main(kind: str, url: str, path: str) -> None:
    tracers = TracerProvider()
    tracers.add_span_processor(LineFile(path))
    instrument_opentelemetry(tracer_provider=tracers)
    store = await perdure.open_store(url)
    if kind == "run":
        await perdure.run_durable(
            store, run_id="r", manifest=MANIFEST, task=research(hang), lease_ms=LEASE_MS
        )
    else:
        engine = perdure.ChatTurnEngine(
            store, produce=producer(hang), name="helper", lease_ms=LEASE_MS
        )
        await engine.submit(TURN, "Hello")
        await until(lambda: False)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
