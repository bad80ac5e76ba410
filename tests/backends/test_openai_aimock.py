"""The OpenAI backend against an independent server of the protocol that counts its calls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.backends.openai import OpenAIBackend
from perdure.backends.protocol import Prompt
from perdure.backends.retry import BackendRetry
from perdure.core.frames import Frame, fold_parts, text_of, tool_call, upstream_end
from perdure.errors import BackendTransportError
from tests.backends.aimock import Aimock

pytestmark = pytest.mark.node

HELLO = "Hello there, this is a scripted streaming answer. 👋"
QUICK = BackendRetry(tries_max=3, backoff_ms=1, backoff_max_ms=2)


def backend_of(aimock: Aimock, **headers: str) -> OpenAIBackend:
    return OpenAIBackend(
        "sk-test", base_url=aimock.base_url, model="gpt-4o", retry=QUICK, headers=headers
    )


def saying(words: str, *following: dict[str, Any]) -> Prompt:
    return Prompt([{"role": "user", "content": words}, *following])


async def ask(backend: OpenAIBackend, prompt: Prompt) -> list[Frame]:
    try:
        return [frame async for frame in backend.stream(prompt)]
    finally:
        await backend.aclose()


async def test_an_answer_is_one_call(aimock: Aimock) -> None:
    frames = await ask(backend_of(aimock), saying("hello"))
    assert text_of(fold_parts(frames)) == HELLO
    assert [frame.kind for frame in frames if frame.kind != "text"] == ["usage", "upstream_end"]
    assert frames[-1] == upstream_end("stop")
    (entry,) = aimock.journal()
    assert entry["response"]["status"] == 200


async def test_usage_is_asked_for_and_told(aimock: Aimock) -> None:
    frames = await ask(backend_of(aimock), saying("hello"))
    used = frames[-2].data
    assert used["model"] == "gpt-4o"
    assert used["in"] > 0
    assert used["out"] > 0
    assert used["request"].startswith("req-")


async def test_reasoning_is_told_apart_from_text(aimock: Aimock) -> None:
    parts = fold_parts(await ask(backend_of(aimock), saying("think")._replace(model="o3")))
    assert [(part["k"], part["d"]) for part in parts] == [
        ("reasoning", "Let me think about it."),
        ("text", "Done thinking."),
    ]


async def test_a_tool_is_called_and_answered(aimock: Aimock) -> None:
    frames = await ask(backend_of(aimock), saying("weather"))
    assert [frame for frame in frames if frame.kind != "usage"] == [
        tool_call("call_1", "get_weather", {"city": "Paris"}),
        upstream_end("tool_calls"),
    ]
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    answered = saying(
        "weather",
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "20"},
    )
    frames = await ask(backend_of(aimock), answered)
    assert text_of(fold_parts(frames)) == "It is 20 °C in Paris."
    assert len(aimock.journal()) == 2


@pytest.mark.parametrize(("fault", "status"), [("drop", 500), ("ratelimit", 429)])
async def test_a_fault_that_may_pass_is_called_three_times(
    aimock: Aimock, fault: str, status: int
) -> None:
    backend = backend_of(aimock, **{f"x-aimock-chaos-{fault}": "1"})
    with pytest.raises(BackendTransportError) as caught:
        await ask(backend, saying("hello"))
    assert (caught.value.status, caught.value.retryable) == (status, True)
    assert len(aimock.journal()) == 3


async def test_a_connection_that_is_always_lost_has_no_status(aimock: Aimock) -> None:
    with pytest.raises(BackendTransportError) as caught:
        await ask(backend_of(aimock, **{"x-aimock-chaos-disconnect": "1"}), saying("hello"))
    assert (caught.value.status, caught.value.retryable) == (0, True)
    assert len(aimock.journal()) == 3


async def test_malformed_json_is_a_failure_and_called_once(aimock: Aimock) -> None:
    with pytest.raises(BackendTransportError) as caught:
        await ask(backend_of(aimock, **{"x-aimock-chaos-malformed": "1"}), saying("hello"))
    assert "chaos" in caught.value.body
    assert len(aimock.journal()) == 1


async def test_an_unknown_question_is_refused_once(aimock: Aimock) -> None:
    with pytest.raises(BackendTransportError) as caught:
        await ask(backend_of(aimock, **{"x-aimock-strict": "false"}), saying("something else"))
    assert (caught.value.status, caught.value.retryable) == (404, False)
    assert len(aimock.journal()) == 1


async def test_ten_calls_at_once_are_ten_calls(aimock: Aimock) -> None:
    backend = backend_of(aimock)

    async def one() -> str:
        return text_of(fold_parts([frame async for frame in backend.stream(saying("hello"))]))

    assert await asyncio.gather(*(one() for _ in range(10))) == [HELLO] * 10
    await backend.aclose()
    assert len(aimock.journal()) == 10
