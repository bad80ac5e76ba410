"""Errors that stand where an answer should begin: nothing was told, so they are tried again."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.backends.reading import begins_with_error
from perdure.core.frames import fold_parts, text_of
from perdure.errors import BackendTransportError
from tests.backends import messaging, responding
from tests.backends.asking import HELLO, PROMPT, QUICK
from tests.backends.model_server import ModelServer, reply, sse
from tests.backends.official import APIS, KEY, Api, backend_of

ANSWERS = {
    "chat": HELLO,
    "responses": sse(*responding.HELLO),
    "messages": messaging.wire(*messaging.HELLO),
}


def refused(api: Api, **error: Any) -> bytes:
    """Return how a provider refuses within a stream."""
    if api == "chat":
        return sse({"error": error})
    if api == "responses":
        return sse(responding.event("error", 0, **error))
    return messaging.wire({"type": "error", "error": error})


@pytest.mark.parametrize("api", APIS)
async def test_an_error_where_the_answer_should_begin_is_tried_again(
    server: ModelServer, api: Api
) -> None:
    busy = refused(api, code="rate_limit_exceeded", message="slow down")
    server.will(reply(busy), reply(busy), reply(ANSWERS[api]))
    backend = backend_of(api, server.base_url, retry=QUICK)
    found = [frame async for frame in backend.stream(PROMPT)]
    await backend.aclose()
    assert text_of(fold_parts(found)) == "Hello"
    assert len(server.received) == 3


@pytest.mark.parametrize("api", APIS)
async def test_an_error_for_good_where_the_answer_should_begin_is_called_once(
    server: ModelServer, api: Api
) -> None:
    server.will(reply(refused(api, code="model_not_found", message=KEY)))
    backend = backend_of(api, server.base_url, retry=QUICK)
    with pytest.raises(BackendTransportError, match="model_not_found") as caught:
        await anext(aiter(backend.stream(PROMPT)))
    await backend.aclose()
    assert len(server.received) == 1
    assert KEY not in f"{caught.value}{caught.value.body}"


@pytest.mark.parametrize(
    ("first", "is_error"),
    [
        (b"event: error\ndata: busy\n\n", True),
        (b'data: {"type": "error"}\n\n', True),
        (b'data: {"error": {"code": 429}}\n\n', True),
        (b'data: {"error": null, "choices": []}\n\n', False),
        (b'data: {"error": {"code": 429}}', False),
        (b": hello\n\n", False),
        (b"data: [1]\n\n", False),
        (b"data: {no json\n\n", False),
        (b"", False),
    ],
)
def test_only_a_whole_event_that_comes_first_is_such_an_error(first: bytes, is_error: bool) -> None:
    assert begins_with_error(first) is is_error
