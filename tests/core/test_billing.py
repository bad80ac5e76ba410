"""A request that is made again and may be billed is a call of its own; what cost nothing is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import httpx2
import pytest

from perdure.backends.openai import OpenAIBackend
from perdure.backends.protocol import Prompt
from perdure.backends.retry import BackendRetry
from perdure.core.billing import request_lost
from perdure.core.frames import Frame
from perdure.core.records import UsageRecord
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.errors import BackendTransportError, RunStoppedError, StepFailedError
from perdure.store.memory import MemoryStore
from perdure.store.opening import open_store
from perdure.testing.samples import manifest
from perdure.turn.engine import ChatTurnEngine
from perdure.turn.handout import Turn
from perdure.turn.identity import ChatTurnIdentity
from tests.backends.asking import HELLO, PROMPT

Failure = Callable[[httpx2.Request], httpx2.Response]


def status(code: int) -> Failure:
    return lambda _: httpx2.Response(code)


def error(kind: type[httpx2.RequestError]) -> Failure:
    def fail(request: httpx2.Request) -> httpx2.Response:
        raise kind("it failed", request=request)

    return fail


async def asked(failure: Failure, *, kind: str = "llm") -> list[UsageRecord]:
    """Ask within a step a provider that fails once, and return the ledger of the run."""
    failures = [failure]

    def answer(request: httpx2.Request) -> httpx2.Response:
        if failures:
            return failures.pop()(request)
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, content=HELLO)

    backend = OpenAIBackend(
        client=httpx2.AsyncClient(transport=httpx2.MockTransport(answer)),
        retry=BackendRetry(tries_max=2, backoff_ms=0),
    )

    async def ask() -> int:
        return len([frame async for frame in backend.stream(PROMPT)])

    async def task(context: DurableContext) -> int:
        step = context.step("ask", ask, kind="llm") if kind == "llm" else context.step("ask", ask)
        return await step

    store = await open_store("memory:")
    assert (await run_durable(store, run_id="run", manifest=manifest(), task=task)).result
    usage = list((await store.read_details("run")).usage)
    await store.close()
    return usage


@pytest.mark.parametrize(
    "failure",
    [
        *map(error, (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)),
        *map(status, (408, 502, 504)),
    ],
    ids=["read", "write", "protocol", "408", "502", "504"],
)
async def test_a_lost_request_is_recorded_as_unknown_before_the_next_one(failure: Failure) -> None:
    usage = await asked(failure)
    assert [(row.call, row.step_index, row.state, row.provider) for row in usage] == [
        (0, 0, "unknown", "openai"),  # This provider does not tell what the answer used.
        (1, 0, "unknown", "openai"),
    ]


@pytest.mark.parametrize(
    "failure",
    [
        *map(error, (httpx2.ConnectError, httpx2.ConnectTimeout)),
        *map(status, (429, 500, 503)),
    ],
    ids=["connect", "connect timeout", "429", "500", "503"],
)
async def test_a_request_that_was_refused_is_no_call(failure: Failure) -> None:
    assert [row.call for row in await asked(failure)] == [0]


async def test_a_step_that_asks_no_model_has_no_calls() -> None:
    assert await asked(error(httpx2.ReadError), kind="logic") == []


async def test_outside_of_a_step_nothing_is_recorded() -> None:
    async with asyncio.timeout(5):
        await request_lost("openai")


def refusing() -> OpenAIBackend:
    """Return a backend whose provider refuses every request."""
    transport = httpx2.MockTransport(lambda _: httpx2.Response(401))
    return OpenAIBackend(model="gpt-x", client=httpx2.AsyncClient(transport=transport))


def named(usage: Sequence[UsageRecord]) -> list[tuple[str, str | None, str | None]]:
    return [(row.state, row.provider, row.model) for row in usage]


async def test_a_call_that_failed_has_the_names_of_whom_it_asked() -> None:
    async def ask(prompt: Prompt) -> int:
        return len([frame async for frame in refusing().stream(prompt)])

    async def task(context: DurableContext) -> None:
        for prompt in (PROMPT, PROMPT._replace(model="gpt-y")):
            with pytest.raises(StepFailedError):
                await context.step("ask", partial(ask, prompt), kind="llm")

    store = MemoryStore()
    await run_durable(store, run_id="run", manifest=manifest(), task=task)
    usage = (await store.read_details("run")).usage
    assert named(usage) == [("unknown", "openai", "gpt-x"), ("unknown", "openai", "gpt-y")]


async def test_where_several_were_asked_in_vain_none_is_taken_for_another() -> None:
    async def ask_both() -> None:
        for model in ("gpt-x", "gpt-y"):
            with pytest.raises(BackendTransportError):
                [frame async for frame in refusing().stream(PROMPT._replace(model=model))]

    async def task(context: DurableContext) -> None:
        await context.step("ask", ask_both, kind="llm")

    store = MemoryStore()
    await run_durable(store, run_id="run", manifest=manifest(), task=task)
    assert named((await store.read_details("run")).usage) == [("unknown", "openai", None)]


async def test_a_call_that_was_cut_off_has_the_names_of_whom_it_asked() -> None:
    is_asked = asyncio.Event()

    async def hang(request: httpx2.Request) -> httpx2.Response:
        is_asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(hang))
    backend = OpenAIBackend(model="gpt-x", client=client)

    async def ask() -> int:
        return len([frame async for frame in backend.stream(PROMPT)])

    async def task(context: DurableContext) -> int:
        return await context.step("ask", ask, kind="llm")

    store = MemoryStore()
    running = asyncio.ensure_future(
        run_durable(store, run_id="run", manifest=manifest(), task=task)
    )
    await is_asked.wait()
    await store.request_stop("run")
    with pytest.raises(RunStoppedError):
        await running
    assert named((await store.read_details("run")).usage) == [("unknown", "openai", "gpt-x")]


async def test_the_call_of_a_turn_that_failed_has_the_names_of_whom_its_producer_asked() -> None:
    async def produce(turn: Turn) -> AsyncIterator[Frame]:
        async for frame in refusing().stream(PROMPT):
            yield frame

    store = MemoryStore()
    engine = ChatTurnEngine(store, produce=produce)
    submitted = await engine.submit(ChatTurnIdentity("", "s", "ann", 0), "Hi")
    assert [line async for line in submitted.lines()]
    await engine.aclose()
    assert named((await store.read_details("chat:s:0")).usage) == [("unknown", "openai", "gpt-x")]
