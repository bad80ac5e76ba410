"""A request that is made again and may be billed is a call of its own; what cost nothing is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx2
import pytest

from perdure.backends.openai import OpenAIBackend
from perdure.backends.retry import BackendRetry
from perdure.core.billing import request_lost
from perdure.core.records import UsageRecord
from perdure.durable.context import DurableContext
from perdure.durable.runner import run_durable
from perdure.store.opening import open_store
from perdure.testing.samples import manifest
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
        (0, 0, "unknown", None),  # This task does not report what the answer used.
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
