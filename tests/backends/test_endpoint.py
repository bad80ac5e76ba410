"""Every response of an endpoint is closed once its reader is gone, and its retries are shared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import httpx2
import pytest

from perdure.backends.openai import OpenAIBackend
from perdure.backends.retry import BackendRetry
from perdure.core.frames import text
from perdure.errors import BackendTransportError
from tests.backends import asking
from tests.backends.asking import HELLO, HELLO_FRAMES, PROMPT
from tests.backends.model_server import ModelServer, chunk, refusal, reply, sse


class Body(httpx2.AsyncByteStream):
    """Sends `pieces`, then hangs if `hangs`; knows whether it was closed."""

    def __init__(self, *pieces: bytes, hangs: bool = False) -> None:
        self.closed = False
        self.hanging = asyncio.Event()
        self._pieces = pieces
        self._hangs = hangs

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._hangs:
            self.hanging.set()
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


def backend_of(body: Body, status: int = 200, request_timeout_ms: float = 0) -> OpenAIBackend:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers={"content-type": "text/event-stream"}, stream=body)

    return OpenAIBackend(
        client=httpx2.AsyncClient(transport=httpx2.MockTransport(answer)),
        retry=BackendRetry(tries_max=1, request_timeout_ms=request_timeout_ms),
    )


async def test_the_response_of_a_whole_answer_is_closed() -> None:
    body = Body(HELLO)
    async with aclosing(backend_of(body).stream(PROMPT)) as frames:
        async for _ in frames:
            pass
    assert body.closed


async def test_the_response_of_a_reader_that_leaves_is_closed() -> None:
    body = Body(sse(chunk(content="Hel")), hangs=True)
    async with aclosing(backend_of(body).stream(PROMPT)) as frames:
        assert await anext(frames) == text("Hel")
        assert not body.closed
    assert body.closed


@pytest.mark.parametrize("status", [200, 500])
async def test_the_response_of_a_cancelled_reader_is_closed(status: int) -> None:
    body = Body(hangs=True)
    reading = asyncio.ensure_future(anext(backend_of(body, status).stream(PROMPT)))
    await body.hanging.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert body.closed


async def test_the_response_that_begins_too_late_is_closed() -> None:
    body = Body(hangs=True)
    with pytest.raises(BackendTransportError):
        await anext(backend_of(body, request_timeout_ms=20).stream(PROMPT))
    assert body.closed


async def test_the_response_of_a_refusal_is_closed_before_it_is_read_whole() -> None:
    body = Body(b"x" * 10_000, b"x" * 10_000, hangs=True)
    with pytest.raises(BackendTransportError):
        await anext(backend_of(body, 400).stream(PROMPT))
    assert not body.hanging.is_set()
    assert body.closed


async def test_the_response_of_a_failed_answer_is_closed() -> None:
    body = Body(sse("{broken"), hangs=True)
    with pytest.raises(BackendTransportError):
        await anext(backend_of(body).stream(PROMPT))
    assert body.closed


async def test_all_calls_of_a_backend_have_one_reserve_of_retries(server: ModelServer) -> None:
    retry = BackendRetry(tries_max=3, backoff_ms=0, reserve_max=3)
    no, yes = refusal(503), reply(HELLO)
    server.will(*[no] * 3, *[no, yes] * 2, *[no] * 3)
    backend = asking.backend_of(server, retry=retry)
    made: list[int] = []
    for _ in range(5):
        before = len(server.received)
        with suppress(BackendTransportError):
            assert [frame async for frame in backend.stream(PROMPT)] == HELLO_FRAMES
        made.append(len(server.received) - before)
    await backend.aclose()
    # Two of three retries were in vain, and the last one is given back while it leads to answers.
    assert made == [3, 2, 2, 2, 1]
