"""The Responses backend against an independent server of the protocol."""

from __future__ import annotations

import pytest

from perdure.backends.protocol import Prompt
from perdure.backends.responses import OpenAIResponsesBackend
from perdure.core.frames import Frame, fold_parts, text_of, tool_call, upstream_end
from tests.backends.aimock import Aimock

pytestmark = pytest.mark.node


async def ask(aimock: Aimock, words: str, model: str = "gpt-4o") -> list[Frame]:
    backend = OpenAIResponsesBackend("sk-test", base_url=aimock.base_url, model=model)
    try:
        prompt = Prompt([{"role": "user", "content": words}])
        return [frame async for frame in backend.stream(prompt)]
    finally:
        await backend.aclose()


async def test_an_answer_is_one_call_and_has_a_handle(aimock: Aimock) -> None:
    frames = await ask(aimock, "hello")
    expected = "Hello there, this is a scripted streaming answer. 👋"
    assert text_of(fold_parts(frames)) == expected
    assert (frames[0].kind, frames[-1]) == ("upstream_begin", upstream_end("stop"))
    assert frames[-2].data["model"] == "gpt-4o"
    (entry,) = aimock.journal()
    assert entry["response"]["status"] == 200


async def test_a_tool_call_is_told_with_its_arguments(aimock: Aimock) -> None:
    frames = await ask(aimock, "what is the weather")
    assert tool_call("call_1", "get_weather", {"city": "Paris"}) in frames
    assert frames[-1] == upstream_end("tool_calls")


async def test_reasoning_is_told_apart_from_text(aimock: Aimock) -> None:
    parts = fold_parts(await ask(aimock, "think", model="o3"))
    assert [(part["k"], part["d"]) for part in parts] == [
        ("reasoning", "Let me think about it."),
        ("text", "Done thinking."),
    ]
